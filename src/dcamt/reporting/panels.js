// What NiiVue draws: for each segmentation the three planes, and the structures in 3D.

const VIEWS = [["All", null], ["Axial", AXIAL], ["Coronal", CORONAL], ["Sagittal", SAGITTAL], ["3D", SOLID]];
const QUARTERS = [
  { sliceType: AXIAL, position: [0, 0, 0.5, 0.5] },
  { sliceType: CORONAL, position: [0.5, 0, 0.5, 0.5] },
  { sliceType: SAGITTAL, position: [0, 0.5, 0.5, 0.5] },
];

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

// NiiVue would look at every voxel for the darkest and the brightest; all files hold 0 to 255.
function rangeOfHeader() {
  const { scl_slope: slope, scl_inter: intercept } = this.hdr;
  this.cal_min = this.robust_min = this.global_min = intercept;
  this.cal_max = this.robust_max = this.global_max = intercept + 255 * slope;
}

function image(file, name) {
  const { NVImage } = window.niivue;
  NVImage.prototype.calMinMax = rangeOfHeader;
  return NVImage.new(file.buffer, `${name}.nii`, "gray", 1);
}

function setVolumes(drawn, volumes) {
  drawn.volumes = volumes;
  drawn.back = volumes[0];
  drawn.overlays = volumes.slice(1);
}

// A new case on its way to the graphics card.
async function fill(panel, files) {
  const header = headerOf(files.scan);
  const prediction = voxels(files[`prediction-${panel.number}`]), reference = voxels(files.reference);
  const doubt = voxels(files[`uncertainty-${panel.number}`]);
  Object.assign(panel, header, codesOf(prediction, reference, header.size));
  Object.assign(panel, { prediction, reference, doubt, scan: voxels(files.scan) });
  const scan = await image(files.scan, "scan");
  const labelled = prediction || reference || doubt;
  panel.overlay = labelled ? await colours(files.scan) : null;
  panel.surface = null;
  panel.header = prediction || reference ? files.scan : null;
  setVolumes(panel.planes, labelled ? [scan, panel.overlay] : [scan]);
  setVolumes(panel.solid, []);
  panel.solid.drawScene();
  if (labelled) panel.overlay.img = coloured(panel, false);
  panel.planes.isBusy = true; // drawn once, when the slices are chosen
  panel.planes.updateGLVolume();
  panel.planes.isBusy = false;
  panel.stale = true;
}

// New colours for what is loaded.
function paint(panel) {
  const { planes, overlay } = panel;
  if (overlay) {
    overlay.img = coloured(panel, false);
    planes.refreshLayers(overlay, 1);
  }
  planes.drawScene();
  panel.stale = true;
  paintSolid(panel);
}

// Until all that was asked of a canvas is on it.
async function finished({ gl }) {
  const fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
  gl.flush();
  while (!gl.isContextLost() && gl.getSyncParameter(fence, gl.SYNC_STATUS) !== gl.SIGNALED) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  gl.deleteSync(fence);
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
