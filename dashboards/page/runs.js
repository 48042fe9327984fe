"use strict";
// The table of runs: filtered, sorted, a hundred at a time.

const COLUMNS = [
  ["run_id", "run", "text"],
  ["stage", "stage", "text"],
  ["rung", "workers", "text"],
  ["method", "method", "text"],
  ["ratio", "R_C", ratioText],
  ["reset_interval", "H", digits],
  ["reset_ratio", "RC1", digits],
  ["gradient_ratio", "RC2", digits],
  ["lr", "lr", digits],
  ["repeat", "repeat", digits],
  ["status", "status", "status"],
  ["steps_done", "progress", "progress"],
  ["val_acc", "val. acc.", (v) => (!isNumber(v) ? "–" : metric().unit === "%" ? v.toFixed(1) : digits(v))],
  ["val_loss", "val. loss", (v) => digits(v, 4)],
  ["wall_s", "time", secondsText],
  ["bytes_sent", "sent", bytesText],
  ["error", "error", "error"],
];
const SEARCHED = {
  method: "method",
  h: "reset_interval",
  rc1: "reset_ratio",
  rc2: "gradient_ratio",
  lr: "lr",
  rc: "ratio",
  r: "repeat",
  stage: "stage",
};

function runRows(page) {
  const columns = page.trials;
  return columns.run_id.map((_, k) => {
    const row = Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[k]]));
    return {
      ...row,
      rung: row.rung === "virtual" ? "virtual" : "real",
      shownStatus: row.diverged ? "diverged" : row.status,
    };
  });
}

function matches(row, query, status) {
  if (status && row.shownStatus !== status) return false;
  return query
    .toLowerCase()
    .split(/\s+/)
    .filter(Boolean)
    .every((word) => {
      const [key, value] = word.split("=");
      if (value !== undefined && SEARCHED[key]) return String(row[SEARCHED[key]]) === value;
      return [row.run_id, row.method, row.stage, row.rung, row.shownStatus, row.error].some((text) =>
        text?.toLowerCase().includes(word),
      );
    });
}

const order = (value) => (value === "inf" ? Infinity : value);
function compared(a, b) {
  const [x, y] = [order(a), order(b)];
  if (x === null || y === null) return (x === null) - (y === null);
  return isNumber(x) && isNumber(y) ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
}

function drawRuns(page, state, sortBy) {
  const all = page.rows;
  const rows = all.filter((row) => matches(row, state.query, state.status) && !state.hidden.has(row.method));
  if (state.sort)
    rows.sort((a, b) =>
      a[state.sort] === null || b[state.sort] === null
        ? compared(a[state.sort], b[state.sort])
        : state.down * compared(a[state.sort], b[state.sort]),
    );
  const shown = rows.slice(0, state.shownRuns);
  const hasErrors = all.some((row) => row.error);
  const columns = COLUMNS.filter(([name]) => name !== "error" || hasErrors);
  const head = columns.map(([name, title, kind]) =>
    h(
      "th",
      {
        scope: "col",
        class: kind === "text" || kind === "status" || kind === "error" ? "text" : "",
        "aria-sort": state.sort === name ? (state.down < 0 ? "descending" : "ascending") : "none",
      },
      h(
        "button",
        { type: "button", id: `sort-${name}`, onclick: () => sortBy(name) },
        rich(name === "val_acc" && metric().name !== "accuracy" ? `val. ${metric().name}` : title),
        state.sort === name ? (state.down < 0 ? " ↓" : " ↑") : "",
      ),
    ),
  );
  $("runs-table").replaceChildren(
    h("thead", {}, h("tr", {}, head)),
    h(
      "tbody",
      {},
      shown.map((row) =>
        h(
          "tr",
          {},
          columns.map(([name, , kind]) => runCell(row, name, kind)),
        ),
      ),
    ),
  );
  $("runs-shown").textContent =
    `${rows.length} of ${all.length} runs${shown.length < rows.length ? `, the first ${shown.length} shown` : ""}`;
  $("runs-more").hidden = shown.length >= rows.length;
}

function runCell(row, name, kind) {
  const value = row[name];
  if (kind === "text")
    return h("td", { class: "text" }, name === "method" ? [glyph(row.method), " "] : null, value ?? "–");
  if (kind === "status")
    return h("td", { class: "text" }, h("span", { class: `pill ${row.shownStatus}` }, row.shownStatus.toLowerCase()));
  if (kind === "progress")
    return h(
      "td",
      {},
      h("progress", { max: row.steps || 1, value: row.steps_done ?? 0, "aria-label": "steps done" }),
      ` ${digits(row.steps_done ?? 0, 6)}`,
    );
  if (kind === "error") return h("td", { class: "text error" }, value ? errorText(value) : "");
  return h("td", {}, kind(value));
}

function errorText(text) {
  const lines = text.trim().split("\n");
  return lines.length === 1
    ? text
    : h("details", {}, h("summary", {}, lines[lines.length - 1]), h("pre", { tabindex: "0" }, text));
}
