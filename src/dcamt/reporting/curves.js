"use strict";
// Curves of a training, drawn as SVG, with the values under the pointer. `drawCurves` takes what
// dcamt.reporting.curves.curve_data returns and may be called again with more.

const SVG = "http://www.w3.org/2000/svg";
const CHART = { width: 300, height: 150, left: 40, right: 6, top: 8, bottom: 20 };

function svg(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) found.push(v);
  return found;
}

function shortNumber(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1);
  return String(Number(value.toPrecision(4)));
}

function chart(curve) {
  const figure = document.createElement("figure");
  figure.className = "chart";
  const head = document.createElement("figcaption");
  head.className = "name";
  const name = document.createElement("span");
  name.textContent = curve.title;
  const value = document.createElement("span");
  value.className = "value";
  head.append(name, value);

  const { width, height, left, right, top, bottom } = CHART;
  const x0 = curve.x[0], x1 = Math.max(curve.x[curve.x.length - 1], x0 + 1);
  const [y0, y1] = curve.range;
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const py = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - top - bottom);
  const clipped = (y) => Math.min(Math.max(py(y), top), height - bottom);
  const path = (xs, ys) =>
    xs.map((x, i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${clipped(ys[i]).toFixed(1)}`).join("");

  const last = curve.y[curve.y.length - 1];
  const drawing = svg("svg", {
    viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0,
    "aria-label": `${curve.title}: ${shortNumber(last)} at iteration ${curve.x[curve.x.length - 1]}`,
  });
  for (const y of ticks(y0, y1, 4)) {
    drawing.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: py(y), y2: py(y) }));
    drawing.append(svg("text", { x: left - 5, y: py(y) + 3, "text-anchor": "end" }, shortNumber(y)));
  }
  for (const x of ticks(x0, x1, 4)) {
    const at = { x: px(x), y: height - 6, "text-anchor": "middle" };
    drawing.append(svg("text", at, shortNumber(Math.round(x))));
  }
  const smooth = curve.smooth || curve;
  if (curve.smooth) drawing.append(svg("path", { class: "raw", d: path(curve.x, curve.y) }));
  drawing.append(svg("path", { class: "smooth", d: path(smooth.x, smooth.y) }));
  const mark = svg("line", { class: "mark", y1: top, y2: height - bottom, visibility: "hidden" });
  const dot = svg("circle", { class: "dot", r: 3.5, visibility: "hidden" });
  drawing.append(mark, dot);

  let at = smooth.x.length - 1;
  function point(index) {
    at = Math.min(Math.max(index, 0), smooth.x.length - 1);
    mark.setAttribute("x1", px(smooth.x[at]));
    mark.setAttribute("x2", px(smooth.x[at]));
    dot.setAttribute("cx", px(smooth.x[at]));
    dot.setAttribute("cy", clipped(smooth.y[at]));
    for (const node of [mark, dot]) node.setAttribute("visibility", "visible");
    value.textContent = `${shortNumber(smooth.y[at])} at ${Math.round(smooth.x[at])}`;
  }
  function leave() {
    for (const node of [mark, dot]) node.setAttribute("visibility", "hidden");
    value.textContent = shortNumber(last);
  }
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const x = x0 + (((event.clientX - box.left) / box.width) * width - left) /
      (width - left - right) * (x1 - x0);
    let nearest = 0;
    smooth.x.forEach((other, i) => {
      if (Math.abs(other - x) < Math.abs(smooth.x[nearest] - x)) nearest = i;
    });
    point(nearest);
  });
  drawing.addEventListener("pointerleave", leave);
  drawing.addEventListener("blur", leave);
  drawing.addEventListener("focus", () => point(at));
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: 20, PageDown: -20 }[event.key];
    if (step) {
      point(at + step);
      event.preventDefault();
    }
  });
  leave();
  figure.append(head, drawing);
  return figure;
}

function drawCurves(curves) {
  const place = document.getElementById("charts");
  if (!place || !curves.length) return;
  place.replaceChildren(...curves.map(chart));
  place.hidden = false;
  document.querySelectorAll(".still-curves").forEach((node) => { node.hidden = true; });
}
