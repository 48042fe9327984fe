"use strict";
// One chart in its figure: drawn by Vega-Lite, its numbers as a table beside it, a tip under the pointer.

const FONT = 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
const CONFIG = {
  background: null,
  font: FONT,
  padding: { left: 2, right: 6, top: 6, bottom: 2 },
  view: { stroke: null },
  axis: {
    domain: false,
    ticks: false,
    gridColor: "var(--grid)",
    labelColor: "var(--quiet)",
    titleColor: "var(--quiet)",
    labelFontSize: 11,
    titleFontSize: 11.5,
    titleFontWeight: "normal",
    labelPadding: 6,
    titlePadding: 8,
    labelOverlap: "greedy",
  },
  axisX: { grid: false, domain: true, domainColor: "var(--line)" },
  axisY: { titleAnchor: "end", titleAngle: 0, titleAlign: "left", titleBaseline: "bottom", titleX: 0, titleY: -8 },
  line: { strokeWidth: 2, strokeJoin: "round", strokeCap: "round" },
  point: { filled: true, opacity: 1, size: 70 },
  rule: { stroke: "var(--quiet)" },
  text: { fill: "var(--ink)", fontSize: 11 },
  legend: { labelColor: "var(--quiet)", titleColor: "var(--quiet)", titleFontWeight: "normal", gradientLength: 120 },
};

// Colour and shape by method, for an encoding; a chart's own symbols stand in the toolbar.
const byMethod = (methods) => ({
  color: { field: "method", type: "nominal", legend: null, scale: { domain: methods, range: methods.map(colour) } },
  shape: { field: "method", type: "nominal", legend: null, scale: { domain: methods, range: methods.map(shape) } },
});

// `ast`: expressions are interpreted, never compiled to code, which the page's policy forbids.
const EMBED = {
  mode: "vega-lite",
  renderer: "svg",
  ast: true,
  actions: false,
  defaultStyle: false,
  logLevel: 1,
  config: CONFIG,
};

const views = new Map(); // figure id -> the Vega view in it

// A chart: { title, description, caption, rows, columns: [[field, title, text?], ...], spec, empty }
async function draw(figure, chart) {
  const holder = figure.querySelector(".chart") ?? figure.appendChild(h("div", { class: "chart" }));
  const caption = figure.querySelector("figcaption") ?? figure.appendChild(h("figcaption"));
  caption.replaceChildren(...[chart.caption ?? ""].flat(Infinity).flatMap(rich));
  numbers(figure, chart);
  if (!chart.rows.length) {
    views.get(figure.id)?.finalize();
    views.delete(figure.id);
    holder.replaceChildren(h("p", { class: "empty" }, chart.empty ?? "Nothing to draw yet."));
    return;
  }
  const fresh = h("div");
  const size = {
    width: Math.max(180, holder.clientWidth - 8),
    height: chart.height ?? 280,
    autosize: { type: "fit", contains: "padding" },
  };
  const spec = { ...size, description: chart.description, data: { values: chart.rows }, ...chart.spec };
  const { view } = await vegaEmbed(fresh, spec, {
    ...EMBED,
    tooltip: (_, event, item, value) => tip(event, value, chart),
  });
  views.get(figure.id)?.finalize();
  views.set(figure.id, view);
  holder.replaceChildren(fresh);
}

// The chart's numbers as a table, for whoever cannot see it, or wants to copy them.
function numbers(figure, chart) {
  let details = figure.querySelector("details.numbers");
  if (!details) {
    details = figure.appendChild(
      h("details", { class: "numbers" }, h("summary", {}, "Numbers"), h("div", { class: "scroll", tabindex: "0" })),
    );
    details.addEventListener("toggle", () => details.open && details.fill());
  }
  details.hidden = !chart.rows.length;
  details.fill = () => {
    const rows = (chart.numbers ?? chart.rows).slice(0, 500);
    const cells = (row) =>
      chart.columns.map(([field, , text], k) =>
        h(k ? "td" : "th", {}, text ? text(row[field], row) : String(row[field] ?? "–")),
      );
    details.querySelector(".scroll").replaceChildren(
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            chart.columns.map(([, title]) => h("th", { scope: "col" }, rich(title))),
          ),
        ),
        h(
          "tbody",
          {},
          rows.map((row) => h("tr", {}, cells(row))),
        ),
      ),
    );
  };
  if (details.open) details.fill();
}

function tip(event, value, chart) {
  const box = $("tooltip");
  const row = value && typeof value === "object" ? value : null;
  if (!row || !event) {
    box.hidden = true;
    return;
  }
  const shown = chart.columns.filter(([field]) => row[field] !== undefined && row[field] !== null);
  const [first, ...others] = shown.map(([field, title, text]) => [
    title,
    text ? text(row[field], row) : String(row[field]),
  ]);
  if (!first) return;
  box.replaceChildren(
    h("b", {}, first[1]),
    h(
      "dl",
      {},
      others.map(([title, text]) => [h("dt", {}, rich(title)), h("dd", {}, text)]),
    ),
  );
  box.hidden = false;
  const { innerWidth, innerHeight } = window;
  box.style.left = `${Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8)}px`;
  const [above, below] = [event.clientY - box.offsetHeight - 10, event.clientY + 18];
  box.style.top = `${below + box.offsetHeight > innerHeight ? above : below}px`;
}
