"use strict";
// What happens while a run trains: losses, accuracies, and how far the workers part.

CHARTS.curves = (page, state) => {
  const over = { epoch: "passes over the training data", wall_s: "seconds", bytes_sent: "bytes sent by a worker" }[
    state.over
  ];
  const shown = {
    val_acc: `validation ${metric().axis}`,
    val_loss: lossAxis("validation loss"),
    train_loss: lossAxis("training loss"),
  }[state.shown];
  const rows = curveRows(page, state, [state.shown], state.over);
  return {
    rows,
    columns: [
      METHOD,
      ["x", over, (v) => digits(v)],
      ["y", shown, (v, row) => digits(v) + (isNumber(row.low) ? ` (${digits(row.low)} to ${digits(row.high)})` : "")],
      ["n", "repeats"],
    ],
    description: `${shown} against ${over}`,
    caption: [
      `At R_C = ${ratioText(state.ratio)}, with dense and silent training dashed. `,
      "Mean over the repeats that converged; band: ± one standard deviation. ",
      state.over === "wall_s"
        ? "Seconds of the process that trained, with all runs that it stacked in one batch: compare within a method. "
        : "",
      "The scale leaves out the first quarter. ",
      rows.some((row) => row.provisional) ? "Dotted: nothing finished yet, the run that is ahead." : "",
    ],
    spec: curveSpec(page, over, shown, {
      logX: state.over === "bytes_sent",
      range: page.ranges.find((at) => at.ratio === state.ratio && at.name === state.shown),
    }),
  };
};

CHARTS.consensus = (page, state) => {
  const rows = curveRows(page, state, ["consensus_distance"], "epoch").filter((row) => row.y > 0);
  return {
    rows,
    columns: [METHOD, ["x", "epoch", (v) => digits(v)], ["y", "consensus distance", (v) => digits(v, 3)]],
    empty: "No method here lets its workers part.",
    description: "Consensus distance against epochs, by method",
    caption: [
      `(1/n) Σ ‖xᵢ − x̄‖² / ‖x̄‖² at R_C = ${ratioText(state.ratio)}: how far the workers' models are from their average. `,
      "Not drawn where they are equal, as after a whole reset.",
    ],
    spec: curveSpec(page, "passes over the training data", "consensus distance", { logY: true }),
  };
};

CHARTS.workers = (page, state) => {
  const own = curveRows(page, state, ["val_acc", "val_acc_worker"], "epoch").filter(
    (row) => row.method === state.method || known(row.method).silent,
  );
  const rows = own.map((row) => ({ ...row, model: row.shown === "val_acc" ? "the average" : "a worker's own" }));
  const methods = byMethod(page.methods);
  return {
    rows,
    columns: [METHOD, ["model", "model"], ["x", "epoch", (v) => digits(v)], ["y", `val. ${metric().short}`, (v) => digits(v)]],
    description: `Validation ${metric().name} of the averaged model and of worker 0's own model against epochs`,
    caption: [
      `${state.method} at R_C = ${ratioText(state.ratio)}, and without communication. Solid: the averaged model; dashed: worker 0's own. `,
      "A worker far above its average: averaging is what fails.",
    ],
    spec: {
      layer: [
        {
          mark: { type: "line", ...DATA },
          encoding: {
            strokeDash: {
              field: "model",
              type: "nominal",
              legend: null,
              scale: {
                domain: ["the average", "a worker's own"],
                range: [
                  [1, 0],
                  [4, 4],
                ],
              },
            },
          },
        },
        {
          transform: [{ filter: "datum.marked" }],
          mark: { type: "point", size: 50, ...DATA },
          encoding: { shape: methods.shape },
        },
      ],
      encoding: {
        x: xLinear("passes over the training data"),
        y: { field: "y", type: "quantitative", title: `validation ${metric().axis}`, scale: { zero: false } },
        color: methods.color,
        detail: [{ field: "method" }, { field: "model" }],
      },
    },
  };
};

function curveRows(page, state, names, over) {
  const curves = visible(page.curves, state).filter((curve) => curve.ratio === state.ratio || isReference(curve));
  return curves
    .flatMap((curve) =>
      names.flatMap((shown) => {
        const every = Math.max(1, Math.round(curve[over].length / 6));
        return curve[over].map((x, k) => ({
          method: curve.method,
          n: curve.n,
          provisional: curve.provisional,
          dashed: isReference(curve),
          shown,
          x,
          y: curve[shown][k],
          low: curve[`${shown}_low`]?.[k] ?? null,
          high: curve[`${shown}_high`]?.[k] ?? null,
          marked: k % every === every - 1 || k === curve[over].length - 1,
        }));
      }),
    )
    .filter((row) => isNumber(row.x) && isNumber(row.y) && !(over === "bytes_sent" && row.x <= 0));
}

function curveSpec(page, xTitle, yTitle, { logX, logY, range }) {
  const methods = byMethod(page.methods);
  const x = logX
    ? { ...xLinear(xTitle), axis: { format: "~s", tickCount: 6 }, scale: { type: "log", nice: false, padding: 8 } }
    : xLinear(xTitle);
  const y = {
    type: "quantitative",
    title: yTitle,
    ...(logY ? { axis: { format: ".0e", grid: false } } : {}),
    scale: logY ? { type: "log" } : { zero: false, ...(range ? { domain: [range.low, range.high] } : {}) },
  };
  const dash = {
    condition: [
      { test: "datum.provisional", value: [1, 4] },
      { test: "datum.dashed", value: [6, 4] },
    ],
    value: [1, 0],
  };
  return {
    encoding: { x, color: methods.color },
    layer: [
      {
        transform: [{ filter: "isValid(datum.low)" }],
        mark: { type: "area", opacity: 0.13, clip: true },
        encoding: { y: { ...y, field: "low" }, y2: { field: "high" } },
      },
      { mark: { type: "line", clip: true, ...DATA }, encoding: { y: { ...y, field: "y" }, strokeDash: dash } },
      {
        transform: [{ filter: "datum.marked" }],
        mark: { type: "point", size: 48, clip: true, ...DATA },
        encoding: { y: { ...y, field: "y" }, shape: methods.shape },
      },
    ],
  };
}
