"use strict";
// The page: when what is drawn, its controls, and news from a running study.

const live = document.querySelector('meta[name="live"]')?.content;
let page = null;

// ---- drawing: tables at once, charts when they come near the window

const figures = [...document.querySelectorAll("figure")];
const near = new Set();
const stale = new Set();
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) isIntersecting ? near.add(target) : near.delete(target);
    drawCharts();
  },
  { rootMargin: "300px" },
);

function drawCharts() {
  if (!page?.decision) return;
  for (const figure of figures.filter((f) => near.has(f) && stale.has(f))) {
    stale.delete(figure);
    draw(figure, CHARTS[figure.id](page, state));
  }
}

function redraw(ids) {
  for (const figure of figures) if (!ids || ids.includes(figure.id)) stale.add(figure);
  drawCharts();
}

function pick(cell) {
  const other = cell.ratio !== state.ratio;
  Object.assign(state, { ratio: cell.ratio, method: cell.method });
  if (other) settle(page);
  other ? drawAll() : (keepingFocus(() => drawDecision()), redraw(["workers"]));
  remember();
}

function drawDecision() {
  drawVerdict(page, state);
  drawTable(page, state, pick);
  drawPicked(page, state);
  drawBest(page, state);
}

function nameMetric() {
  const { name, axis } = metric();
  const texts = { "metric-name": name, "metric-axis": axis, "metric-title": name[0].toUpperCase() + name.slice(1) };
  for (const [kind, text] of Object.entries(texts))
    for (const element of document.getElementsByClassName(kind)) element.textContent = text;
}

function drawAll() {
  keepingFocus(() => {
    document.title = `${page.study.name} · cser-ray`;
    $("name").textContent = page.study.name;
    drawCounts(page);
    drawRuns(page, state, sortBy);
    $("heading").textContent = page.decision?.heading ?? "";
    $("why-not").hidden = !page.why_not;
    $("why-not").textContent = page.why_not ? `Nothing to compare yet: ${page.why_not}.` : "";
    for (const id of ["decision", "more", "toolbar", "notes"]) $(id).hidden = !page.decision;
    if (!page.decision) return;
    nameMetric();
    drawToolbar();
    drawDecision();
    drawNotes(page);
  });
  redraw();
}

function keepingFocus(change) {
  const id = document.activeElement?.id;
  change();
  if (id && document.activeElement?.id !== id) $(id)?.focus({ preventScroll: true });
}

function choice(name, value, label, checked, change, type = "radio") {
  return h(
    "label",
    {},
    h("input", {
      type,
      name,
      value,
      id: `${name}-${value}`,
      checked,
      onchange: (event) => change(event.target.checked),
    }),
    h("span", {}, label),
  );
}

function drawToolbar() {
  const legendOf = (id) => $(id).querySelector("legend");
  $("ratios").replaceChildren(
    legendOf("ratios"),
    ...page.ratios.map((ratio) =>
      choice("ratio", ratio, ratioText(ratio), ratio === state.ratio, () => {
        state.ratio = ratio;
        settle(page);
        remember();
        drawAll();
      }),
    ),
  );
  $("methods").replaceChildren(
    legendOf("methods"),
    ...page.methods.map((method) =>
      choice(
        "method",
        method,
        [glyph(method), method].flat(),
        !state.hidden.has(method),
        (on) => {
          on ? state.hidden.delete(method) : state.hidden.add(method);
          remember();
          drawAll();
        },
        "checkbox",
      ),
    ),
  );
  $("heat-methods").replaceChildren(
    legendOf("heat-methods"),
    ...page.heats.map((method) =>
      choice("heat", method, method, method === state.heat, () => {
        state.heat = method;
        remember();
        redraw(["heat"]);
      }),
    ),
  );
  const times = page.step_times;
  if (times) {
    $("rate").max = times.rates.length - 1;
    $("rate").value = state.rate;
    $("rate").setAttribute("aria-valuetext", times.rate_texts[state.rate]);
    $("rate-text").textContent = times.rate_texts[state.rate];
    $("compute").replaceChildren(
      ...times.compute_ms.map((ms, k) =>
        h(
          "option",
          { value: k, selected: k === state.compute },
          millisecondsText(ms) + (ms === times.compute_measured ? " (measured)" : ""),
        ),
      ),
    );
  }
  for (const input of document.querySelectorAll("[data-state] input[type=radio]")) {
    const { state: name } = input.closest("[data-state]").dataset;
    input.checked = state[name] === input.value;
  }
  const statuses = [...new Set(page.rows.map((row) => row.shownStatus))].sort();
  $("status").replaceChildren(
    ...["", ...statuses].map((status) =>
      h("option", { value: status, selected: status === state.status }, status.toLowerCase() || "all"),
    ),
  );
  $("query").value = state.query;
}

function sortBy(name) {
  state.down = state.sort === name ? -state.down : 1;
  state.sort = name;
  keepingFocus(() => drawRuns(page, state, sortBy));
}

// ---- controls

const SHOWN_BY = { cost: ["tradeoff"], shown: ["curves"], over: ["curves"], spent: ["cost"], heat: ["heat"] };
for (const group of document.querySelectorAll("[data-state]")) {
  group.addEventListener("change", (event) => {
    state[group.dataset.state] = event.target.value;
    remember();
    redraw(SHOWN_BY[group.dataset.state]);
  });
}
function linkChanged() {
  state.rate = Number($("rate").value);
  state.compute = Number($("compute").value);
  $("rate-text").textContent = page.step_times.rate_texts[state.rate];
  $("rate").setAttribute("aria-valuetext", page.step_times.rate_texts[state.rate]);
  remember();
  redraw(["steps", "tradeoff"]);
}
$("rate").addEventListener("input", linkChanged);
$("compute").addEventListener("change", linkChanged);
$("status").addEventListener("change", () => {
  state.status = $("status").value;
  remember();
  drawRuns(page, state, sortBy);
});
$("query").addEventListener("input", () => {
  state.query = $("query").value;
  remember();
  drawRuns(page, state, sortBy);
});
$("runs-more").addEventListener("click", () => {
  state.shownRuns += 200;
  drawRuns(page, state, sortBy);
});

const dark = matchMedia("(prefers-color-scheme: dark)");
function useTheme(theme) {
  document.documentElement.dataset.theme = theme;
  state.dark = theme === "dark";
  $("theme").textContent = state.dark ? "Light" : "Dark";
  redraw(["parallel", "heat"]);
}
$("theme").addEventListener("click", () => useTheme(state.dark ? "light" : "dark"));
dark.addEventListener("change", () => useTheme(dark.matches ? "dark" : "light"));
useTheme(dark.matches ? "dark" : "light");

let width = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth !== width) {
    width = window.innerWidth;
    redraw();
  }
});
window.addEventListener("keydown", (event) => {
  if (event.key === "Escape") $("tooltip").hidden = true;
});

// ---- data

function show(data) {
  page = data;
  page.rows = runRows(page);
  settle(page);
  drawAll();
}

const POLL_MS = 1000;
let seen = null;
async function follow() {
  const start = performance.now();
  try {
    const answer = await fetch(live, { cache: "no-cache" });
    if (!answer.ok) throw new Error(await answer.text());
    const tag = answer.headers.get("ETag");
    if (tag === null || tag !== seen) show(await answer.json());
    seen = tag;
    say(page.study.counts.RUNNING ? "live" : "live, nothing is running");
  } catch (error) {
    say(`not reached, trying again (${error.message})`);
  }
  setTimeout(follow, Math.max(POLL_MS, performance.now() - start)); // a slow server is asked less often
}
function say(text) {
  if ($("live").textContent !== text) $("live").textContent = text; // a screen reader reads what changes
}

recall();
figures.forEach((figure) => watcher.observe(figure));
if (live) follow();
else {
  $("live").textContent = "report";
  show(JSON.parse($("data").textContent));
}
