"use strict";
// What the page is made of: elements, symbols of methods, numbers as people read them.
// Text only ever becomes text: what a trial is called, or how it failed, is somebody else's input.

const $ = (id) => document.getElementById(id);

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

// ---- methods: a colour and a shape each, so that neither alone must tell them apart

const SHAPES = {
  circle: "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z",
  square: "M-.88,-.88H.88V.88H-.88Z",
  up: "M0,-1.1L1.1,.85H-1.1Z",
  down: "M0,1.1L1.1,-.85H-1.1Z",
  diamond: "M0,-1.25L1.1,0L0,1.25L-1.1,0Z",
  cross: "M-.4,-1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4Z",
  left: "M-1.1,0L.85,-1.1V1.1Z",
  right: "M1.1,0L-.85,-1.1V1.1Z",
  bar: "M-1.2,-.4H1.2V.4H-1.2Z",
  star: "M0,-1.3L.36,-.4L1.24,-.4L.55,.2L.8,1.1L0,.55L-.8,1.1L-.55,.2L-1.24,-.4L-.36,-.4Z",
};
const OTHER = { colour: "other", shape: "star", silent: false, dense: false };
const known = (method) => page?.methods_known?.[method] ?? OTHER;
const colour = (method) => `var(--m-${known(method).colour})`;
const shape = (method) => SHAPES[known(method).shape] ?? SHAPES.star;

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const glyph = (method) =>
  svg(
    "svg",
    { class: "glyph", viewBox: "-1.4 -1.4 2.8 2.8", "aria-hidden": "true" },
    svg("path", { d: shape(method), fill: colour(method) }),
  );

// ---- numbers as people read them

const isNumber = (value) => typeof value === "number";
const ratioText = (ratio) => (ratio === "inf" ? "∞" : String(ratio));
const digits = (value, n = 4) => (value === "inf" ? "∞" : isNumber(value) ? String(Number(value.toPrecision(n))) : "–");
function scaled(value, units) {
  if (!isNumber(value)) return "–";
  const [size, unit] = units.find(([size]) => Math.abs(value) >= size) ?? units[units.length - 1];
  return `${Number((value / size).toPrecision(3))} ${unit}`;
}
const bytesText = (value) =>
  scaled(value, [
    [1e12, "TB"],
    [1e9, "GB"],
    [1e6, "MB"],
    [1e3, "kB"],
    [1, "B"],
  ]);
const secondsText = (value) =>
  scaled(value, [
    [86400, "d"],
    [3600, "h"],
    [60, "min"],
    [1, "s"],
    [1e-3, "ms"],
  ]);
const millisecondsText = (value) =>
  scaled(value, [
    [1000, "s"],
    [1, "ms"],
    [1e-3, "µs"],
  ]);
const plusMinus = (mean, std, n = 1) =>
  isNumber(mean) ? mean.toFixed(n) + (isNumber(std) ? ` ± ${std.toFixed(n)}` : "") : "–";

// R_C as the paper prints it: one piece, or several.
const rich = (text) =>
  typeof text === "string"
    ? text.split("R_C").flatMap((part, k) => (k ? ["R", h("sub", {}, "C"), part] : [part]))
    : [text];
