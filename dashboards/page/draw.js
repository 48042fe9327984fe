"use strict";
// How anything is drawn: elements, method symbols, number formats, and one chart in its figure.
// Text only ever becomes text: what a trial is called, or how it failed, is somebody else's input.

const $ = (id) => document.getElementById(id);

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

// ---- methods: a colour and a shape each, so that neither alone must tell them apart

const SHAPES = {
  circle: "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z",
  square: "M-.88,-.88H.88V.88H-.88Z",
  up: "M0,-1.1L1.1,.85H-1.1Z",
  down: "M0,1.1L1.1,-.85H-1.1Z",
  diamond: "M0,-1.25L1.1,0L0,1.25L-1.1,0Z",
  cross: "M-.4,-1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4Z",
  left: "M-1.1,0L.85,-1.1V1.1Z",
  right: "M1.1,0L-.85,-1.1V1.1Z",
  bar: "M-1.2,-.4H1.2V.4H-1.2Z",
  star: "M0,-1.3L.36,-.4L1.24,-.4L.55,.2L.8,1.1L0,.55L-.8,1.1L-.55,.2L-1.24,-.4L-.36,-.4Z",
};
const LOOKS = {
  "sgd": ["sgd", "bar"], "no-sync": ["no-sync", "bar"], "local-sgd": ["local-sgd", "up"], "diloco": ["diloco", "down"],
  "ef-sgd": ["ef-sgd", "square"], "qsparse": ["qsparse", "left"], "csea": ["csea", "diamond"], "cser-pl": ["cser-pl", "cross"],
  "cser": ["cser", "circle"], "cser-release": ["cser-release", "right"], "sgd-bf16": ["sgd", "star"], "adamw": ["sgd", "square"],
  "no-sync-adamw": ["no-sync", "star"], "local-adamw": ["local-sgd", "star"], "csea-adamw": ["csea", "star"],
  "cser-adamw": ["cser", "star"],
};
const look = (method) => LOOKS[method] ?? ["sgd", "star"];
const colour = (method) => `var(--m-${look(method)[0]})`;
const shape = (method) => SHAPES[look(method)[1]];

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const glyph = (method) =>
  svg("svg", { class: "glyph", viewBox: "-1.4 -1.4 2.8 2.8", "aria-hidden": "true" }, svg("path", { d: shape(method), fill: colour(method) }));

// ---- numbers as people read them

const isNumber = (value) => typeof value === "number";
const ratioText = (ratio) => (ratio === "inf" ? "∞" : String(ratio));
const digits = (value, n = 4) => (value === "inf" ? "∞" : isNumber(value) ? String(Number(value.toPrecision(n))) : "–");
function scaled(value, units) {
  if (!isNumber(value)) return "–";
  const [size, unit] = units.find(([size]) => Math.abs(value) >= size) ?? units[units.length - 1];
  return `${Number((value / size).toPrecision(3))} ${unit}`;
}
const bytesText = (value) => scaled(value, [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]]);
const secondsText = (value) => scaled(value, [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"], [1e-3, "ms"]]);
const millisecondsText = (value) => scaled(value, [[1000, "s"], [1, "ms"], [1e-3, "µs"]]);
const plusMinus = (mean, std, n = 1) => (isNumber(mean) ? mean.toFixed(n) + (isNumber(std) ? ` ± ${std.toFixed(n)}` : "") : "–");

// R_C as the paper prints it: one piece, or several.
const rich = (text) => (typeof text === "string" ? text.split("R_C").flatMap((part, k) => (k ? ["R", h("sub", {}, "C"), part] : [part])) : [text]);

// ---- charts

const FONT = 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
const CONFIG = {
  background: null, font: FONT, padding: { left: 2, right: 6, top: 6, bottom: 2 },
  view: { stroke: null },
  axis: {
    domain: false, ticks: false, gridColor: "var(--grid)", labelColor: "var(--quiet)", titleColor: "var(--quiet)", labelFontSize: 11,
    titleFontSize: 11.5, titleFontWeight: "normal", labelPadding: 6, titlePadding: 8, labelOverlap: "greedy",
  },
  axisX: { grid: false, domain: true, domainColor: "var(--line)" },
  axisY: { titleAnchor: "end", titleAngle: 0, titleAlign: "left", titleBaseline: "bottom", titleX: 0, titleY: -8 },
  line: { strokeWidth: 2, strokeJoin: "round", strokeCap: "round" },
  point: { filled: true, opacity: 1, size: 70 },
  rule: { stroke: "var(--quiet)" },
  text: { fill: "var(--ink)", fontSize: 11 },
  legend: { labelColor: "var(--quiet)", titleColor: "var(--quiet)", titleFontWeight: "normal", gradientLength: 120 },
};

// Colour and shape by method, for an encoding; a chart's own symbols stand in the toolbar.
const byMethod = (methods) => ({
  color: { field: "method", type: "nominal", legend: null, scale: { domain: methods, range: methods.map(colour) } },
  shape: { field: "method", type: "nominal", legend: null, scale: { domain: methods, range: methods.map(shape) } },
});

// `ast`: expressions are interpreted, never compiled to code, which the page's policy forbids.
const EMBED = { mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false, logLevel: 1, config: CONFIG };

const views = new Map(); // figure id -> the Vega view in it

// A chart: { title, description, caption, rows, columns: [[field, title, text?], ...], spec, empty }
async function draw(figure, chart) {
  const holder = figure.querySelector(".chart") ?? figure.appendChild(h("div", { class: "chart" }));
  const caption = figure.querySelector("figcaption") ?? figure.appendChild(h("figcaption"));
  caption.replaceChildren(...[chart.caption ?? ""].flat(Infinity).flatMap(rich));
  numbers(figure, chart);
  if (!chart.rows.length) {
    views.get(figure.id)?.finalize();
    views.delete(figure.id);
    holder.replaceChildren(h("p", { class: "empty" }, chart.empty ?? "Nothing to draw yet."));
    return;
  }
  const fresh = h("div");
  const size = { width: Math.max(180, holder.clientWidth - 8), height: chart.height ?? 280, autosize: { type: "fit", contains: "padding" } };
  const spec = { ...size, description: chart.description, data: { values: chart.rows }, ...chart.spec };
  const { view } = await vegaEmbed(fresh, spec, { ...EMBED, tooltip: (_, event, item, value) => tip(event, value, chart) });
  views.get(figure.id)?.finalize();
  views.set(figure.id, view);
  holder.replaceChildren(fresh);
}

// The chart's numbers as a table, for whoever cannot see it, or wants to copy them.
function numbers(figure, chart) {
  let details = figure.querySelector("details.numbers");
  if (!details) {
    details = figure.appendChild(h("details", { class: "numbers" }, h("summary", {}, "Numbers"), h("div", { class: "scroll", tabindex: "0" })));
    details.addEventListener("toggle", () => details.open && details.fill());
  }
  details.hidden = !chart.rows.length;
  details.fill = () => {
    const rows = (chart.numbers ?? chart.rows).slice(0, 500);
    const cells = (row) => chart.columns.map(([field, , text], k) => h(k ? "td" : "th", {}, text ? text(row[field], row) : String(row[field] ?? "–")));
    details.querySelector(".scroll").replaceChildren(
      h("table", {}, h("thead", {}, h("tr", {}, chart.columns.map(([, title]) => h("th", { scope: "col" }, rich(title))))), h("tbody", {}, rows.map((row) => h("tr", {}, cells(row)))))
    );
  };
  if (details.open) details.fill();
}

function tip(event, value, chart) {
  const box = $("tooltip");
  const row = value && typeof value === "object" ? value : null;
  if (!row || !event) {
    box.hidden = true;
    return;
  }
  const shown = chart.columns.filter(([field]) => row[field] !== undefined && row[field] !== null);
  const [first, ...others] = shown.map(([field, title, text]) => [title, text ? text(row[field], row) : String(row[field])]);
  if (!first) return;
  box.replaceChildren(h("b", {}, first[1]), h("dl", {}, others.map(([title, text]) => [h("dt", {}, rich(title)), h("dd", {}, text)])));
  box.hidden = false;
  const { innerWidth, innerHeight } = window;
  box.style.left = `${Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8)}px`;
  box.style.top = `${event.clientY + 18 + box.offsetHeight > innerHeight ? event.clientY - box.offsetHeight - 10 : event.clientY + 18}px`;
}
