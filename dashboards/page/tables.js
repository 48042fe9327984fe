"use strict";
// What is no chart: the verdict, the table of methods and ratios, the configuration to take home, the runs, the notes.

function drawVerdict(page, state) {
  const { advice, verdicts, problems } = page.decision;
  const line = (v) => h("p", { class: v.ratio === state.ratio ? "lead" : "" }, rich(v.text));
  const others = verdicts.filter((v) => v.ratio !== state.ratio);
  $("verdict").replaceChildren(
    ...advice.map((text) => h("p", { class: "advice" }, text)),
    ...problems.slice(0, 1).map(() => h("p", { class: "advice" }, `No winner is marked: the treatment was not equal (${problems.length} problem${problems.length > 1 ? "s" : ""}, in the notes below).`)),
    ...verdicts.filter((v) => v.ratio === state.ratio).map(line),
    ...(others.length ? [h("details", { id: "other-verdicts", open: $("other-verdicts")?.open }, h("summary", {}, `The other ${others.length === 1 ? "ratio" : `${others.length} ratios`}`), others.map(line))] : [])
  );
}

function drawTable(page, state, pick) {
  const { ratios, cells, references, legend, shows_value } = page.decision;
  const methods = page.decision.methods.filter((method) => !state.hidden.has(method));
  const at = (ratio, method) => cells.find((cell) => cell.ratio === ratio && cell.method === method);
  const head = h("tr", {}, h("th", { scope: "col" }, "R", h("sub", {}, "C")), methods.map((method) => h("th", { scope: "col" }, glyph(method), method)));
  const rows = ratios.map((ratio) =>
    h("tr", { class: ratio === state.ratio ? "current" : "" }, h("th", { scope: "row" }, ratioText(ratio)), methods.map((method) => h("td", {}, entry(at(ratio, method), state, shows_value, pick))))
  );
  $("table").replaceChildren(h("thead", {}, head), h("tbody", {}, rows));
  const lines = references.filter((line) => line.floor || !line.name.startsWith("no-sync"));
  $("references").replaceChildren(...lines.flatMap((line, k) => [k ? " · " : "", h("b", {}, line.floor ? `floor (${line.name})` : line.name), ` ${line.text}`]));
  $("marks").replaceChildren(
    "★ winner: a paired test supports it · ", h("u", {}, "underlined"), ": what the verdict recommends · bar and number: value retained, 0 is not worth a cable and 1 is free compression",
    shows_value ? "" : " (in parentheses: this task cannot show it)", ...legend.filter((text) => !text.startsWith("*") && !text.startsWith("good")).map((text) => ` · ${text}`)
  );
}

function entry(cell, state, showsValue, pick) {
  if (!cell) return h("span", { class: "quiet" }, "–");
  const picked = cell.ratio === state.ratio && cell.method === state.method;
  const classes = ["cell", cell.winner && "winner", cell.recommended && "recommended", cell.under_floor && "floor"].filter(Boolean).join(" ");
  const marks = (cell.lr_edge ? "†" : "") + (cell.under_floor && isNumber(cell.mean) ? "‡" : "");
  const badges = [
    cell.diverged && isNumber(cell.mean) ? h("span", { class: "badge" }, `${cell.diverged}/${cell.n} diverged`) : null,
    cell.n < cell.planned ? h("span", { class: "badge" }, `${cell.n}/${cell.planned} repeats`) : null,
  ];
  const said = `${cell.method} at R_C ${ratioText(cell.ratio)}: ${cell.text}, ${cell.n} repeats${cell.winner ? ", winner" : ""}${cell.recommended ? ", recommended" : ""}${cell.under_floor ? ", under the floor" : ""}, value retained ${cell.value}`;
  const body = isNumber(cell.mean)
    ? [h("span", { class: "mean" }, cell.mean.toFixed(1)), isNumber(cell.std) ? h("span", { class: "std" }, ` ±${cell.std.toFixed(1).replace(/^0/, "")}`) : null, marks ? h("sup", {}, marks) : null]
    : [h("span", { class: "lost" }, cell.text)];
  return h(
    "button", { type: "button", id: `cell-${cell.method}-${cell.ratio}`, class: classes, "aria-pressed": String(picked), "aria-label": said, onclick: () => pick(cell) },
    body, h("small", {}, badges, isNumber(cell.value_retained) ? [valueBar(cell, showsValue), cell.value] : null)
  );
}

const valueBar = (cell, showsValue) =>
  h("span", { class: "value", "aria-hidden": "true" }, svg("svg", { viewBox: "0 0 100 10", width: 38, height: 4, preserveAspectRatio: "none" },
    svg("rect", { width: Math.max(0, Math.min(100, cell.value_retained * 100)), height: 10, fill: showsValue ? "var(--good)" : "var(--quiet)" })));

// ---- the picked cell

const pickedCell = (page, state) => page.decision.cells.find((c) => c.method === state.method && (c.ratio === state.ratio || c.reference));

function drawPicked(page, state) {
  const cell = pickedCell(page, state);
  $("picked").hidden = !cell;
  if (!cell) return;
  $("picked-name").replaceChildren(glyph(cell.method), ` ${cell.method} at `, ...rich(`R_C = ${ratioText(cell.ratio)}`));
  $("picked-facts").replaceChildren(...cell.facts.flatMap(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text))));
}

// ---- the configuration to take home

function drawBest(page, state) {
  const cell = pickedCell(page, state);
  const found = cell && page.best.find((b) => b.method === cell.method && b.ratio === cell.ratio);
  $("best-of").replaceChildren(...[cell ? rich(`${cell.method} at R_C = ${ratioText(cell.ratio)}, as cser-ray best hands it over. Pick another cell of the table for its configuration.`) : "This method has no result at this ratio: pick a cell of the table."].flat());
  if (!found) return $("best-body").replaceChildren();
  if (found.why_not) return $("best-body").replaceChildren(h("p", {}, found.why_not));
  const block = (title, text, file) =>
    h("div", {}, h("div", { class: "bar" }, h("b", {}, title), h("span", {}, copyButton(text), " ", h("button", { type: "button", onclick: () => download(file, text) }, "Download"))), h("pre", { tabindex: "0" }, text));
  const name = `${cell.method}-${ratioText(cell.ratio)}`;
  return $("best-body").replaceChildren(block("Settings", found.settings, `${name}.yaml`), block("Commands", found.report, `${name}.txt`));
}

function copyButton(text) {
  const button = h("button", { type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text)) ? "Copied" : "Select and copy by hand";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.body.appendChild(h("textarea", { class: "hidden" })); // where there is no clipboard permission
    area.value = text;
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

// ---- the runs

const COLUMNS = [
  ["run_id", "run", "text"], ["stage", "stage", "text"], ["rung", "workers", "text"], ["method", "method", "text"], ["ratio", "R_C", ratioText],
  ["reset_interval", "H", digits], ["reset_ratio", "RC1", digits], ["gradient_ratio", "RC2", digits], ["lr", "lr", digits], ["repeat", "repeat", digits],
  ["status", "status", "status"], ["steps_done", "progress", "progress"], ["val_acc", "val. acc.", (v) => (isNumber(v) ? v.toFixed(1) : "–")],
  ["val_loss", "val. loss", (v) => digits(v, 4)], ["wall_s", "time", secondsText], ["bytes_sent", "sent", bytesText], ["error", "error", "error"],
];
const SEARCHED = { method: "method", h: "reset_interval", rc1: "reset_ratio", rc2: "gradient_ratio", lr: "lr", rc: "ratio", r: "repeat", stage: "stage" };

function runRows(page) {
  const columns = page.trials;
  return columns.run_id.map((_, k) => {
    const row = Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[k]]));
    return { ...row, rung: row.rung === "virtual" ? "virtual" : "real", shownStatus: row.diverged ? "diverged" : row.status };
  });
}

function matches(row, query, status) {
  if (status && row.shownStatus !== status) return false;
  return query.toLowerCase().split(/\s+/).filter(Boolean).every((word) => {
    const [key, value] = word.split("=");
    if (value !== undefined && SEARCHED[key]) return String(row[SEARCHED[key]]) === value;
    return [row.run_id, row.method, row.stage, row.rung, row.shownStatus, row.error].some((text) => text?.toLowerCase().includes(word));
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
  if (state.sort) rows.sort((a, b) => (a[state.sort] === null || b[state.sort] === null ? compared(a[state.sort], b[state.sort]) : state.down * compared(a[state.sort], b[state.sort])));
  const shown = rows.slice(0, state.shownRuns);
  const hasErrors = all.some((row) => row.error);
  const columns = COLUMNS.filter(([name]) => name !== "error" || hasErrors);
  const head = columns.map(([name, title, kind]) =>
    h("th", { scope: "col", class: kind === "text" || kind === "status" || kind === "error" ? "text" : "", "aria-sort": state.sort === name ? (state.down < 0 ? "descending" : "ascending") : "none" },
      h("button", { type: "button", id: `sort-${name}`, onclick: () => sortBy(name) }, rich(title), state.sort === name ? (state.down < 0 ? " ↓" : " ↑") : ""))
  );
  $("runs-table").replaceChildren(h("thead", {}, h("tr", {}, head)), h("tbody", {}, shown.map((row) => h("tr", {}, columns.map(([name, , kind]) => runCell(row, name, kind))))));
  $("runs-shown").textContent = `${rows.length} of ${all.length} runs${shown.length < rows.length ? `, the first ${shown.length} shown` : ""}`;
  $("runs-more").hidden = shown.length >= rows.length;
}

function runCell(row, name, kind) {
  const value = row[name];
  if (kind === "text") return h("td", { class: "text" }, name === "method" ? [glyph(row.method), " "] : null, value ?? "–");
  if (kind === "status") return h("td", { class: "text" }, h("span", { class: `pill ${row.shownStatus}` }, row.shownStatus.toLowerCase()));
  if (kind === "progress") return h("td", {}, h("progress", { max: row.steps || 1, value: row.steps_done ?? 0, "aria-label": "steps done" }), ` ${digits(row.steps_done ?? 0, 6)}`);
  if (kind === "error") return h("td", { class: "text error" }, value ? errorText(value) : "");
  return h("td", {}, kind(value));
}

function errorText(text) {
  const lines = text.trim().split("\n");
  return lines.length === 1 ? text : h("details", {}, h("summary", {}, lines[lines.length - 1]), h("pre", { tabindex: "0" }, text));
}

// ---- what remains to be said

function drawNotes(page) {
  const { notes, problems } = page.decision;
  const list = (title, texts) => (texts.length ? [h("h2", {}, title), h("ul", {}, texts.map((text) => h("li", {}, text)))] : []);
  $("notes").replaceChildren(...list("Not equal between methods, so no winner is marked", problems), ...list("Notes", notes));
  $("notes").hidden = !notes.length && !problems.length;
}

function drawCounts(page) {
  const { counts, warnings, at, git_sha } = page.study;
  const shown = [["RUNNING", "running"], ["stale", "stale"], ["ERROR", "failed"], ["PENDING", "pending"], ["STOPPED", "stopped"], ["FINISHED", "finished"], ["diverged", "diverged"]];
  $("counts").replaceChildren(...shown.filter(([name]) => counts[name]).map(([name, text]) => h("li", { class: `pill ${name}` }, `${counts[name]} ${text}`)));
  $("warnings").replaceChildren(...warnings.map((text) => h("p", {}, text)));
  $("made").textContent = `Data of ${at.replace("T", " ").replace("+00:00", " UTC")}${git_sha ? `, commit ${git_sha.slice(0, 10)}` : ""}. What each number means: the section “The page” of cser-ray's guide.`;
}
