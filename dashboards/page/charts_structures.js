"use strict";
// The knobs: every configuration, structures as a map, and what matters.

// Both ends stand out from the card.
const shades = (state) => ({ name: "viridis", extent: state.dark ? [0.2, 1] : [0, 0.92] });
const yPlace = { field: "place", type: "quantitative", axis: null, scale: { domain: [-0.02, 1.02] } };

CHARTS.parallel = (page, state) => {
  const found = page.parallel.find((at) => at.ratio === state.ratio) ?? { axes: [], lines: [] };
  const lines = visible(found.lines, state);
  const rows = lines
    .flatMap((line, k) =>
      found.axes.map((axis, place) => ({ ...line, line: k, axis: axis.title, place: line.places[place] })),
    )
    .filter((row) => isNumber(row.place));
  const ticks = found.axes.flatMap((axis) => axis.ticks.map((tick) => ({ axis: axis.title, ...tick })));
  const titles = found.axes.map((axis) => axis.title);
  const accuracies = lines.map((line) => line.val_acc).filter(isNumber);
  return {
    rows,
    numbers: lines,
    columns: [
      METHOD,
      ["text", "configuration"],
      ["val_acc", `val. ${metric().short}`, (v) => digits(v)],
      ["chosen", "chosen", (v) => (v ? "yes" : "")],
    ],
    description:
      `Parallel coordinates of the knobs of every configuration at this ratio, coloured by validation ${metric().name}`,
    caption: [
      `${lines.length} configurations at R_C = ${ratioText(state.ratio)}; colour: validation ${metric().name}. Thick: chosen. `,
      "Hide methods above to follow one.",
    ],
    spec: {
      encoding: {
        x: {
          field: "axis",
          type: "ordinal",
          axis: {
            title: null,
            orient: "top",
            domain: false,
            labelAngle: 0,
            labelFontSize: 12,
            labelColor: "var(--ink)",
            labelOverlap: false,
          },
          scale: { domain: titles },
        },
      },
      layer: [
        {
          data: { values: titles.map((axis) => ({ axis, place: 0, end: 1 })) },
          mark: { type: "rule", stroke: "var(--line)", strokeWidth: 2 },
          encoding: { y: yPlace, y2: { field: "end" } },
        },
        {
          mark: { type: "line", ...DATA, invalid: "filter" },
          encoding: {
            y: yPlace,
            detail: { field: "line" },
            color: {
              field: "val_acc",
              type: "quantitative",
              scale: { scheme: shades(state), domain: [Math.min(...accuracies), Math.max(...accuracies)] },
              legend: {
                title: `val. ${metric().short}`,
                orient: "bottom",
                direction: "horizontal",
                gradientLength: 160,
                titleOrient: "left",
                offset: 4,
              },
            },
            strokeWidth: { condition: { test: "datum.chosen", value: 3.5 }, value: 1.3 },
            opacity: { condition: { test: "datum.chosen", value: 1 }, value: 0.55 },
          },
        },
        {
          data: { values: ticks },
          mark: {
            type: "text",
            align: "left",
            dx: 5,
            fontSize: 10.5,
            stroke: "var(--card)",
            strokeWidth: 3,
            strokeJoin: "round",
          },
          encoding: { y: yPlace, text: { field: "text" } },
        },
        {
          data: { values: ticks },
          mark: { type: "text", align: "left", dx: 5, fontSize: 10.5, fill: "var(--quiet)" },
          encoding: { y: yPlace, text: { field: "text" } },
        },
      ],
    },
  };
};

CHARTS.heat = (page, state) => {
  const rows = atRatio(page.heat, state).filter((row) => row.method === state.heat);
  return {
    rows,
    columns: [
      METHOD,
      ["h", "H", (v) => digits(v)],
      ["rc1", "RC1", (v) => digits(v)],
      ["val_acc", `val. ${metric().short}`, (v) => digits(v)],
      ["lr", "lr", (v) => digits(v)],
      ["tried", "rates tried"],
    ],
    empty: "No structure of this method was run at this ratio.",
    description: `Best validation ${metric().name} of ${state.heat} over H and RC1`,
    caption: [
      `${state.heat} at R_C = ${ratioText(state.ratio)}: validation ${metric().name} at the best learning rate tried. `,
      "RC2 follows from the budget.",
    ],
    spec: {
      encoding: {
        x: { field: "h", type: "ordinal", title: "H, steps from one reset to the next", axis: { labelAngle: 0 } },
        y: { field: "rc1", type: "ordinal", sort: "descending", title: "RC1" },
      },
      layer: [
        {
          mark: { type: "rect", stroke: "var(--card)", strokeWidth: 2, cornerRadius: 4, ...DATA },
          encoding: {
            color: { field: "val_acc", type: "quantitative", scale: { scheme: shades(state) }, legend: null },
          },
        },
        {
          mark: { type: "text", fontWeight: "bold", stroke: "var(--card)", strokeWidth: 3, strokeJoin: "round" },
          encoding: { text: { field: "val_acc", format: ".1f" } },
        },
        { mark: { type: "text", fontWeight: "bold" }, encoding: { text: { field: "val_acc", format: ".1f" } } },
      ],
    },
  };
};

CHARTS.importance = (page, state) => {
  const rows = atRatio(page.importance, state);
  const most = rows.toSorted((a, b) => b.share - a.share).map((row) => row.knob);
  return {
    rows,
    columns: [
      ["knob", "knob"],
      ["share", "share", (v) => digits(v, 2)],
      ["n", "runs"],
    ],
    empty: "Too few runs to tell.",
    description: "Share of the variation between runs that each knob accounts for alone",
    caption: [
      `Share of the ranks' variance between ${rows[0]?.n ?? 0} runs at R_C = ${ratioText(state.ratio)} that each knob accounts `,
      "for alone (ε²); diverged runs rank last. Shares need not add up to 1.",
    ],
    spec: {
      encoding: {
        y: {
          field: "knob",
          type: "nominal",
          sort: most,
          title: null,
          axis: { labelFontSize: 12, labelColor: "var(--ink)" },
        },
        x: { field: "share", type: "quantitative", title: "share", scale: { domain: [0, 1] }, axis: { grid: true } },
      },
      layer: [
        { mark: { type: "bar", fill: "var(--accent)", height: { band: 0.55 }, cornerRadiusEnd: 3, ...DATA } },
        { mark: { type: "text", align: "left", dx: 5 }, encoding: { text: { field: "share", format: ".2f" } } },
      ],
    },
  };
};
