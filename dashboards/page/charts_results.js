"use strict";
// Results: against cost, against the ratio, and on virtual workers beside real ones.

CHARTS.tradeoff = (page, state) => {
  if (state.cost === "seconds") return secondsTradeoff(page, state);
  const { points, fronts } = page.tradeoff;
  const onFront = fronts[state.cost].map((place) => points[place]);
  const title = { bytes: "bytes sent by a worker", rounds: "collectives a step" }[state.cost];
  return {
    ...tradeoffChart(visible(points, state), onFront, state.cost, title, page, byMethod(page.methods)),
    columns: [
      METHOD,
      RATIO,
      accuracyColumn(),
      ["bytes", "bytes sent", bytesText],
      ["rounds", "rounds a step", (v) => digits(v, 3)],
    ],
    caption: [
      "Each chosen configuration, numbered by its R_C; bars: ± one standard deviation. ",
      "Line: nothing is cheaper and better. Measured by the ledger. ",
      floorText(page),
    ],
  };
};

function secondsTradeoff(page, state) {
  const times = page.step_times;
  if (!times) return { rows: [], columns: [], empty: "One worker communicates with nobody." };
  const [c, r] = [state.compute, state.rate];
  const rows = times.forms.map((form) => ({ ...form, seconds: form.run_s[c][r] }));
  const onFront = times.fronts[c][r].map((place) => rows[place]);
  const encoding = { ...byMethod(page.methods), color: { value: MODELLED } };
  const chart = tradeoffChart(
    visible(rows, state).filter((row) => isNumber(row.mean)),
    onFront,
    "seconds",
    "seconds of a run",
    page,
    encoding,
  );
  return {
    ...chart,
    columns: [["title", "method"], RATIO, accuracyColumn(), ["seconds", "a run", secondsText]],
    caption: [
      tag("modelled"),
      ` seconds of a run on a link of ${times.rate_texts[r]} with ${digits(times.compute_ms[c], 3)} ms of computing a step `,
      `(set below, under Time of a step); ${metric().name} as measured.`,
    ],
  };
}

function tradeoffChart(points, onFront, field, title, page, encoding) {
  const x = {
    field,
    type: "quantitative",
    scale: { type: "log", nice: false, padding: 14 },
    title,
    axis: { format: "~s", tickCount: 5 },
  };
  const compressed = onFront.filter((row) => row.ratio > 1);
  const lastOf = (ratio) => compressed.findLast((row) => row.ratio === ratio);
  const named = compressed.filter((row) => row === lastOf(row.ratio)); // one label a ratio
  return {
    rows: points,
    description: `Test ${metric().name} against ${title}, with the Pareto front`,
    spec: {
      encoding: { x },
      layer: [
        ...referenceLines(page),
        {
          data: { values: onFront },
          mark: { type: "line", interpolate: "step-after", stroke: "var(--ink)", strokeWidth: 1.2, opacity: 0.6 },
          encoding: { y: yAccuracy() },
        },
        {
          mark: { type: "rule", opacity: 0.6 },
          encoding: {
            y: { field: "low", type: "quantitative", scale: { zero: false } },
            y2: { field: "high" },
            color: encoding.color,
          },
        },
        { mark: { type: "point", size: 85, ...DATA }, encoding: { y: yAccuracy(), ...encoding } },
        {
          data: { values: named },
          mark: { type: "text", dy: -11, fontSize: 10.5, fill: "var(--quiet)" },
          encoding: { y: yAccuracy(), text: { field: "ratio" } },
        },
      ],
    },
  };
}

CHARTS.accuracy = (page, state) => {
  const ratios = page.decision.ratios;
  const rows = visible(
    page.decision.cells.filter((cell) => !cell.reference && isNumber(cell.mean)),
    state,
  );
  const lost = visible(
    page.decision.cells.filter((cell) => !cell.reference && !isNumber(cell.mean)),
    state,
  );
  const x = {
    field: "ratio",
    type: "ordinal",
    scale: { domain: ratios },
    title: "overall compression ratio",
    axis: { labelAngle: 0 },
  };
  const offset = { xOffset: { field: "method", scale: { domain: page.methods, paddingOuter: 3 } } };
  const methods = byMethod(page.methods);
  return {
    rows: rows.concat(lost),
    columns: [METHOD, RATIO, accuracyColumn(), ["n", "repeats"], ["diverged", "diverged"]],
    description: `Test ${metric().name} of each method against the overall ratio, with dense training and the floor as lines`,
    caption: ["Bars: ± one standard deviation. ", lost.length ? "✕: every repeat diverged. " : "", floorText(page)],
    spec: {
      encoding: { x },
      layer: [
        ...referenceLines(page),
        {
          transform: [{ filter: "isValid(datum.mean)" }],
          mark: { type: "line", opacity: 0.45, strokeWidth: 1.5 },
          encoding: { y: yAccuracy(), color: methods.color, ...offset },
        },
        {
          transform: [{ filter: "isValid(datum.mean)" }],
          mark: { type: "rule", strokeWidth: 1.5 },
          encoding: {
            y: { field: "low", type: "quantitative", scale: { zero: false } },
            y2: { field: "high" },
            color: methods.color,
            ...offset,
          },
        },
        {
          transform: [{ filter: "isValid(datum.mean)" }],
          mark: { type: "point", ...DATA },
          encoding: { y: yAccuracy(), ...methods, ...offset },
        },
        {
          transform: [{ filter: "!isValid(datum.mean)" }],
          mark: { type: "text", text: "✕", fontSize: 13, fontWeight: "bold", ...DATA },
          encoding: { y: { value: "height" }, color: methods.color, ...offset },
        },
      ],
    },
  };
};

CHARTS.rungs = (page) => {
  const twin = page.rungs[0];
  const rows = page.rungs.flatMap((t) =>
    ["virtual", "real"].flatMap((rung) =>
      (t[rung].epoch ?? []).map((x, k) => ({
        name: `${t.method} at R_C ${ratioText(t.ratio)}`,
        rung,
        x,
        y: t[rung].val_acc[k],
      })),
    ),
  );
  return {
    rows,
    columns: [
      ["name", "configuration"],
      ["rung", "workers"],
      ["x", "epoch", (v) => digits(v)],
      ["y", `val. ${metric().short}`, (v) => digits(v)],
    ],
    empty: "Nothing has finished on real workers.",
    description: `Validation ${metric().name} of configurations on virtual and on real workers, same repeats`,
    caption: [
      page.agreements.map(
        (a) =>
          `${a.below} and ${a.above}${a.ratio === null ? "" : ` at R_C = ${ratioText(a.ratio)}`} rank ${a.n} runs ` +
          `with τ = ${digits(a.tau, 2)}. `,
      ),
      "Line: virtual workers; rings: real ones, same repeats. ",
      page.rungs.map(
        (t) =>
          `${t.method} at R_C = ${ratioText(t.ratio)}, ${t.backend}, n = ${t.n}: test ${metric().name} ` +
          `${metricText(t.test_acc)} real, ${metricText(t.virtual_test_acc)} virtual; realised ratio ${digits(t.realised_ratio)} and ` +
          `${digits(t.virtual_realised_ratio)}. `,
      ),
    ],
    spec: {
      encoding: {
        x: xLinear("passes over the training data"),
        y: { field: "y", type: "quantitative", title: `validation ${metric().axis}`, scale: { zero: false } },
        detail: { field: "name" },
      },
      layer: [
        {
          transform: [{ filter: "datum.rung == 'virtual'" }],
          mark: { type: "line", stroke: colour(twin?.method), ...DATA },
        },
        {
          transform: [{ filter: "datum.rung == 'real'" }],
          mark: { type: "point", filled: false, size: 90, strokeWidth: 2, stroke: "var(--ink)", ...DATA },
        },
      ],
    },
  };
};
