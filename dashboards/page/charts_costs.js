"use strict";
// What it takes: the time of a step under a link, and what the study cost.

CHARTS.steps = (page, state) => {
  const times = page.step_times;
  if (!times) return { rows: [], columns: [], empty: "One worker communicates with nobody." };
  const [c, r] = [state.compute, state.rate];
  const forms = times.forms.filter(
    (form) => form.ratio === null || (form.ratio === state.ratio && !state.hidden.has(form.method)),
  );
  const rows = forms.map((form) => ({
    method: form.title,
    kind: "modelled",
    ms: form.step_ms[c][r],
    speedup: `${digits(form.speedup[c][r], 3)}×`,
  }));
  const fastest = rows.toSorted((a, b) => a.ms - b.ms).map((row) => row.method);
  const measured = atRatio(times.measured, state).map((m) => ({
    method: m.method,
    kind: "measured",
    ms: m.step_ms,
    comm: m.comm_ms,
    n: m.n,
  }));
  return {
    rows: rows.concat(measured),
    height: 40 + 24 * rows.length,
    columns: [
      METHOD,
      ["kind", "figure"],
      ["ms", "a step", millisecondsText],
      ["speedup", "over DDP"],
      ["comm", "of it waiting", millisecondsText],
    ],
    description: "Time of a step by method under the chosen link, modelled, and measured where it ran on real workers",
    caption: [
      tag("modelled"),
      ` as by cser-ray plan: ${times.n_params.toLocaleString("en")} parameters, ${times.workers} workers, `,
      `${times.backend}; constants from ${times.source}. `,
      measured.length ? "◆ measured on this study's real workers, on their own machine and link." : "",
    ],
    spec: {
      encoding: {
        y: {
          field: "method",
          type: "nominal",
          title: null,
          sort: fastest,
          axis: { labelColor: "var(--ink)", labelFontSize: 12, labelLimit: 160 },
        },
        x: {
          field: "ms",
          type: "quantitative",
          title: "milliseconds a step; × is the speed-up over DDP",
          axis: { grid: true, tickCount: 6 },
        },
      },
      layer: [
        {
          transform: [{ filter: "datum.kind == 'modelled'" }],
          mark: {
            type: "bar",
            fill: "var(--modelled-soft)",
            stroke: MODELLED,
            strokeDash: [4, 2],
            height: { band: 0.62 },
            cornerRadiusEnd: 3,
            ...DATA,
          },
        },
        {
          transform: [{ filter: "datum.kind == 'modelled'" }],
          mark: { type: "text", align: "left", dx: 6, fill: MODELLED },
          encoding: { text: { field: "speedup" } },
        },
        {
          transform: [{ filter: "datum.kind == 'measured'" }],
          mark: { type: "point", shape: "diamond", size: 120, fill: "var(--ink)", ...DATA },
        },
        {
          data: { values: [{ ms: times.compute_ms[c] }] },
          mark: { type: "rule", strokeDash: [2, 3] },
          encoding: { y: null },
        },
      ],
    },
  };
};

CHARTS.cost = (page, state) => {
  const rows = visible(page.cost.methods, state).map((row) => ({
    ...row,
    kind: row.rung === "virtual" ? "virtual" : "real",
  }));
  const [title, text] = state.spent === "bytes" ? ["bytes", bytesText] : ["worker-seconds", secondsText];
  const total = page.cost.total;
  return {
    rows,
    columns: [
      METHOD,
      ["kind", "workers"],
      ["worker_s", "worker-seconds", secondsText],
      ["bytes", "bytes", bytesText],
      ["trials", "trials"],
      ["runs", "runs"],
    ],
    height: 60 + 22 * new Set(rows.map((row) => row.method)).size,
    description: `What each method cost the study in ${title}`,
    caption: [
      `In all ${secondsText(total.worker_s)} of processes that trained and ${bytesText(total.bytes)} sent by all workers `,
      `(virtual ones: would have sent), in ${total.trials} trials and ${total.runs} runs. Light: on real workers.`,
    ],
    spec: {
      encoding: {
        y: {
          field: "method",
          type: "nominal",
          sort: page.methods,
          title: null,
          axis: { labelColor: "var(--ink)", labelFontSize: 12 },
        },
        x: { field: state.spent, type: "quantitative", title, axis: { grid: true, format: ".3~s", tickCount: 6 } },
      },
      layer: [
        {
          mark: { type: "bar", height: { band: 0.62 }, cornerRadiusEnd: 3, ...DATA },
          encoding: {
            color: byMethod(page.methods).color,
            opacity: { condition: { test: "datum.kind == 'real'", value: 0.5 }, value: 1 },
          },
        },
      ],
    },
  };
};
