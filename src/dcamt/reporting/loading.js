// Cases and the library as they come out of the page or from the server.

const AXIAL = 0, CORONAL = 1, SAGITTAL = 2, SOLID = 4;
const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("view-data").textContent);
const state = { panels: [], at: -1, view: null, plane: AXIAL, hidden: false, whole: false, layers: [] };
const HEADER = 352; // bytes before the voxels of a NIfTI file

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
