"use strict";
// The configuration to take home: its settings and commands, to copy or download.

function drawBest(page, state) {
  const cell = pickedCell(page, state);
  const found = cell && page.best.find((b) => b.method === cell.method && b.ratio === cell.ratio);
  $("best-of").replaceChildren(
    ...[
      cell
        ? rich(
            `${cell.method} at R_C = ${ratioText(cell.ratio)}, as cser-ray best hands it over. ` +
              "Pick another cell of the table for its configuration.",
          )
        : "This method has no result at this ratio: pick a cell of the table.",
    ].flat(),
  );
  if (!found) return $("best-body").replaceChildren();
  if (found.why_not) return $("best-body").replaceChildren(h("p", {}, found.why_not));
  const block = (title, text, file) =>
    h(
      "div",
      {},
      h(
        "div",
        { class: "bar" },
        h("b", {}, title),
        h(
          "span",
          {},
          copyButton(text),
          " ",
          h("button", { type: "button", onclick: () => download(file, text) }, "Download"),
        ),
      ),
      h("pre", { tabindex: "0" }, text),
    );
  const name = `${cell.method}-${ratioText(cell.ratio)}`;
  return $("best-body").replaceChildren(
    block("Settings", found.settings, `${name}.yaml`),
    block("Commands", found.report, `${name}.txt`),
  );
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
