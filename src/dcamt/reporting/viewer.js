// The viewer of a report and of `dcamt view`: scans with segmentations in three planes and in 3D.
// NiiVue draws; this file loads the cases, colours the overlays and listens to the controls.
// Names from files reach the page through textContent alone, never as markup.

const AXIAL = 0, CORONAL = 1, SAGITTAL = 2, SOLID = 4;
const VIEWS = [["All", null], ["Axial", AXIAL], ["Coronal", CORONAL], ["Sagittal", SAGITTAL], ["3D", SOLID]];
const QUARTERS = [
  { sliceType: AXIAL, position: [0, 0, 0.5, 0.5] },
  { sliceType: CORONAL, position: [0.5, 0, 0.5, 0.5] },
  { sliceType: SAGITTAL, position: [0, 0.5, 0.5, 0.5] },
];
const HEADER = 352; // bytes before the voxels of a NIfTI file
const MISSED = [230, 60, 110], INVENTED = [240, 228, 66], CONFUSED = [190, 120, 255];
const HOT = [[40, 0, 70], [150, 30, 110], [230, 90, 50], [250, 190, 60], [255, 255, 190]];

const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("view-data").textContent);
const state = { panels: [], at: -1, view: null, plane: AXIAL, hidden: false, whole: false, layers: [] };

// ------------------------------------------------------------------------------------- loading

async function unpacked(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function embedded(id) {
  const text = atob(byId(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return unpacked(bytes);
}

async function loadNiivue() {
  const script = document.createElement("script");
  script.textContent = new TextDecoder().decode(await embedded("niivue"));
  document.head.append(script);
  return window.niivue;
}

// Files of a case by their names: see dcamt.reporting.volumes.pack.
async function loadFiles(index) {
  let bytes;
  if (page.served) {
    const response = await fetch(`case/${index}${state.whole ? "?whole" : ""}`);
    if (!response.ok) throw new Error(await response.text());
    bytes = new Uint8Array(await response.arrayBuffer());
  } else {
    bytes = await embedded(`case-${index}`);
  }
  let at = bytes.indexOf(10) + 1;
  const files = {};
  for (const [name, length] of Object.entries(JSON.parse(new TextDecoder().decode(bytes.subarray(0, at))))) {
    files[name] = bytes.slice(at, at + length);
    at += length;
  }
  return files;
}

const voxels = (file) => file && file.subarray(HEADER);

function headerOf(file) {
  const view = new DataView(file.buffer, file.byteOffset, HEADER);
  const size = [42, 44, 46].map((at) => view.getInt16(at, true));
  const about = String.fromCharCode(...file.subarray(148, 228)).split("\0")[0];
  return {
    size, step: about.split(" ").slice(1).map(Number),
    slope: view.getFloat32(112, true), intercept: view.getFloat32(116, true),
    rows: [280, 296, 312].map((at) => [0, 4, 8, 12].map((k) => view.getFloat32(at + k, true))),
  };
}

// ------------------------------------------------------------------------------------- colours
// All label maps of a panel become one map of codes, so that a change of opacity is a new table of
// colours and not a new volume: code = edges + 4 * (differs + 2 * (prediction + kinds * reference)).

const kind = (value) => (value ? 1 + ((value - 1) % page.colours.length) : 0);

function isEdge(map, i, x, y, z, [nx, ny, nz]) {
  const value = map[i];
  return (
    (x > 0 && map[i - 1] !== value) || (x < nx - 1 && map[i + 1] !== value) ||
    (y > 0 && map[i - nx] !== value) || (y < ny - 1 && map[i + nx] !== value) ||
    (z > 0 && map[i - nx * ny] !== value) || (z < nz - 1 && map[i + nx * ny] !== value)
  );
}

function codesOf(prediction, reference, size) {
  const [nx, ny, nz] = size;
  let highest = 0;
  for (const map of [prediction, reference]) {
    if (map) for (let i = 0; i < map.length; i++) if (map[i] > highest) highest = map[i];
  }
  const kinds = 1 + Math.min(highest, page.colours.length);
  const Codes = 8 * kinds * kinds > 256 ? Uint16Array : Uint8Array;
  const codes = new Codes(nx * ny * nz);
  const areas = size.map((n) => new Uint32Array(n));
  let i = 0;
  for (let z = 0; z < nz; z++) {
    for (let y = 0; y < ny; y++) {
      for (let x = 0; x < nx; x++, i++) {
        const p = prediction ? prediction[i] : 0, r = reference ? reference[i] : 0;
        if (!p && !r) continue;
        const edges = (p && isEdge(prediction, i, x, y, z, size) ? 1 : 0) +
          (r && isEdge(reference, i, x, y, z, size) ? 2 : 0);
        const differs = prediction && reference && p !== r ? 1 : 0;
        codes[i] = edges + 4 * (differs + 2 * (kind(p) + kinds * kind(r)));
        areas[0][x]++, areas[1][y]++, areas[2][z]++;
      }
    }
  }
  return { codes, kinds, areas };
}

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function over(below, colour, alpha) {
  const a = alpha + below[3] * (1 - alpha);
  if (a > 0) for (let k = 0; k < 3; k++) below[k] = (colour[k] * alpha + below[k] * below[3] * (1 - alpha)) / a;
  below[3] = a;
}

const strength = (name) => {
  const layer = state.layers.find((one) => one.name === name);
  return layer && layer.shown && !state.hidden ? layer.opacity : 0;
};

function colourOf(which, value, kinds) {
  if (Math.max(page.classes.length, kinds) <= 2) return rgb(page.single[which]);
  const colour = rgb(page.colours[value - 1]); // of the reference paler
  return which === "reference" ? colour.map((c) => Math.round(c + (255 - c) * 0.5)) : colour;
}

// The colour of every code with every uncertainty (0 to 255), as RGBA in 32 bits.
function colourTable(kinds, solid) {
  const count = 8 * kinds * kinds, table = new Uint32Array(256 * count);
  const bytes = new Uint8ClampedArray(table.buffer);
  const outlined = byId("outlines").checked && !solid;
  const doubts = solid ? 0 : strength("uncertainty");
  for (let code = 0; code < count; code++) {
    const edges = code & 3, differs = (code >> 2) & 1;
    const p = (code >> 3) % kinds, r = Math.floor((code >> 3) / kinds);
    const label = [0, 0, 0, 0];
    if (r && (!outlined || edges & 2)) over(label, colourOf("reference", r, kinds), strength("reference"));
    if (p && (!outlined || edges & 1)) over(label, colourOf("prediction", p, kinds), strength("prediction"));
    if (differs) over(label, !p ? MISSED : !r ? INVENTED : CONFUSED, strength("difference"));
    for (let doubt = 0; doubt < 256; doubt++) {
      const colour = label.slice();
      if (doubts && doubt > 7) over(colour, heat(doubt / 255), doubts);
      colour[3] *= 255;
      bytes.set(colour, 4 * (256 * code + doubt));
    }
  }
  return table;
}

function heat(value) {
  const at = value * (HOT.length - 1), low = Math.min(Math.floor(at), HOT.length - 2);
  return HOT[low].map((c, k) => c + (HOT[low + 1][k] - c) * (at - low));
}

function coloured(panel, solid) {
  const table = colourTable(panel.kinds, solid), { codes, doubt } = panel;
  const pixels = new Uint32Array(codes.length);
  if (doubt && !solid) for (let i = 0; i < pixels.length; i++) pixels[i] = table[256 * codes[i] + doubt[i]];
  else for (let i = 0; i < pixels.length; i++) if (codes[i]) pixels[i] = table[256 * codes[i]];
  return new Uint8Array(pixels.buffer);
}

// -------------------------------------------------------------------------------------- panels

async function attach(place, options) {
  const canvas = document.createElement("canvas");
  place.append(canvas);
  const drawn = new window.niivue.Niivue({
    logLevel: "error", loadingText: "", dragAndDropEnabled: false, backColor: [0, 0, 0, 1],
    isRadiologicalConvention: true, sagittalNoseLeft: true, show3Dcrosshair: false,
    crosshairColor: [0.45, 0.75, 1, 0.75], crosshairWidthUnit: "percent", crosshairWidth: 0.3,
    fontColor: [0.85, 0.88, 0.92, 1], fontSizeScaling: 0.35, ...options,
  });
  await drawn.attachToCanvas(canvas, true);
  return drawn;
}

// NiiVue computes the gradients of every scan, to shade it in 3D. Slices need none, and a
// processor that draws without a graphics card takes seconds for them.
function withoutGradients(drawn) {
  const { gl } = drawn, unneeded = [drawn.blurShader.program, drawn.sobelFirstOrderShader.program];
  const use = gl.useProgram.bind(gl), draw = gl.drawArrays.bind(gl);
  let skipped = false;
  gl.useProgram = (program) => {
    skipped = unneeded.includes(program);
    use(program);
  };
  gl.drawArrays = (...what) => { if (!skipped) draw(...what); };
  return drawn;
}

async function makePanel(title, number) {
  const node = document.createElement("div");
  node.className = "panel";
  const planes = document.createElement("div");
  const solid = document.createElement("div");
  solid.className = "solid";
  node.append(planes, solid);
  if (title) {
    const head = document.createElement("h4");
    head.textContent = title;
    node.append(head);
    node.classList.add("titled");
  }
  byId("panels").append(node);
  const panel = { number, title, node, planes: withoutGradients(await attach(planes, {})), solid: await attach(solid, {}) };
  panel.planes.canvas.setAttribute("role", "application");
  panel.planes.canvas.setAttribute("aria-label", `Slices${title ? ` of ${title}` : ""}; arrow keys, page up and page down`);
  panel.solid.canvas.setAttribute("role", "img");
  panel.solid.canvas.setAttribute("aria-label", `Structures in 3D${title ? ` of ${title}` : ""}`);
  panel.planes.onLocationChange = (location) => moved(panel, location);
  panel.solid.setSliceType(SOLID);
  panel.solid.onAzimuthElevationChange = (azimuth, elevation) => turned(panel, azimuth, elevation);
  await panel.solid.setVolumeRenderIllumination(0.7);
  return panel;
}

// An empty volume of colours on the voxels of a scan.
function colours(scan) {
  const file = new Uint8Array(HEADER + 4 * (scan.length - HEADER));
  file.set(scan.subarray(0, HEADER));
  const view = new DataView(file.buffer);
  view.setInt16(70, 2304, true); // RGBA
  view.setInt16(72, 32, true);
  view.setFloat32(112, 1, true);
  view.setFloat32(116, 0, true);
  return image(file, "overlay");
}

const image = (file, name) => window.niivue.NVImage.new(file.buffer, `${name}.nii`, "gray", 1);

function setVolumes(drawn, volumes) {
  drawn.volumes = volumes;
  drawn.back = volumes[0];
  drawn.overlays = volumes.slice(1);
}

async function fill(panel, files) {
  const header = headerOf(files.scan);
  const prediction = voxels(files[`prediction-${panel.number}`]), reference = voxels(files.reference);
  const doubt = voxels(files[`uncertainty-${panel.number}`]);
  Object.assign(panel, header, codesOf(prediction, reference, header.size));
  Object.assign(panel, { prediction, reference, doubt, scan: voxels(files.scan) });
  const scan = await image(files.scan, "scan");
  scan.cal_min = header.intercept;
  scan.cal_max = header.intercept + 255 * header.slope;
  const labelled = prediction || reference || doubt;
  panel.overlay = labelled ? await colours(files.scan) : null;
  panel.surface = null;
  panel.header = prediction || reference ? files.scan : null;
  setVolumes(panel.planes, labelled ? [scan, panel.overlay] : [scan]);
  setVolumes(panel.solid, []);
  panel.solid.drawScene();
  paint(panel, true);
}

// New colours for what is loaded; a fresh scan goes to the graphics card too.
function paint(panel, fresh) {
  const { planes, overlay } = panel;
  if (overlay) overlay.img = coloured(panel, false);
  if (fresh) planes.updateGLVolume();
  else if (overlay) planes.refreshLayers(overlay, 1);
  planes.drawScene();
  panel.stale = true;
  paintSolid(panel);
}

// The structures in 3D, a moment later: the slices come first, and a slider is not held up.
function paintSolid(panel) {
  clearTimeout(panel.waiting);
  panel.waiting = setTimeout(async () => {
    if (!panel.stale || !panel.header || ![null, SOLID].includes(state.view)) return;
    panel.stale = false;
    const { header } = panel;
    const surface = panel.surface || (await colours(header));
    if (panel.header !== header) return; // another case came meanwhile
    panel.surface = surface;
    surface.img = coloured(panel, true);
    setVolumes(panel.solid, [surface]);
    panel.solid.updateGLVolume();
    panel.node.dataset.solid = "drawn";
  }, 150);
}

// --------------------------------------------------------------------------------- moving about

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

// ------------------------------------------------------------------------------------ controls

function repaint() {
  if (state.painting) return;
  state.painting = requestAnimationFrame(() => {
    state.painting = 0;
    for (const panel of state.panels) if (panel.size) paint(panel, false);
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

// ----------------------------------------------------------------------------------------- cases

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
    byId("viewer").dataset.shown = one.name;
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
