"use strict";
// What several charts share: which rows are shown, lines to compare with, axes. A chart is made from the payload and what
// is picked; it arranges numbers, and whatever had to be computed was computed in dashboards/views.

const CHARTS = {}; // figure id -> (page, state) -> what draw() takes

const atRatio = (rows, state) => rows.filter((row) => row.ratio === state.ratio);
const visible = (rows, state) => rows.filter((row) => !state.hidden.has(row.method));
const isReference = (row) => row.ratio === 1 || row.ratio === "inf";
const DATA = { tooltip: { content: "data" } };
const tag = (text) => h("span", { class: "pill modelled" }, text);
const MODELLED = "var(--modelled)";

const METHOD = ["method", "method"];
const RATIO = ["ratio", "R_C", ratioText];
// What the task is judged by, as tuning/compare says it.
const metric = () =>
  page?.decision?.metric ?? { name: "accuracy", unit: "%", axis: "accuracy, %", short: "acc., %", loss_unit: "nats" };
const lossAxis = (name) => (metric().loss_unit ? `${name}, ${metric().loss_unit}` : name);
const metricText = (value) => (metric().unit ? `${digits(value)} ${metric().unit}` : digits(value));
const accuracyColumn = () => ["mean", `test ${metric().short}`, (value, row) => plusMinus(value, row.std)];

const yAccuracy = () => ({
  field: "mean",
  type: "quantitative",
  title: `test ${metric().axis}`,
  scale: { zero: false },
});
const xLinear = (title) => ({
  field: "x",
  type: "quantitative",
  title,
  axis: { tickCount: 6 },
  scale: { nice: false, zero: false, padding: 8 },
});

const referenceRows = (page) =>
  page.decision.references
    .filter((line) => isNumber(line.mean) && (line.floor || line.dense))
    .map((line) => ({ name: line.dense ? line.name : "floor", level: line.mean }));
const referenceLines = (page) => [
  {
    data: { values: referenceRows(page) },
    mark: { type: "rule", strokeDash: [5, 4], opacity: 0.8 },
    encoding: { x: null, y: { field: "level", type: "quantitative", scale: { zero: false } } },
  },
  {
    data: { values: referenceRows(page) },
    mark: { type: "text", align: "right", baseline: "bottom", dy: -3, fill: "var(--quiet)" },
    encoding: { x: { value: "width" }, y: { field: "level", type: "quantitative" }, text: { field: "name" } },
  },
];
function floorText(page) {
  const names = page.decision.references.filter((line) => line.floor).map((line) => line.name);
  return names.length ? `Floor: ${names[0]}.` : "";
}
