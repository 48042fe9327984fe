"use strict";
// The decision: the verdict, the table of methods and ratios, the picked cell, the notes.

function drawVerdict(page, state) {
  const { advice, verdicts, problems } = page.decision;
  const line = (v) => h("p", { class: v.ratio === state.ratio ? "lead" : "" }, rich(v.text));
  const others = verdicts.filter((v) => v.ratio !== state.ratio);
  $("verdict").replaceChildren(
    ...advice.map((text) => h("p", { class: "advice" }, text)),
    ...problems
      .slice(0, 1)
      .map(() =>
        h(
          "p",
          { class: "advice" },
          `No winner is marked: the treatment was not equal (${problems.length} in the notes below).`,
        ),
      ),
    ...verdicts.filter((v) => v.ratio === state.ratio).map(line),
    ...(others.length
      ? [
          h(
            "details",
            { id: "other-verdicts", open: $("other-verdicts")?.open },
            h("summary", {}, `The other ${others.length === 1 ? "ratio" : `${others.length} ratios`}`),
            others.map(line),
          ),
        ]
      : []),
  );
}

function drawTable(page, state, pick) {
  const { ratios, cells, references, legend, shows_value } = page.decision;
  const methods = page.decision.methods.filter((method) => !state.hidden.has(method));
  const at = (ratio, method) => cells.find((cell) => cell.ratio === ratio && cell.method === method);
  const head = h(
    "tr",
    {},
    h("th", { scope: "col" }, "R", h("sub", {}, "C")),
    methods.map((method) => h("th", { scope: "col" }, glyph(method), method)),
  );
  const rows = ratios.map((ratio) =>
    h(
      "tr",
      { class: ratio === state.ratio ? "current" : "" },
      h("th", { scope: "row" }, ratioText(ratio)),
      methods.map((method) => h("td", {}, entry(at(ratio, method), state, shows_value, pick))),
    ),
  );
  $("table").replaceChildren(h("thead", {}, head), h("tbody", {}, rows));
  const lines = references.filter((line) => line.floor || !line.silent);
  $("references").replaceChildren(
    ...lines.flatMap((line, k) => [
      k ? " · " : "",
      h("b", {}, line.floor ? `floor (${line.name})` : line.name),
      ` ${line.text}`,
    ]),
  );
  $("marks").replaceChildren(
    "★ winner: a paired test supports it · ",
    h("u", {}, "underlined"),
    ": what the verdict recommends · bar and number: value retained, 0 is not worth a cable and 1 is free compression",
    shows_value ? "" : " (in parentheses: this task cannot show it)",
    ...legend.filter((text) => !text.startsWith("*") && !text.startsWith("good")).map((text) => ` · ${text}`),
  );
}

function entry(cell, state, showsValue, pick) {
  if (!cell) return h("span", { class: "quiet" }, "–");
  const picked = cell.ratio === state.ratio && cell.method === state.method;
  const classes = ["cell", cell.winner && "winner", cell.recommended && "recommended", cell.under_floor && "floor"]
    .filter(Boolean)
    .join(" ");
  const marks = (cell.lr_edge ? "†" : "") + (cell.under_floor && isNumber(cell.mean) ? "‡" : "");
  const badges = [
    cell.diverged && isNumber(cell.mean) ? h("span", { class: "badge" }, `${cell.diverged}/${cell.n} diverged`) : null,
    cell.n < cell.planned ? h("span", { class: "badge" }, `${cell.n}/${cell.planned} repeats`) : null,
  ];
  const marked = [cell.winner && "winner", cell.recommended && "recommended", cell.under_floor && "under the floor"];
  const said = [
    `${cell.method} at R_C ${ratioText(cell.ratio)}: ${cell.text}`,
    `${cell.n} repeats`,
    ...marked.filter(Boolean),
    `value retained ${cell.value}`,
  ].join(", ");
  const body = isNumber(cell.mean)
    ? [
        h("span", { class: "mean" }, cell.mean.toFixed(1)),
        isNumber(cell.std) ? h("span", { class: "std" }, ` ±${cell.std.toFixed(1).replace(/^0/, "")}`) : null,
        marks ? h("sup", {}, marks) : null,
      ]
    : [h("span", { class: "lost" }, cell.text)];
  return h(
    "button",
    {
      type: "button",
      id: `cell-${cell.method}-${cell.ratio}`,
      class: classes,
      "aria-pressed": String(picked),
      "aria-label": said,
      onclick: () => pick(cell),
    },
    body,
    h("small", {}, badges, isNumber(cell.value_retained) ? [valueBar(cell, showsValue), cell.value] : null),
  );
}

const valueBar = (cell, showsValue) =>
  h(
    "span",
    { class: "value", "aria-hidden": "true" },
    svg(
      "svg",
      { viewBox: "0 0 100 10", width: 38, height: 4, preserveAspectRatio: "none" },
      svg("rect", {
        width: Math.max(0, Math.min(100, cell.value_retained * 100)),
        height: 10,
        fill: showsValue ? "var(--good)" : "var(--quiet)",
      }),
    ),
  );

// ---- the picked cell

const pickedCell = (page, state) =>
  page.decision.cells.find((c) => c.method === state.method && (c.ratio === state.ratio || c.reference));

function drawPicked(page, state) {
  const cell = pickedCell(page, state);
  $("picked").hidden = !cell;
  if (!cell) return;
  $("picked-name").replaceChildren(
    glyph(cell.method),
    ` ${cell.method} at `,
    ...rich(`R_C = ${ratioText(cell.ratio)}`),
  );
  $("picked-facts").replaceChildren(
    ...cell.facts.flatMap(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text))),
  );
}

// ---- what remains to be said

function drawNotes(page) {
  const { notes, problems } = page.decision;
  const list = (title, texts) =>
    texts.length
      ? [
          h("h2", {}, title),
          h(
            "ul",
            {},
            texts.map((text) => h("li", {}, text)),
          ),
        ]
      : [];
  $("notes").replaceChildren(
    ...list("Not equal between methods, so no winner is marked", problems),
    ...list("Notes", notes),
  );
  $("notes").hidden = !notes.length && !problems.length;
}

function drawCounts(page) {
  const { counts, warnings, at, git_sha } = page.study;
  const shown = [
    ["RUNNING", "running"],
    ["stale", "stale"],
    ["ERROR", "failed"],
    ["PENDING", "pending"],
    ["STOPPED", "stopped"],
    ["FINISHED", "finished"],
    ["diverged", "diverged"],
  ];
  $("counts").replaceChildren(
    ...shown
      .filter(([name]) => counts[name])
      .map(([name, text]) => h("li", { class: `pill ${name}` }, `${counts[name]} ${text}`)),
  );
  $("warnings").replaceChildren(...warnings.map((text) => h("p", {}, text)));
  $("made").textContent =
    `Data of ${at.replace("T", " ").replace("+00:00", " UTC")}${git_sha ? `, commit ${git_sha.slice(0, 10)}` : ""}. ` +
    "What each number means: the section “The page” of cser-ray's docs/decide.md.";
}
