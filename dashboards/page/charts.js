"use strict";
// The charts: from the payload and what is picked to rows and a Vega-Lite specification. They pick and arrange numbers;
// whatever had to be computed was computed in dashboards/views.

const shownMethods = (page, state) => page.methods.filter((method) => !state.hidden.has(method));
const atRatio = (rows, state) => rows.filter((row) => row.ratio === state.ratio);
const visible = (rows, state) => rows.filter((row) => !state.hidden.has(row.method));
const isReference = (row) => row.ratio === 1 || row.ratio === "inf";
const DATA = { tooltip: { content: "data" } };
const tag = (text) => h("span", { class: "pill modelled" }, text);
const MODELLED = "var(--modelled)";

const METHOD = ["method", "method"];
const RATIO = ["ratio", "R_C", ratioText];
const ACCURACY = ["mean", "test acc., %", (value, row) => plusMinus(value, row.std)];

const CHARTS = {
  tradeoff(page, state) {
    if (state.cost === "seconds") return secondsTradeoff(page, state);
    const { points, fronts } = page.tradeoff;
    const onFront = fronts[state.cost].map((place) => points[place]);
    const title = { bytes: "bytes sent by a worker", rounds: "collectives a step" }[state.cost];
    return {
      ...tradeoffChart(visible(points, state), onFront, state.cost, title, page, byMethod(page.methods)),
      columns: [METHOD, RATIO, ACCURACY, ["bytes", "bytes sent", bytesText], ["rounds", "rounds a step", (v) => digits(v, 3)]],
      caption: [`Each chosen configuration, numbered by its R_C; bars: ± one standard deviation. Line: nothing is cheaper and better. Measured by the ledger. `, floorText(page)],
    };
  },

  accuracy(page, state) {
    const ratios = page.decision.ratios;
    const rows = visible(page.decision.cells.filter((cell) => !cell.reference && isNumber(cell.mean)), state);
    const lost = visible(page.decision.cells.filter((cell) => !cell.reference && !isNumber(cell.mean)), state);
    const x = { field: "ratio", type: "ordinal", scale: { domain: ratios }, title: "overall compression ratio", axis: { labelAngle: 0 } };
    const offset = { xOffset: { field: "method", scale: { domain: page.methods, paddingOuter: 3 } } };
    const methods = byMethod(page.methods);
    return {
      rows: rows.concat(lost), columns: [METHOD, RATIO, ACCURACY, ["n", "repeats"], ["diverged", "diverged"]],
      description: "Test accuracy of each method against the overall ratio, with sgd and the floor as lines",
      caption: ["Bars: ± one standard deviation. ", lost.length ? "✕: every repeat diverged. " : "", floorText(page)],
      spec: {
        encoding: { x },
        layer: [
          ...referenceLines(page),
          { transform: [{ filter: "isValid(datum.mean)" }], mark: { type: "line", opacity: 0.45, strokeWidth: 1.5 }, encoding: { y: yAccuracy, color: methods.color, ...offset } },
          { transform: [{ filter: "isValid(datum.mean)" }], mark: { type: "rule", strokeWidth: 1.5 }, encoding: { y: { field: "low", type: "quantitative", scale: { zero: false } }, y2: { field: "high" }, color: methods.color, ...offset } },
          { transform: [{ filter: "isValid(datum.mean)" }], mark: { type: "point", ...DATA }, encoding: { y: yAccuracy, ...methods, ...offset } },
          { transform: [{ filter: "!isValid(datum.mean)" }], mark: { type: "text", text: "✕", fontSize: 13, fontWeight: "bold", ...DATA }, encoding: { y: { value: "height" }, color: methods.color, ...offset } },
        ],
      },
    };
  },

  curves(page, state) {
    const over = { epoch: "passes over the training data", wall_s: "seconds", bytes_sent: "bytes sent by a worker" }[state.over];
    const shown = { val_acc: "validation accuracy, %", val_loss: "validation loss, nats", train_loss: "training loss, nats" }[state.shown];
    const rows = curveRows(page, state, [state.shown], state.over);
    return {
      rows, columns: [METHOD, ["x", over, (v) => digits(v)], ["y", shown, (v, row) => digits(v) + (isNumber(row.low) ? ` (${digits(row.low)} to ${digits(row.high)})` : "")], ["n", "repeats"]],
      description: `${shown} against ${over}`,
      caption: [`At R_C = ${ratioText(state.ratio)}, with sgd and no-sync dashed. Mean over the repeats that converged; band: ± one standard deviation. `,
        state.over === "wall_s" ? "Seconds of the process that trained, with all runs that it stacked in one batch: compare within a method. " : "",
        "The scale leaves out the first quarter. ", rows.some((row) => row.provisional) ? "Dotted: nothing finished yet, the run that is ahead." : ""],
      spec: curveSpec(page, over, shown, { logX: state.over === "bytes_sent", range: page.ranges.find((at) => at.ratio === state.ratio && at.name === state.shown) }),
    };
  },

  consensus(page, state) {
    const rows = curveRows(page, state, ["consensus_distance"], "epoch").filter((row) => row.y > 0);
    return {
      rows, columns: [METHOD, ["x", "epoch", (v) => digits(v)], ["y", "consensus distance", (v) => digits(v, 3)]], empty: "No method here lets its workers part.",
      description: "Consensus distance against epochs, by method",
      caption: `(1/n) Σ ‖xᵢ − x̄‖² / ‖x̄‖² at R_C = ${ratioText(state.ratio)}: how far the workers' models are from their average. Not drawn where they are equal, as after a whole reset.`,
      spec: curveSpec(page, "passes over the training data", "consensus distance", { logY: true }),
    };
  },

  workers(page, state) {
    const own = curveRows(page, state, ["val_acc", "val_acc_worker"], "epoch").filter((row) => row.method === state.method || row.method === "no-sync");
    const rows = own.map((row) => ({ ...row, model: row.shown === "val_acc" ? "the average" : "a worker's own" }));
    const methods = byMethod(page.methods);
    return {
      rows, columns: [METHOD, ["model", "model"], ["x", "epoch", (v) => digits(v)], ["y", "val. acc., %", (v) => digits(v)]],
      description: "Validation accuracy of the averaged model and of worker 0's own model against epochs",
      caption: `${state.method} at R_C = ${ratioText(state.ratio)}, and no-sync. Solid: the averaged model; dashed: worker 0's own. A worker far above its average: averaging is what fails.`,
      spec: {
        layer: [
          { mark: { type: "line", ...DATA }, encoding: { strokeDash: { field: "model", type: "nominal", legend: null, scale: { domain: ["the average", "a worker's own"], range: [[1, 0], [4, 4]] } } } },
          { transform: [{ filter: "datum.marked" }], mark: { type: "point", size: 50, ...DATA }, encoding: { shape: methods.shape } },
        ],
        encoding: { x: xLinear("passes over the training data"), y: { field: "y", type: "quantitative", title: "validation accuracy, %", scale: { zero: false } }, color: methods.color, detail: [{ field: "method" }, { field: "model" }] },
      },
    };
  },

  parallel(page, state) {
    const found = page.parallel.find((at) => at.ratio === state.ratio) ?? { axes: [], lines: [] };
    const lines = visible(found.lines, state);
    const rows = lines.flatMap((line, k) => found.axes.map((axis, place) => ({ ...line, line: k, axis: axis.title, place: line.places[place] }))).filter((row) => isNumber(row.place));
    const ticks = found.axes.flatMap((axis) => axis.ticks.map((tick) => ({ axis: axis.title, ...tick })));
    const titles = found.axes.map((axis) => axis.title);
    const accuracies = lines.map((line) => line.val_acc).filter(isNumber);
    return {
      rows, numbers: lines, columns: [METHOD, ["text", "configuration"], ["val_acc", "val. acc., %", (v) => digits(v)], ["chosen", "chosen", (v) => (v ? "yes" : "")]],
      description: "Parallel coordinates of the knobs of every configuration at this ratio, coloured by validation accuracy",
      caption: `${lines.length} configurations at R_C = ${ratioText(state.ratio)}; colour: validation accuracy. Thick: chosen. Hide methods above to follow one.`,
      spec: {
        encoding: { x: { field: "axis", type: "ordinal", axis: { title: null, orient: "top", domain: false, labelAngle: 0, labelFontSize: 12, labelColor: "var(--ink)", labelOverlap: false }, scale: { domain: titles } } },
        layer: [
          { data: { values: titles.map((axis) => ({ axis, place: 0, end: 1 })) }, mark: { type: "rule", stroke: "var(--line)", strokeWidth: 2 }, encoding: { y: yPlace, y2: { field: "end" } } },
          {
            mark: { type: "line", ...DATA, invalid: "filter" },
            encoding: {
              y: yPlace, detail: { field: "line" },
              color: { field: "val_acc", type: "quantitative", scale: { scheme: shades(state), domain: [Math.min(...accuracies), Math.max(...accuracies)] }, legend: { title: "val. acc., %", orient: "bottom", direction: "horizontal", gradientLength: 160, titleOrient: "left", offset: 4 } },
              strokeWidth: { condition: { test: "datum.chosen", value: 3.5 }, value: 1.3 }, opacity: { condition: { test: "datum.chosen", value: 1 }, value: 0.55 },
            },
          },
          { data: { values: ticks }, mark: { type: "text", align: "left", dx: 5, fontSize: 10.5, stroke: "var(--card)", strokeWidth: 3, strokeJoin: "round" }, encoding: { y: yPlace, text: { field: "text" } } },
          { data: { values: ticks }, mark: { type: "text", align: "left", dx: 5, fontSize: 10.5, fill: "var(--quiet)" }, encoding: { y: yPlace, text: { field: "text" } } },
        ],
      },
    };
  },

  heat(page, state) {
    const rows = atRatio(page.heat, state).filter((row) => row.method === state.heat);
    return {
      rows, columns: [METHOD, ["h", "H", (v) => digits(v)], ["rc1", "RC1", (v) => digits(v)], ["val_acc", "val. acc., %", (v) => digits(v)], ["lr", "lr", (v) => digits(v)], ["tried", "rates tried"]],
      empty: "No structure of this method was run at this ratio.",
      description: `Best validation accuracy of ${state.heat} over H and RC1`,
      caption: `${state.heat} at R_C = ${ratioText(state.ratio)}: validation accuracy at the best learning rate tried. RC2 follows from the budget.`,
      spec: {
        encoding: { x: { field: "h", type: "ordinal", title: "H, steps from one reset to the next", axis: { labelAngle: 0 } }, y: { field: "rc1", type: "ordinal", sort: "descending", title: "RC1" } },
        layer: [
          { mark: { type: "rect", stroke: "var(--card)", strokeWidth: 2, cornerRadius: 4, ...DATA }, encoding: { color: { field: "val_acc", type: "quantitative", scale: { scheme: shades(state) }, legend: null } } },
          { mark: { type: "text", fontWeight: "bold", stroke: "var(--card)", strokeWidth: 3, strokeJoin: "round" }, encoding: { text: { field: "val_acc", format: ".1f" } } },
          { mark: { type: "text", fontWeight: "bold" }, encoding: { text: { field: "val_acc", format: ".1f" } } },
        ],
      },
    };
  },

  importance(page, state) {
    const rows = atRatio(page.importance, state);
    const most = rows.toSorted((a, b) => b.share - a.share).map((row) => row.knob);
    return {
      rows, columns: [["knob", "knob"], ["share", "share", (v) => digits(v, 2)], ["n", "runs"]], empty: "Too few runs to tell.",
      description: "Share of the variation between runs that each knob accounts for alone",
      caption: `Share of the ranks' variance between ${rows[0]?.n ?? 0} runs at R_C = ${ratioText(state.ratio)} that each knob accounts for alone (ε²); diverged runs rank last. Shares need not add up to 1.`,
      spec: {
        encoding: { y: { field: "knob", type: "nominal", sort: most, title: null, axis: { labelFontSize: 12, labelColor: "var(--ink)" } }, x: { field: "share", type: "quantitative", title: "share", scale: { domain: [0, 1] }, axis: { grid: true } } },
        layer: [{ mark: { type: "bar", fill: "var(--accent)", height: { band: 0.55 }, cornerRadiusEnd: 3, ...DATA } }, { mark: { type: "text", align: "left", dx: 5 }, encoding: { text: { field: "share", format: ".2f" } } }],
      },
    };
  },

  rungs(page) {
    const twin = page.rungs[0];
    const rows = page.rungs.flatMap((t) => ["virtual", "real"].flatMap((rung) => (t[rung].epoch ?? []).map((x, k) => ({ name: `${t.method} at R_C ${ratioText(t.ratio)}`, rung, x, y: t[rung].val_acc[k] }))));
    return {
      rows, columns: [["name", "configuration"], ["rung", "workers"], ["x", "epoch", (v) => digits(v)], ["y", "val. acc., %", (v) => digits(v)]], empty: "Nothing has finished on real workers.",
      description: "Validation accuracy of configurations on virtual and on real workers, same repeats",
      caption: [page.agreements.map((a) => `${a.below} and ${a.above}${a.ratio === null ? "" : ` at R_C = ${ratioText(a.ratio)}`} rank ${a.n} runs with τ = ${digits(a.tau, 2)}. `), "Line: virtual workers; rings: real ones, same repeats. ", page.rungs.map((t) => `${t.method} at R_C = ${ratioText(t.ratio)}, ${t.backend}, n = ${t.n}: test accuracy ${digits(t.test_acc)} % real, ${digits(t.virtual_test_acc)} % virtual; realised ratio ${digits(t.realised_ratio)} and ${digits(t.virtual_realised_ratio)}. `)],
      spec: {
        encoding: {
          x: xLinear("passes over the training data"), y: { field: "y", type: "quantitative", title: "validation accuracy, %", scale: { zero: false } },
          detail: { field: "name" },
        },
        layer: [
          { transform: [{ filter: "datum.rung == 'virtual'" }], mark: { type: "line", stroke: colour(twin?.method), ...DATA } },
          { transform: [{ filter: "datum.rung == 'real'" }], mark: { type: "point", filled: false, size: 90, strokeWidth: 2, stroke: "var(--ink)", ...DATA } },
        ],
      },
    };
  },

  steps(page, state) {
    const times = page.step_times;
    if (!times) return { rows: [], columns: [], empty: "One worker communicates with nobody." };
    const [c, r] = [state.compute, state.rate];
    const forms = times.forms.filter((form) => form.ratio === null || (form.ratio === state.ratio && !state.hidden.has(form.method)));
    const rows = forms.map((form) => ({ method: form.title, kind: "modelled", ms: form.step_ms[c][r], speedup: `${digits(form.speedup[c][r], 3)}×` }));
    const fastest = rows.toSorted((a, b) => a.ms - b.ms).map((row) => row.method);
    const measured = atRatio(times.measured, state).map((m) => ({ method: m.method, kind: "measured", ms: m.step_ms, comm: m.comm_ms, n: m.n }));
    return {
      rows: rows.concat(measured), height: 40 + 24 * rows.length,
      columns: [METHOD, ["kind", "figure"], ["ms", "a step", millisecondsText], ["speedup", "over DDP"], ["comm", "of it waiting", millisecondsText]],
      description: "Time of a step by method under the chosen link, modelled, and measured where it ran on real workers",
      caption: [tag("modelled"), ` as by cser-ray plan: ${times.n_params.toLocaleString("en")} parameters, ${times.workers} workers, ${times.backend}; constants from ${times.source}. `,
        measured.length ? "◆ measured on this study's real workers, on their own machine and link." : ""],
      spec: {
        encoding: { y: { field: "method", type: "nominal", title: null, sort: fastest, axis: { labelColor: "var(--ink)", labelFontSize: 12, labelLimit: 160 } }, x: { field: "ms", type: "quantitative", title: "milliseconds a step; × is the speed-up over DDP", axis: { grid: true, tickCount: 6 } } },
        layer: [
          { transform: [{ filter: "datum.kind == 'modelled'" }], mark: { type: "bar", fill: "var(--modelled-soft)", stroke: MODELLED, strokeDash: [4, 2], height: { band: 0.62 }, cornerRadiusEnd: 3, ...DATA } },
          { transform: [{ filter: "datum.kind == 'modelled'" }], mark: { type: "text", align: "left", dx: 6, fill: MODELLED }, encoding: { text: { field: "speedup" } } },
          { transform: [{ filter: "datum.kind == 'measured'" }], mark: { type: "point", shape: "diamond", size: 120, fill: "var(--ink)", ...DATA } },
          { data: { values: [{ ms: times.compute_ms[c] }] }, mark: { type: "rule", strokeDash: [2, 3] }, encoding: { y: null } },
        ],
      },
    };
  },

  cost(page, state) {
    const rows = visible(page.cost.methods, state).map((row) => ({ ...row, kind: row.rung === "virtual" ? "virtual" : "real" }));
    const [title, text] = state.spent === "bytes" ? ["bytes", bytesText] : ["worker-seconds", secondsText];
    const total = page.cost.total;
    return {
      rows, columns: [METHOD, ["kind", "workers"], ["worker_s", "worker-seconds", secondsText], ["bytes", "bytes", bytesText], ["trials", "trials"], ["runs", "runs"]],
      height: 60 + 22 * new Set(rows.map((row) => row.method)).size,
      description: `What each method cost the study in ${title}`,
      caption: `In all ${secondsText(total.worker_s)} of processes that trained and ${bytesText(total.bytes)} sent by all workers (virtual ones: would have sent), in ${total.trials} trials and ${total.runs} runs. Light: on real workers.`,
      spec: {
        encoding: { y: { field: "method", type: "nominal", sort: page.methods, title: null, axis: { labelColor: "var(--ink)", labelFontSize: 12 } }, x: { field: state.spent, type: "quantitative", title, axis: { grid: true, format: ".3~s", tickCount: 6 } } },
        layer: [{ mark: { type: "bar", height: { band: 0.62 }, cornerRadiusEnd: 3, ...DATA }, encoding: { color: byMethod(page.methods).color, opacity: { condition: { test: "datum.kind == 'real'", value: 0.5 }, value: 1 } } }],
      },
    };
  },
};

// ---- parts that several charts share

const shades = (state) => ({ name: "viridis", extent: state.dark ? [0.2, 1] : [0, 0.92] }); // both ends stand out from the card
const yPlace = { field: "place", type: "quantitative", axis: null, scale: { domain: [-0.02, 1.02] } };
const yAccuracy = { field: "mean", type: "quantitative", title: "test accuracy, %", scale: { zero: false } };
const xLinear = (title) => ({ field: "x", type: "quantitative", title, axis: { tickCount: 6 }, scale: { nice: false, zero: false, padding: 8 } });

const referenceRows = (page) => page.decision.references.filter((line) => isNumber(line.mean) && (line.floor || line.name === "sgd")).map((line) => ({ name: line.name === "sgd" ? "sgd" : "floor", level: line.mean }));
const referenceLines = (page) => [
  { data: { values: referenceRows(page) }, mark: { type: "rule", strokeDash: [5, 4], opacity: 0.8 }, encoding: { x: null, y: { field: "level", type: "quantitative", scale: { zero: false } } } },
  { data: { values: referenceRows(page) }, mark: { type: "text", align: "right", baseline: "bottom", dy: -3, fill: "var(--quiet)" }, encoding: { x: { value: "width" }, y: { field: "level", type: "quantitative" }, text: { field: "name" } } },
];
function floorText(page) {
  const names = page.decision.references.filter((line) => line.floor).map((line) => line.name);
  return names.length ? `Floor: ${names[0]}.` : "";
}

function tradeoffChart(points, onFront, field, title, page, encoding) {
  const x = { field, type: "quantitative", scale: { type: "log", nice: false, padding: 14 }, title, axis: { format: "~s", tickCount: 5 } };
  const compressed = onFront.filter((row) => row.ratio > 1);
  const named = compressed.filter((row, k) => compressed.findLastIndex((other) => other.ratio === row.ratio) === k); // one label a ratio
  return {
    rows: points,
    description: `Test accuracy against ${title}, with the Pareto front`,
    spec: {
      encoding: { x },
      layer: [
        ...referenceLines(page),
        { data: { values: onFront }, mark: { type: "line", interpolate: "step-after", stroke: "var(--ink)", strokeWidth: 1.2, opacity: 0.6 }, encoding: { y: yAccuracy } },
        { mark: { type: "rule", opacity: 0.6 }, encoding: { y: { field: "low", type: "quantitative", scale: { zero: false } }, y2: { field: "high" }, color: encoding.color } },
        { mark: { type: "point", size: 85, ...DATA }, encoding: { y: yAccuracy, ...encoding } },
        { data: { values: named }, mark: { type: "text", dy: -11, fontSize: 10.5, fill: "var(--quiet)" }, encoding: { y: yAccuracy, text: { field: "ratio" } } },
      ],
    },
  };
}

function secondsTradeoff(page, state) {
  const times = page.step_times;
  if (!times) return { rows: [], columns: [], empty: "One worker communicates with nobody." };
  const [c, r] = [state.compute, state.rate];
  const rows = times.forms.map((form) => ({ ...form, seconds: form.run_s[c][r] }));
  const onFront = times.fronts[c][r].map((place) => rows[place]);
  const encoding = { ...byMethod(page.methods), color: { value: MODELLED } };
  const chart = tradeoffChart(visible(rows, state).filter((row) => isNumber(row.mean)), onFront, "seconds", "seconds of a run", page, encoding);
  return {
    ...chart,
    columns: [["title", "method"], RATIO, ACCURACY, ["seconds", "a run", secondsText]],
    caption: [tag("modelled"), ` seconds of a run on a link of ${times.rate_texts[r]} with ${digits(times.compute_ms[c], 3)} ms of computing a step (set below, under Time of a step); accuracy as measured.`],
  };
}

function curveRows(page, state, names, over) {
  const curves = visible(page.curves, state).filter((curve) => curve.ratio === state.ratio || isReference(curve));
  return curves.flatMap((curve) => names.flatMap((shown) => {
    const every = Math.max(1, Math.round(curve[over].length / 6));
    return curve[over].map((x, k) => ({
      method: curve.method, n: curve.n, provisional: curve.provisional, dashed: isReference(curve), shown, x, y: curve[shown][k],
      low: curve[`${shown}_low`]?.[k] ?? null, high: curve[`${shown}_high`]?.[k] ?? null, marked: k % every === every - 1 || k === curve[over].length - 1,
    }));
  })).filter((row) => isNumber(row.x) && isNumber(row.y) && !(over === "bytes_sent" && row.x <= 0));
}

function curveSpec(page, xTitle, yTitle, { logX, logY, range }) {
  const methods = byMethod(page.methods);
  const x = logX ? { ...xLinear(xTitle), axis: { format: "~s", tickCount: 6 }, scale: { type: "log", nice: false, padding: 8 } } : xLinear(xTitle);
  const y = {
    type: "quantitative", title: yTitle, ...(logY ? { axis: { format: ".0e", grid: false } } : {}),
    scale: logY ? { type: "log" } : { zero: false, ...(range ? { domain: [range.low, range.high] } : {}) },
  };
  const dash = { condition: [{ test: "datum.provisional", value: [1, 4] }, { test: "datum.dashed", value: [6, 4] }], value: [1, 0] };
  return {
    encoding: { x, color: methods.color },
    layer: [
      { transform: [{ filter: "isValid(datum.low)" }], mark: { type: "area", opacity: 0.13, clip: true }, encoding: { y: { ...y, field: "low" }, y2: { field: "high" } } },
      { mark: { type: "line", clip: true, ...DATA }, encoding: { y: { ...y, field: "y" }, strokeDash: dash } },
      { transform: [{ filter: "datum.marked" }], mark: { type: "point", size: 48, clip: true, ...DATA }, encoding: { y: { ...y, field: "y" }, shape: methods.shape } },
    ],
  };
}
