"use strict";
// What is picked. It stays in the address, so that a link or a reload shows the same.

const state = {
  ratio: null,
  method: null,
  hidden: new Set(),
  cost: "bytes",
  shown: "val_acc",
  over: "epoch",
  spent: "worker_s",
  heat: null,
  rate: 8,
  compute: null,
  query: "",
  status: "",
  sort: null,
  down: 1,
  shownRuns: 100,
  dark: false,
};

const KEPT = ["ratio", "method", "cost", "shown", "over", "spent", "heat", "rate", "compute", "query", "status"];
function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  for (const name of KEPT) {
    const value = kept.get(name);
    if (value !== null) state[name] = name === "ratio" || name === "rate" || name === "compute" ? Number(value) : value;
  }
  for (const method of (kept.get("hidden") ?? "").split(",").filter(Boolean)) state.hidden.add(method);
}
function remember() {
  const kept = new URLSearchParams(
    KEPT.filter((name) => state[name] !== null && state[name] !== "").map((name) => [name, state[name]]),
  );
  if (state.hidden.size) kept.set("hidden", [...state.hidden].join(","));
  history.replaceState(null, "", `#${kept}`);
}

// Picks what the data has, where what was picked before is not there (yet).
function settle(page) {
  const { decision, step_times: times } = page;
  const compared = decision?.cells.filter((cell) => !cell.reference) ?? [];
  const curveRatios = [
    ...new Set(page.curves?.map((curve) => curve.ratio).filter((ratio) => ratio !== 1 && ratio !== "inf")),
  ];
  page.ratios = decision?.ratios.length ? decision.ratios : curveRatios;
  page.methods = [
    ...new Set([...(decision?.cells.map((cell) => cell.method) ?? []), ...(page.curves?.map((c) => c.method) ?? [])]),
  ];
  if (!page.ratios.includes(state.ratio)) state.ratio = page.ratios[Math.floor((page.ratios.length - 1) / 2)] ?? null;
  if (!page.methods.includes(state.method) && decision) {
    const verdict = decision.verdicts.find((v) => v.ratio === state.ratio);
    state.method = verdict?.recommended ?? verdict?.best ?? compared[0]?.method ?? page.methods[0];
  }
  const heats = [...new Set(page.heat?.filter((row) => row.ratio === state.ratio).map((row) => row.method))];
  page.heats = heats;
  if (!heats.includes(state.heat)) state.heat = heats.includes(state.method) ? state.method : (heats[0] ?? null);
  if (times) {
    if (!(state.rate >= 0 && state.rate < times.rates.length)) state.rate = 8;
    if (!(state.compute >= 0 && state.compute < times.compute_ms.length) || state.compute === null) {
      state.compute = Math.max(0, times.compute_ms.indexOf(times.compute_measured ?? 10));
    }
  }
}
