// The viewer of a report and of `dcamt view`: scans with segmentations in three planes and in 3D.
// This file listens to the controls; loading.js, overlays.js and panels.js stand before it in a page.
// Names from files reach the page through textContent alone, never as markup.

// ------------------------------------------------------------------------------------ moving about

let following = false;

function moved(panel, location) {
  if (following) return;
  if (location.axCorSag >= AXIAL && location.axCorSag <= SAGITTAL) state.plane = location.axCorSag;
  following = true;
  for (const other of state.panels) {
    if (other === panel || !other.planes.volumes.length) continue;
    other.planes.scene.crosshairPos = panel.planes.scene.crosshairPos.slice();
    other.planes.scene.pan2Dxyzmm = panel.planes.scene.pan2Dxyzmm.slice();
    other.planes.drawScene();
  }
  following = false;
  readout(location);
}

function turned(panel, azimuth, elevation) {
  if (following) return;
  following = true;
  for (const other of state.panels) if (other !== panel) other.solid.setRenderAzimuthElevation(azimuth, elevation);
  following = false;
}

const className = (value) => page.classes[value] || `class ${value}`;

function readout(location) {
  const [x, y, z] = location.vox.map(Math.round), first = state.panels[0];
  if (!first.size) return;
  const [nx, ny, nz] = first.size, i = x + nx * (y + ny * z);
  const mm = first.rows.map(([a, b, c, d], k) => {
    const value = a * x + b * y + c * z + d;
    return `${["LR", "PA", "IS"][k][value < 0 ? 0 : 1]} ${Math.abs(value).toFixed(1)}`;
  });
  const told = [
    `Sagittal ${x + 1}/${nx} · coronal ${y + 1}/${ny} · axial ${z + 1}/${nz}`,
    `${mm.join("  ")} mm`,
    `scan ${shortNumber(first.scan[i] * first.slope + first.intercept)}`,
  ];
  if (first.reference) told.push(`reference: ${className(first.reference[i])}`);
  for (const panel of state.panels) {
    const title = state.panels.length > 1 ? panel.title : "prediction";
    if (panel.prediction) told.push(`${title}: ${className(panel.prediction[i])}`);
    if (panel.doubt) told.push(`uncertainty ${(panel.doubt[i] / 255).toFixed(2)}`);
  }
  byId("readout").replaceChildren(...told.map((text) => {
    const node = document.createElement("span");
    node.textContent = text;
    return node;
  }));
}

// The slice across each axis in which the structures are largest, of equal ones the middle one.
function goHome(panel) {
  const { planes, areas, size } = panel;
  const largest = (n, k) => {
    const most = areas[k].reduce((a, b) => Math.max(a, b), 0);
    const such = [...areas[k].keys()].filter((i) => areas[k][i] === most);
    return such[such.length >> 1];
  };
  planes.scene.pan2Dxyzmm = [0, 0, 0, 1];
  planes.scene.crosshairPos = size.map((n, k) => (largest(n, k) + 0.5) / n);
  planes.createOnLocationChange();
  planes.drawScene();
}

function zoom(factor) {
  const { planes } = state.panels[0], pan = planes.scene.pan2Dxyzmm;
  const to = Math.min(Math.max(pan[3] * factor, 1), 12);
  const centre = planes.frac2mm([0.5, 0.5, 0.5]), at = planes.frac2mm(planes.scene.crosshairPos);
  const shift = (k) => (to > 1 ? centre[k] - at[k] : 0);
  planes.scene.pan2Dxyzmm = [shift(0), shift(1), shift(2), to];
  planes.createOnLocationChange();
  planes.drawScene();
}

// Steps in RAS voxels: on the screen the patient's left is right, and so is the back.
function step(key) {
  const across = { [AXIAL]: [0, 0, 1], [CORONAL]: [0, 1, 0], [SAGITTAL]: [1, 0, 0] }[state.plane];
  const right = state.plane === SAGITTAL ? [0, -1, 0] : [-1, 0, 0];
  const up = state.plane === AXIAL ? [0, 1, 0] : [0, 0, 1];
  const [direction, sign] = {
    ArrowRight: [right, 1], ArrowLeft: [right, -1], ArrowUp: [up, 1], ArrowDown: [up, -1],
    PageUp: [across, 1], PageDown: [across, -1],
  }[key];
  state.panels[0].planes.moveCrosshairInVox(...direction.map((d) => d * sign));
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.matches("select, input[type=range]") && event.key.length > 1) return;
  const key = event.key;
  if (/^(Arrow(Left|Right|Up|Down)|Page(Up|Down))$/.test(key)) step(key);
  else if (key === "o") setHidden(!state.hidden);
  else if (key === "n") openCase(state.at + 1);
  else if (key === "p") openCase(state.at - 1);
  else if (key === "r") goHome(state.panels[0]);
  else if (key === "+" || key === "=") zoom(1.25);
  else if (key === "-") zoom(0.8);
  else if (/^[1-5]$/.test(key)) choose(VIEWS[key - 1][1]);
  else return;
  event.preventDefault();
  event.stopPropagation(); // NiiVue has keys of its own
}

function choose(view) {
  state.view = view;
  document.querySelectorAll("#views button[data-view]").forEach((button, i) => {
    button.setAttribute("aria-pressed", String(VIEWS[i][1] === view));
  });
  if (view !== null && view !== SOLID) state.plane = view;
  for (const panel of state.panels) {
    const { planes, solid } = panel;
    solid.canvas.parentElement.hidden = ![null, SOLID].includes(view);
    solid.canvas.parentElement.classList.toggle("solid", view === null);
    planes.canvas.parentElement.hidden = view === SOLID;
    if (view !== SOLID) planes.setCustomLayout(view === null ? QUARTERS : [{ sliceType: view, position: [0, 0, 1, 1] }]);
    for (const drawn of [planes, solid]) drawn.resizeListener();
    paintSolid(panel);
  }
}


// ---------------------------------------------------------------------------------------- controls

function repaint() {
  if (state.painting) return;
  state.painting = requestAnimationFrame(() => {
    state.painting = 0;
    for (const panel of state.panels) if (panel.size) paint(panel);
  });
}

function setHidden(hidden) {
  state.hidden = hidden;
  byId("overlays").setAttribute("aria-pressed", String(!hidden));
  repaint();
}

function button(text, title, action) {
  const node = document.createElement("button");
  node.type = "button";
  node.textContent = text;
  node.title = title;
  node.addEventListener("click", action);
  return node;
}

function tick(text, checked, action) {
  const label = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.checked = checked;
  box.addEventListener("change", () => action(box.checked));
  label.append(box, text);
  return [label, box];
}

function makeControls() {
  VIEWS.forEach(([name, view], i) => {
    const node = button(name, `${name} (${i + 1})`, () => choose(view));
    node.dataset.view = name;
    byId("views").append(node);
  });
  const hide = button("Overlays", "Hide and show all overlays (o)", () => setHidden(!state.hidden));
  hide.id = "overlays";
  hide.setAttribute("aria-pressed", "true");
  byId("views").append(hide);
  for (const [name, shown, opacity] of page.layers) {
    const layer = { name, shown, opacity };
    const title = name[0].toUpperCase() + name.slice(1);
    const row = document.createElement("div");
    row.className = "layer";
    row.dataset.layer = name;
    const [label] = tick(title, shown, (on) => { layer.shown = on; setHidden(false); });
    const range = document.createElement("input");
    Object.assign(range, { type: "range", min: 0, max: 100, value: 100 * opacity });
    range.setAttribute("aria-label", `Opacity of ${name}`);
    range.addEventListener("input", () => { layer.opacity = range.value / 100; repaint(); });
    row.append(label, range);
    state.layers.push(layer);
    byId("layers").append(row);
  }
  const row = document.createElement("div");
  row.className = "layer";
  const [label, box] = tick("Outlines only", false, repaint);
  box.id = "outlines";
  row.append(label);
  byId("layers").append(row);
  if (page.served) {
    const more = document.createElement("div");
    more.className = "layer";
    more.append(tick("Whole scan", false, (on) => { state.whole = on; openCase(state.at, true); })[0]);
    byId("layers").append(more);
  }
  makeKeys();
}

function makeKeys() {
  const names = page.layers.map(([name]) => name);
  const keys = page.classes.length > 2
    ? page.classes.slice(1).map((name, i) => [name, rgb(page.colours[i % page.colours.length])])
    : ["prediction", "reference"].filter((n) => names.includes(n)).map((n) => [n, rgb(page.single[n])]);
  if (page.classes.length > 2 && names.includes("reference")) keys.push(["reference: paler", [225, 225, 225]]);
  if (names.includes("difference")) {
    keys.push(["missed", MISSED], ["too much", INVENTED]);
    if (page.classes.length > 2) keys.push(["wrong class", CONFUSED]);
  }
  if (names.includes("uncertainty")) keys.push(["uncertain", HOT[3]]);
  byId("keys").replaceChildren(...keys.map(([name, colour]) => {
    const item = document.createElement("li");
    const patch = document.createElement("i");
    patch.style.backgroundColor = `rgb(${colour.join(",")})`;
    item.append(patch, name);
    return item;
  }));
}


// ------------------------------------------------------------------------------------------- cases

function say(text, quiet) {
  byId("message").textContent = text;
  byId("message").classList.toggle("quiet", Boolean(quiet));
}

function tellFacts(one) {
  byId("facts").replaceChildren(...one.facts.map(([name, value]) => {
    const node = document.createElement("span");
    const bold = document.createElement("b");
    bold.textContent = value;
    if (one.flagged) bold.className = "flag";
    node.append(`${name} `, bold);
    return node;
  }));
}

async function openCase(index, again) {
  if (index < 0 || index >= page.cases.length || (index === state.at && !again)) return;
  const early = index === 0 ? state.first : null;
  state.first = null;
  state.at = index;
  const one = page.cases[index];
  byId("case").value = String(index);
  byId("previous").disabled = index === 0;
  byId("next").disabled = index === page.cases.length - 1;
  tellFacts(one);
  document.querySelectorAll("tr.opened").forEach((row) => row.classList.remove("opened"));
  for (const row of rows()) if (row.dataset.number === String(index)) row.classList.add("opened");
  byId("viewer").dataset.shown = "";
  if (!page.served && !byId(`case-${index}`)) {
    return say("This case is not in the file, which would be too large. `dcamt view` with the run folder shows it.");
  }
  say("Loading …", true);
  await new Promise(requestAnimationFrame);
  try {
    const files = await (early || loadFiles(index));
    if (state.at !== index) return; // another one was chosen meanwhile
    for (const panel of state.panels) await fill(panel, files);
    const { step } = headerOf(files.scan);
    const thinned = step.some((s) => s > 1);
    say(thinned ? `Shown at ${step.map((s) => (s > 1 ? `1/${s}` : "full")).join(" × ")} resolution, as the scan is large.` : "", true);
    goHome(state.panels[0]);
    for (const panel of state.panels) {
      await finished(panel.planes);
      paintSolid(panel);
    }
    if (state.at === index) byId("viewer").dataset.shown = one.name;
  } catch (error) {
    say(`This case cannot be shown: ${error.message}`);
  }
}

const rows = () => document.querySelectorAll("#cases tbody tr");

function makeCases() {
  byId("case").replaceChildren(...page.cases.map((one, i) => new Option(
    [one.name, ...one.facts.slice(0, 1).map((pair) => pair.join(" "))].join(" · "), String(i),
  )));
  byId("case").addEventListener("change", (event) => openCase(Number(event.target.value)));
  byId("previous").addEventListener("click", () => openCase(state.at - 1));
  byId("next").addEventListener("click", () => openCase(state.at + 1));
  const numbers = new Map(page.cases.map((one, i) => [one.name, i]));
  for (const row of rows()) {
    const cell = row.cells[0], index = numbers.get(cell.textContent);
    if (index === undefined) continue;
    row.dataset.number = index;
    const link = button(cell.textContent, "Open in the viewer", () => {
      openCase(index);
      byId("viewer").scrollIntoView({ behavior: "smooth", block: "start" });
      state.panels[0].planes.canvas.focus({ preventScroll: true });
    });
    link.className = "open";
    cell.replaceChildren(link);
    row.addEventListener("click", (event) => { if (event.target !== link) link.click(); });
  }
}

async function rereadCurves() {
  const response = await fetch("curves");
  if (response.ok) {
    const { curves, running } = await response.json();
    drawCurves(curves);
    if (running) setTimeout(rereadCurves, 5000);
    else location.reload(); // the cases are there now
  }
}

async function start() {
  drawCurves(page.curves);
  if (page.running) setTimeout(rereadCurves, 5000);
  if (!page.cases.length) return;
  const able = typeof DecompressionStream === "function" && document.createElement("canvas").getContext("webgl2");
  if (!able) throw new Error("no WebGL2");
  state.first = loadFiles(0); // while the library is made ready
  state.first.catch(() => {}); // told where the case is shown
  await loadNiivue();
  byId("viewer").hidden = false;
  byId("panels").style.setProperty("--columns", Math.min(page.panels.length, 2));
  byId("panels").classList.toggle("many", page.panels.length > 1);
  makeControls();
  makeCases();
  for (const [number, title] of page.panels.entries()) state.panels.push(await makePanel(title, number));
  choose(null);
  byId("viewer").addEventListener("keydown", onKey, true);
  // The wheel scrolls the page until a slice has the focus.
  byId("panels").addEventListener("wheel", (event) => {
    if (!byId("panels").contains(document.activeElement)) event.stopPropagation();
  }, { capture: true, passive: true });
  await openCase(0);
  document.querySelectorAll(".still").forEach((node) => { node.hidden = true; });
}

start().catch((error) => {
  byId("viewer").hidden = true; // the pictures stay
  document.body.dataset.viewer = `not shown: ${error.message}`;
});
