// The colours of the overlays.

const MISSED = [230, 60, 110], INVENTED = [240, 228, 66], CONFUSED = [190, 120, 255];
const HOT = [[40, 0, 70], [150, 30, 110], [230, 90, 50], [250, 190, 60], [255, 255, 190]];

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
