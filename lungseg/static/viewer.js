// The slice viewer of lungseg: one CT volume and up to two masks on a canvas.
//
// The same module serves two hosts. In JupyterLab, anywidget calls `render` with a model that mirrors the
// Python object. In a static page, `mountStatic` builds a model of the same shape from JSON in the page.
// Nothing is fetched, nothing is stored. All positions are voxel indices of the full-resolution volume,
// (slice, row, column), also where the picture itself is cropped or thinned.

const MODES = [
  ["outline", "Outline"],
  ["fill", "Fill"],
  ["errors", "TP FP FN"],
];
// Okabe and Ito's blue and orange, lightened for a black background: they differ in lightness as well as in
// hue, and what only the reference has is hatched, so that no colour is needed to tell them apart.
const REF = [86, 170, 255];
const PRED = [255, 159, 28];
const BOTH = [205, 214, 222];
const BANDS = [[0.95, "#4f9d8f", "0.95 to 1"], [0.8, "#c2a63a", "0.80 to 0.95"], [-1, "#d9632b", "below 0.80"]]; // of Dice
const css = ([r, g, b], a = 1) => `rgba(${r},${g},${b},${a})`;
// What each plane looks along, and which patient directions point right and down on screen: the reader
// faces the patient, feet towards the reader, as in every reading room. Patient axes: 0 L, 1 P, 2 S.
const PLANES = {
  axial: { normal: 2, right: [0, 1], down: [1, 1] },
  coronal: { normal: 1, right: [0, 1], down: [2, -1] },
  sagittal: { normal: 0, right: [1, 1], down: [2, -1] },
};
const PLANE_NAMES = { axial: "Axial", coronal: "Coronal", sagittal: "Sagittal" };
const DIRECTIONS = ["LR", "PA", "SI"];
const STATE = [
  "slice", "plane", "point", "window_level", "window_width", "opacity", "mode", "show_ref", "show_pred", "smooth",
];
const MARGIN = 27; // CSS pixels round the whole picture, for letters and text
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const signed = (x, digits = 0) => (Object.is(Math.round(x * 10 ** digits), -0) ? 0 : x).toFixed(digits).replace("-", "−");

// ---- payload ----------------------------------------------------------------------------------------------

function bytesOf(data) {
  if (typeof data !== "string") return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function inflate(data) {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old (no DecompressionStream)");
  const stream = new Blob([bytesOf(data)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const count = (shape) => shape[0] * shape[1] * shape[2];

async function decodeVolume(v) {
  const bytes = await inflate(v.data);
  const n = count(v.grid.shape);
  if (bytes.length !== n * (v.codes ? 1 : 2)) throw new Error(`volume holds ${bytes.length} bytes, not ${v.grid.shape} voxels`);
  if (v.codes) { // each code is stored as its difference from the one to its left
    for (let row = 0, width = v.grid.shape[2]; row < n; row += width)
      for (let i = row + 1; i < row + width; i++) bytes[i] += bytes[i - 1];
    return { ...v, values: bytes, hu: v.codes, exact: false };
  }
  const values = new Uint16Array(n); // low bytes first, then high bytes: smaller than interleaved
  for (let i = 0; i < n; i++) values[i] = bytes[i] | (bytes[n + i] << 8);
  return { ...v, values, hu: null, exact: true };
}

async function decodeMasks(m) {
  const labels = m.data ? await inflate(m.data) : null;
  if (labels && labels.length !== count(m.grid.shape)) throw new Error(`masks hold ${labels.length} voxels, not ${m.grid.shape}`);
  return { ...m, labels };
}

const decoded = new WeakMap(); // two views of one model share the arrays
function once(decode, trait) {
  if (!decoded.has(trait)) decoded.set(trait, decode(trait));
  return decoded.get(trait);
}

// ---- small pieces of page ---------------------------------------------------------------------------------

function h(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) {
    if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else if (v === true) e.setAttribute(k, "");
    else if (v !== false && v != null) e.setAttribute(k, v);
  }
  e.append(...children.filter((c) => c != null && c !== false));
  return e;
}

const HELP = [
  ["wheel, ↑ ↓", "next slice"], ["PgUp PgDn", "ten slices"], ["Home End", "first, last"],
  ["a c s", "axial, coronal, sagittal"], ["drag", "window: ↔ width, ↕ level"], ["1 2 3 4", "window presets"],
  ["shift-drag", "pan"], ["ctrl-wheel, + −", "zoom"], ["double-click, 0", "whole picture"],
  ["click, x", "place, show the cross-hair"], ["m", "outline, fill, TP FP FN"], ["r p", "reference, prediction"],
  ["[ ]", "opacity"], ["w", "slice with the lowest Dice"], ["i", "smooth or crisp pixels"],
  ["space", "play"], ["f", "full screen"], ["?", "this list"],
];

// ---- the viewer -------------------------------------------------------------------------------------------

function render({ model, el }) {
  const root = h("div", { class: "lsv", role: "group" });
  el.append(root);
  const fail = (error) => {
    console.warn("lungseg viewer:", error);
    root.dataset.failed = "";
    root.querySelector(".lsv-error")?.remove();
    root.append(h("p", { class: "lsv-error", role: "alert" }, `The viewer stopped: ${error?.message ?? error}`));
  };
  const guard = (f) => (...args) => {
    try {
      return f(...args);
    } catch (error) {
      fail(error);
    }
  };
  let cleanup = () => {};
  try {
    cleanup = build(model, root, guard, fail);
  } catch (error) {
    fail(error);
  }
  return () => {
    cleanup();
    root.remove();
  };
}

function build(model, root, guard, fail) {
  let volume = null;
  let masks = { ref: false, pred: false, labels: null, scores: null };
  let frame = 0;
  let cursor = null; // where the pointer is, CSS pixels in the stage
  let cross = false;
  let playing = 0;
  const views = {}; // one zoom and centre per plane
  const cache = {};
  const get = (k) => model.get(k);
  const PRESETS = get("_presets"); // name, level, width
  const set = (changes) => {
    for (const [k, v] of Object.entries(changes)) model.set(k, v);
    model.save_changes();
    draw(); // a static model has no echo
  };

  // ---- geometry: which voxel axis lies along which screen axis ----
  function layout(plane = get("plane")) {
    const { normal, right, down } = PLANES[plane];
    const [axes, signs] = [volume.axes, volume.signs];
    return {
      plane,
      n: axes[normal],
      u: axes[right[0]],
      v: axes[down[0]],
      fu: signs[right[0]] * right[1],
      fv: signs[down[0]] * down[1],
    };
  }
  const range = (n) => {
    const { origin, step, shape } = volume.grid;
    return [origin[n], Math.min(origin[n] + step[n] * shape[n], volume.shape[n]) - 1];
  };
  const slice = (g) => clamp(get("slice"), ...range(g.n));
  const toMm = (p) => [0, 1, 2].map((i) => volume.affine[i].reduce((sum, a, j) => sum + a * (j < 3 ? p[j] : 1), 0));
  function here() {
    const p = [...get("point")];
    p[layout().n] = get("slice");
    return p;
  }
  const goSlice = (i) => {
    const g = layout();
    const p = here();
    p[g.n] = clamp(Math.round(i), ...range(g.n));
    if (p[g.n] !== get("slice")) set({ slice: p[g.n], point: p });
  };
  const goPlane = (plane) => {
    if (plane === get("plane")) return;
    const p = here();
    set({ plane, slice: p[layout(plane).n], point: p });
  };
  const headward = (g) => (PLANES[g.plane].normal === 2 ? volume.signs[2] : 1);

  // ---- the page ----
  const picture = h("canvas", { class: "lsv-picture", "aria-hidden": "true" });
  const badge = h("p", { class: "lsv-badge", hidden: true });
  const help = h(
    "div",
    { class: "lsv-help", hidden: true },
    h("dl", {}, ...HELP.flatMap(([keys, what]) => [h("dt", {}, keys), h("dd", {}, what)])),
  );
  const stage = h(
    "div",
    { class: "lsv-stage", tabindex: "0", role: "application", "aria-roledescription": "CT slice viewer" },
    picture, help,
  );
  stage.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab: a, c, s are ours while this has the focus
  const strip = h("canvas", { class: "lsv-strip", "aria-hidden": "true" });
  const slider = h("input", {
    type: "range", class: "lsv-slider", step: "1", "aria-label": "Slice",
    oninput: guard((e) => goSlice(+e.target.value)),
  });
  const playButton = h("button", {
    type: "button", class: "lsv-play", "aria-label": "Play", title: "Play (space)", onclick: guard(() => play()),
  }, "▶");
  const readout = h("p", { class: "lsv-readout", "data-idle": true }, "Loading …");
  const spoken = h("p", { class: "lsv-spoken", "aria-live": "polite" });

  const pressed = (b, on) => b.setAttribute("aria-pressed", on ? "true" : "false");
  const button = (text, title, action) =>
    h("button", { type: "button", title, "aria-pressed": "false", onclick: guard(action) }, text);
  const planeButtons = Object.entries(PLANE_NAMES).map(([plane, name]) => {
    const b = button(name, `${name} (${plane[0]})`, () => goPlane(plane));
    b.dataset.plane = plane;
    return b;
  });
  const presetButtons = PRESETS.map(([name, level, width], i) =>
    button(name, `Level ${signed(level)}, width ${width} HU (${i + 1})`, () => set({ window_level: level, window_width: width })));
  const number = (label, name, trait, low) => {
    const input = h("input", {
      type: "number", step: "10", min: low, "aria-label": name, title: name,
      onchange: guard((e) => e.target.value !== "" && set({ [trait]: clamp(+e.target.value, low ?? -4000, 8000) })),
    });
    return [input, h("label", { class: "lsv-number" }, h("span", {}, label), input)];
  };
  const [levelInput, levelLabel] = number("L", "Window level, HU", "window_level", null);
  const [widthInput, widthLabel] = number("W", "Window width, HU", "window_width", 1);
  const check = (trait, name, color, key) => {
    const input = h("input", { type: "checkbox", onchange: guard((e) => set({ [trait]: e.target.checked })) });
    const label = h("label", { class: "lsv-check", title: `${name} (${key})` }, input,
      h("i", { class: "lsv-swatch", style: `--c:${css(color)}` }), h("span", {}, name));
    return [input, label];
  };
  const [refInput, refLabel] = check("show_ref", "Reference", REF, "r");
  const [predInput, predLabel] = check("show_pred", "Prediction", PRED, "p");
  const modeButtons = MODES.map(([mode, name]) => button(name, `${name} (m)`, () => set({ mode })));
  const opacity = h("input", {
    type: "range", min: "0", max: "1", step: "0.05", "aria-label": "Mask opacity",
    oninput: guard((e) => set({ opacity: +e.target.value })),
  });
  const key = (kind, color, name) =>
    h("li", {}, h("i", { class: `lsv-swatch lsv-${kind}`, style: `--c:${css(color)}` }), h("span", {}, name));
  const legend = h("ul", { class: "lsv-legend" },
    key("tp", BOTH, "both (TP)"), key("fp", PRED, "prediction only (FP)"), key("fn", REF, "reference only (FN)"));
  const smoothButton = button("Smooth", "Smooth or crisp pixels (i)", () => set({ smooth: !get("smooth") }));
  const fitButton = button("Fit", "The whole picture (0)", () => resetView());
  const fullButton = button("Full", "Full screen (f)", () => fullScreen());
  const helpButton = button("Keys", "Keys and mouse (?)", () => toggleHelp());
  for (const b of [fitButton, fullButton]) b.removeAttribute("aria-pressed");
  const section = (name, ...children) =>
    h("section", {}, h("p", { class: "lsv-name" }, name), ...children);
  const group = (name, ...children) => h("div", { class: "lsv-group", role: "group", "aria-label": name }, ...children);
  const maskSection = section("Masks", refLabel, predLabel, group("Mask style", ...modeButtons),
    h("label", { class: "lsv-number" }, h("span", {}, "Opacity"), opacity), legend);
  const scores = h("dl", { class: "lsv-scores" });
  const bands = h("ul", { class: "lsv-legend lsv-bands" },
    ...BANDS.map(([low, color, name]) => h("li", {}, h("i", { class: "lsv-swatch", style: `--c:${color}` }), h("span", {}, name))));
  const scoreSection = section("Dice", scores, bands);
  const panel = h("div", { class: "lsv-panel" },
    section("Plane", group("Plane", ...planeButtons)),
    section("Window, HU", h("div", { class: "lsv-group lsv-four", role: "group", "aria-label": "Window presets" }, ...presetButtons),
      h("div", { class: "lsv-pair" }, levelLabel, widthLabel)),
    maskSection, scoreSection,
    section("View", h("div", { class: "lsv-group lsv-four" }, smoothButton, fitButton, fullButton, helpButton)));
  const timeline = h("div", { class: "lsv-timeline" }, playButton,
    h("div", { class: "lsv-track" }, strip, slider));
  root.append(
    h("div", { class: "lsv-body" }, h("div", { class: "lsv-main" }, stage, timeline, readout, badge), panel),
    spoken,
  );

  // ---- pictures of one slice, kept until something they depend on changes ----
  const canvas = (w, hgt) => {
    const c = document.createElement("canvas");
    [c.width, c.height] = [w, hgt];
    return c;
  };
  function kept(name, id, make) {
    if (cache[name]?.id !== id) cache[name] = { id, value: make(cache[name]?.value) };
    return cache[name].value;
  }
  const strides = (shape) => [shape[1] * shape[2], shape[2], 1];
  function cut(values, grid, g, i) {
    const k = clamp(Math.floor((i - grid.origin[g.n]) / grid.step[g.n]), 0, grid.shape[g.n] - 1);
    const s = strides(grid.shape);
    const [nu, nv] = [grid.shape[g.u], grid.shape[g.v]];
    const out = new values.constructor(nu * nv);
    for (let v = 0, o = 0; v < nv; v++)
      for (let u = 0, p = k * s[g.n] + v * s[g.v]; u < nu; u++, p += s[g.u]) out[o++] = values[p];
    return out;
  }
  function lookup() {
    const [level, width] = [get("window_level"), Math.max(get("window_width"), 1)];
    return kept("lut", `${level} ${width} ${volume.exact}`, () => {
      const lut = new Uint32Array(volume.exact ? 65536 : 256);
      for (let i = 0; i < lut.length; i++) {
        const hu = volume.exact ? (i << 16) >> 16 : volume.hu[i];
        const grey = clamp(Math.round((255 * (hu - level)) / width + 127.5), 0, 255);
        lut[i] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
      }
      return lut;
    });
  }
  function sliceImage(g, i) {
    const grid = volume.grid;
    const values = kept("values", `${g.plane} ${i}`, () => cut(volume.values, grid, g, i));
    const lut = lookup();
    return kept("image", `${g.plane} ${i} ${cache.lut.id}`, (old) => {
      const [nu, nv] = [grid.shape[g.u], grid.shape[g.v]];
      const c = old?.width === nu && old?.height === nv ? old : canvas(nu, nv);
      const context = c.getContext("2d");
      const image = context.createImageData(nu, nv);
      const pixels = new Uint32Array(image.data.buffer);
      for (let p = 0; p < pixels.length; p++) pixels[p] = lut[values[p]];
      context.putImageData(image, 0, 0);
      return c;
    });
  }
  const sliceLabels = (g, i) => kept("labels", `${g.plane} ${i} ${masks.id}`, () => cut(masks.labels, masks.grid, g, i));
  const inMasks = (g, i) => masks.labels && i >= masks.grid.origin[g.n] && i < masks.grid.origin[g.n] + masks.grid.shape[g.n];

  // The fill of a slice: one colour a label. Labels: 1 reference, 2 prediction, 3 both.
  function sliceFill(g, i) {
    const errors = get("mode") === "errors";
    const shown = (get("show_ref") ? 1 : 0) | (get("show_pred") ? 2 : 0);
    const labels = sliceLabels(g, i);
    return kept("fill", `${cache.labels.id} ${errors} ${shown}`, () => {
      const [nu, nv] = [masks.grid.shape[g.u], masks.grid.shape[g.v]];
      const c = canvas(nu, nv);
      const context = c.getContext("2d");
      const image = context.createImageData(nu, nv);
      const mixed = REF.map((x, k) => (x + PRED[k]) / 2);
      for (let p = 0; p < labels.length; p++) {
        const label = errors ? labels[p] : labels[p] & shown;
        if (!label) continue;
        const [r, gr, b] = label === 3 ? (errors ? BOTH : mixed) : label === 2 ? PRED : REF;
        let a = 255;
        if (label === 3) a = errors ? 75 : 170;
        else if (errors && label === 1 && ((p % nu) + Math.floor(p / nu)) % 4 > 1) a = 130; // hatched
        image.data.set([r, gr, b, a], 4 * p);
      }
      context.putImageData(image, 0, 0);
      return c;
    });
  }
  // The outline of one mask as segments (u0, v0, u1, v1) in voxel edges: along the pixels' borders, or, when
  // the picture is smoothed, between their centres (marching squares at one half).
  function sliceOutline(g, i, bit) {
    const labels = sliceLabels(g, i);
    const smooth = get("smooth");
    return kept(`outline${bit}`, `${cache.labels.id} ${smooth}`, () => {
      const [nu, nv] = [masks.grid.shape[g.u], masks.grid.shape[g.v]];
      const at = (u, v) => u >= 0 && v >= 0 && u < nu && v < nv && (labels[v * nu + u] & bit) !== 0;
      const lines = [];
      if (smooth) {
        for (let v = -1; v < nv; v++)
          for (let u = -1; u < nu; u++) {
            const k = (at(u, v) ? 1 : 0) | (at(u + 1, v) ? 2 : 0) | (at(u + 1, v + 1) ? 4 : 0) | (at(u, v + 1) ? 8 : 0);
            if (k === 0 || k === 15) continue;
            const [t, r, b, l] = [[u + 1, v + 0.5], [u + 1.5, v + 1], [u + 1, v + 1.5], [u + 0.5, v + 1]];
            const pairs = { 1: [l, t], 2: [t, r], 3: [l, r], 4: [r, b], 5: [l, t, r, b], 6: [t, b], 7: [l, b], 8: [b, l],
              9: [t, b], 10: [t, r, b, l], 11: [r, b], 12: [l, r], 13: [t, r], 14: [l, t] }[k];
            for (let q = 0; q < pairs.length; q += 2) lines.push(...pairs[q], ...pairs[q + 1]);
          }
        return lines;
      }
      for (let v = 0; v <= nv; v++)
        for (let u = 0, start = -1; u <= nu; u++) {
          const edge = u < nu && at(u, v - 1) !== at(u, v);
          if (edge && start < 0) start = u;
          if (!edge && start >= 0) { lines.push(start, v, u, v); start = -1; }
        }
      for (let u = 0; u <= nu; u++)
        for (let v = 0, start = -1; v <= nv; v++) {
          const edge = v < nv && at(u - 1, v) !== at(u, v);
          if (edge && start < 0) start = v;
          if (!edge && start >= 0) { lines.push(u, start, u, v); start = -1; }
        }
      return lines;
    });
  }

  // ---- from voxels to the screen ----
  let size = [0, 0];
  function camera(g) {
    const { origin, step, shape } = volume.grid;
    const extent = (a) => Math.min(step[a] * shape[a], volume.shape[a] - origin[a]) * volume.spacing[a];
    const fit = Math.min((size[0] - 2 * MARGIN) / extent(g.u), (size[1] - 2 * MARGIN) / extent(g.v));
    const view = (views[g.plane] ??= {
      zoom: 1,
      u: origin[g.u] + extent(g.u) / volume.spacing[g.u] / 2,
      v: origin[g.v] + extent(g.v) / volume.spacing[g.v] / 2,
    });
    const scale = fit * view.zoom; // CSS pixels per mm
    const [ku, kv] = [g.fu * volume.spacing[g.u] * scale, g.fv * volume.spacing[g.v] * scale];
    return {
      view, scale, ku, kv,
      x: (u) => size[0] / 2 + (u - view.u) * ku,
      y: (v) => size[1] / 2 + (v - view.v) * kv,
      u: (x) => view.u + (x - size[0] / 2) / ku,
      v: (y) => view.v + (y - size[1] / 2) / kv,
    };
  }
  function zoomAt(factor, x = size[0] / 2, y = size[1] / 2) {
    const g = layout();
    const c = camera(g);
    const [u, v] = [c.u(x), c.v(y)];
    c.view.zoom = clamp(c.view.zoom * factor, 0.5, 40);
    const after = camera(g);
    c.view.u += u - after.u(x);
    c.view.v += v - after.v(y);
    draw();
  }
  function pan(dx, dy) {
    const c = camera(layout());
    c.view.u -= dx / c.ku;
    c.view.v -= dy / c.kv;
    draw();
  }
  function resetView() {
    delete views[get("plane")];
    draw();
  }
  function pick(x, y) {
    const g = layout();
    const c = camera(g);
    const p = here();
    p[g.n] = slice(g);
    p[g.u] = Math.floor(c.u(x));
    p[g.v] = Math.floor(c.v(y));
    const inside = [g.u, g.v].every((a) => p[a] >= range(a)[0] && p[a] <= range(a)[1]);
    return inside ? p : null;
  }
  function huAt(p) {
    const { origin, step, shape } = volume.grid;
    const k = p.map((x, a) => clamp(Math.floor((x - origin[a]) / step[a]), 0, shape[a] - 1));
    const value = volume.values[(k[0] * shape[1] + k[1]) * shape[2] + k[2]];
    return volume.exact ? (value << 16) >> 16 : volume.hu[value];
  }
  function labelAt(p) {
    if (!masks.labels) return 0;
    const { origin, shape } = masks.grid;
    const k = p.map((x, a) => x - origin[a]);
    return k.some((x, a) => x < 0 || x >= shape[a]) ? 0 : masks.labels[(k[0] * shape[1] + k[1]) * shape[2] + k[2]];
  }
  // The letter(s) of the patient direction that a screen direction points to.
  function letters(axis, sign) {
    const d = [0, 1, 2].map((i) => [Math.abs(volume.directions[i][axis]), i, sign * volume.directions[i][axis]]);
    return d.filter(([size_]) => size_ > 0.3).sort((a, b) => b[0] - a[0]).map(([, i, x]) => DIRECTIONS[i][x > 0 ? 0 : 1]).join("");
  }

  // ---- drawing ----
  const draw = () => {
    if (!frame && volume) frame = requestAnimationFrame(guard(() => { frame = 0; paint(); }));
  };
  function paint() {
    const box = stage.getBoundingClientRect();
    if (!box.width || !box.height) return; // hidden: the observer calls again
    const started = performance.now();
    const ratio = window.devicePixelRatio || 1;
    size = [stage.clientWidth, stage.clientHeight];
    const [w, hgt] = size.map((x) => Math.round(x * ratio));
    if (picture.width !== w || picture.height !== hgt) [picture.width, picture.height] = [w, hgt];
    const g = layout();
    const i = slice(g);
    const c = camera(g);
    const context = picture.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, ...size);
    const place = (bitmap, grid, smooth = get("smooth")) => {
      context.save();
      context.translate(c.x(grid.origin[g.u]), c.y(grid.origin[g.v]));
      context.scale(c.ku * grid.step[g.u], c.kv * grid.step[g.v]);
      context.imageSmoothingEnabled = smooth || Math.abs(c.ku * ratio) < 1 || Math.abs(c.kv * ratio) < 1;
      context.imageSmoothingQuality = "high";
      context.drawImage(bitmap, 0, 0);
      context.restore();
    };
    place(sliceImage(g, i), volume.grid);
    if (inMasks(g, i)) paintMasks(context, g, i, c, place);
    paintMarks(context, g, i, c);
    controls(g, i);
    paintStrip(g, i);
    paintReadout(g);
    root.dataset.plane = g.plane;
    root.dataset.slice = i;
    root.dataset.drawMs = (performance.now() - started).toFixed(2);
    if (!("ready" in root.dataset)) {
      root.dataset.ready = "";
      root.dispatchEvent(new CustomEvent("lungseg-ready", { bubbles: true }));
    }
  }
  function paintMasks(context, g, i, c, place) {
    const [mode, alpha] = [get("mode"), get("opacity")];
    const both = masks.ref && masks.pred;
    if (mode === "fill" || (mode === "errors" && both)) {
      context.globalAlpha = mode === "errors" ? Math.min(1, 1.7 * alpha) : alpha;
      place(sliceFill(g, i), masks.grid, false); // what is a voxel stays a voxel
      context.globalAlpha = 1;
      return;
    }
    context.globalAlpha = Math.min(1, 2 * alpha);
    context.lineCap = "square";
    // Crisp outlines run along whole device pixels; smooth ones may lie anywhere.
    const ratio = window.devicePixelRatio || 1;
    const snap = get("smooth") ? (x) => x : (x) => (Math.round(x * ratio) + 0.5) / ratio;
    const thin = get("smooth") ? 1.4 : 1;
    // The reference is drawn wide and below, so that it stays visible where the two agree.
    for (const [bit, shown, color, width] of [[1, get("show_ref"), REF, both ? 3 : 2], [2, get("show_pred"), PRED, both ? thin : 2]]) {
      if (!shown) continue;
      const lines = sliceOutline(g, i, bit);
      const [u0, v0] = [masks.grid.origin[g.u], masks.grid.origin[g.v]];
      context.beginPath();
      for (let k = 0; k < lines.length; k += 4) {
        context.moveTo(snap(c.x(u0 + lines[k])), snap(c.y(v0 + lines[k + 1])));
        context.lineTo(snap(c.x(u0 + lines[k + 2])), snap(c.y(v0 + lines[k + 3])));
      }
      context.strokeStyle = css(color);
      context.lineWidth = width;
      context.stroke();
    }
    context.globalAlpha = 1;
  }
  function paintMarks(context, g, i, c) {
    const [w, hgt] = size;
    const pad = 9;
    context.font = `12px ${getComputedStyle(stage).fontFamily}`;
    context.lineWidth = 3;
    context.lineJoin = "round";
    const text = (s, x, y, align, base, color = "#e8edf1") => {
      [context.textAlign, context.textBaseline] = [align, base];
      context.strokeStyle = "rgba(0,0,0,.75)";
      context.strokeText(s, x, y);
      context.fillStyle = color;
      context.fillText(s, x, y);
    };
    const [low, high] = range(g.n);
    let position = "";
    if (volume.oriented && volume.scaled) {
      const p = here();
      p[g.n] = i;
      const axis = PLANES[g.plane].normal;
      const mm = toMm(p)[axis];
      position = `  ${DIRECTIONS[axis][mm < 0 ? 1 : 0]} ${Math.abs(mm).toFixed(1)} mm`;
    }
    const where = `${PLANE_NAMES[g.plane]} ${i} of ${low}–${high}${position}`;
    const title = get("title") ? `${get("title")}   ` : "";
    const long = context.measureText(title).width;
    const below = long + context.measureText(where).width > w / 2 - 24; // the letter stands in the middle
    text(title, pad, pad, "left", "top");
    text(where, pad + (below ? 0 : long), pad + (below && title ? 17 : 0), "left", "top", "#aeb9c2");
    text(`L ${signed(get("window_level"))}  W ${signed(get("window_width"))}`, w - pad, pad, "right", "top", "#aeb9c2");
    if (volume.oriented) {
      context.font = `600 13px ${getComputedStyle(stage).fontFamily}`;
      text(letters(g.u, -g.fu), pad, hgt / 2, "left", "middle");
      text(letters(g.u, g.fu), w - pad, hgt / 2, "right", "middle");
      text(letters(g.v, -g.fv), w / 2, pad, "center", "top");
      text(letters(g.v, g.fv), w / 2, hgt - pad, "center", "bottom");
      context.font = `12px ${getComputedStyle(stage).fontFamily}`;
    }
    if (volume.scaled) {
      const bar = [200, 100, 50, 20, 10, 5, 2, 1].find((mm) => mm * c.scale <= w * 0.28) ?? 1;
      const [x0, x1, y] = [pad + 0.5, pad + 0.5 + bar * c.scale, hgt - pad - 4.5];
      for (const [color, width] of [["rgba(0,0,0,.75)", 4], ["#dfe5ea", 1.5]]) {
        [context.strokeStyle, context.lineWidth] = [color, width];
        context.beginPath();
        context.moveTo(x0, y - 4); context.lineTo(x0, y); context.lineTo(x1, y); context.lineTo(x1, y - 4);
        context.stroke();
      }
      context.lineWidth = 3;
      text(`${bar} mm`, x0, y - 7, "left", "bottom");
    } else text("spacing unknown", pad, hgt - pad, "left", "bottom", "#f0c36a");
    if (!volume.oriented) text("orientation unknown", pad, hgt - pad - (volume.scaled ? 34 : 17), "left", "bottom", "#f0c36a");
    if (cross) {
      const p = here();
      const [x, y] = [Math.round(c.x(p[g.u] + 0.5)) + 0.5, Math.round(c.y(p[g.v] + 0.5)) + 0.5];
      context.strokeStyle = "rgba(255,255,255,.6)";
      context.lineWidth = 1;
      context.beginPath();
      for (const [a, b, d, e] of [[0, y, x - 8, y], [x + 8, y, w, y], [x, 0, x, y - 8], [x, y + 8, x, hgt]]) {
        context.moveTo(a, b); context.lineTo(d, e);
      }
      context.stroke();
    }
  }

  // The strip: for each slice of this plane its Dice or, with one mask, how much of it the slice holds.
  const scoreText = (d) => (d == null ? "no mask here" : `Dice ${d.toFixed(3)}`);
  function paintStrip(g, i) {
    const values = masks.scores?.[g.plane] ?? masks.areas?.[g.plane];
    timeline.dataset.strip = values ? "" : "none";
    strip.hidden = !values;
    if (!values) return;
    const ratio = window.devicePixelRatio || 1;
    const [w, hgt] = [strip.clientWidth, strip.clientHeight];
    [strip.width, strip.height] = [Math.round(w * ratio), Math.round(hgt * ratio)];
    const context = strip.getContext("2d");
    context.scale(ratio, ratio);
    const ink = getComputedStyle(root).color;
    const [low, high] = range(g.n);
    const inset = 7; // half the slider's thumb, so that bar and thumb stand one above the other
    const step = (w - 2 * inset) / (high - low + 1);
    const x = (k) => inset + (k - low) * step;
    const dice = !!masks.scores;
    const most = dice ? 1 : Math.max(1, ...values);
    for (let k = low; k <= high; k++) {
      const value = values[k];
      const gap = step > 4 ? 1 : 0;
      context.globalAlpha = 1;
      if (value == null || (!dice && value === 0)) { // neither mask: NaN, a thin grey line
        context.fillStyle = ink;
        context.globalAlpha = 0.28;
        context.fillRect(x(k), hgt - 2, Math.max(step - gap, 0.7), 1);
        continue;
      }
      const tall = Math.max(2, (value / most) * (hgt - 2));
      if (dice) context.fillStyle = BANDS.find(([low]) => value >= low)[1];
      else context.fillStyle = css(masks.ref ? REF : PRED, 0.8);
      if (dice && value === 0) { // one of the two only: a full-height mark that cannot be missed
        context.globalAlpha = 0.35;
        context.fillRect(x(k), 0, Math.max(step - gap, 0.7), hgt);
        context.globalAlpha = 1;
      }
      context.fillRect(x(k), hgt - tall, Math.max(step - gap, 0.7), tall);
    }
    context.globalAlpha = 1;
    context.fillStyle = ink;
    context.fillRect(x(i) + step / 2 - 0.75, 0, 1.5, hgt);
    scores.replaceChildren(...(dice ? [
      h("dt", {}, "this slice"), h("dd", {}, values[i] == null ? "NaN" : values[i].toFixed(3)),
      h("dt", {}, "volume, 3-D"), h("dd", {}, masks.dice == null ? "NaN" : masks.dice.toFixed(3)),
    ] : []));
  }
  function worst() {
    const values = masks.scores?.[get("plane")];
    if (!values) return;
    const [low, high] = range(layout().n);
    let best = -1;
    for (let k = low; k <= high; k++) if (values[k] != null && (best < 0 || values[k] < values[best])) best = k;
    if (best >= 0) goSlice(best);
  }
  const PATIENT = ["L", "R", "P", "A", "S", "I"];
  function paintReadout(g) {
    const p = cursor && pick(...cursor);
    if (!p) {
      readout.textContent = "Point at the picture for HU and position.";
      readout.dataset.idle = "";
      return;
    }
    delete readout.dataset.idle;
    const label = labelAt(p);
    const parts = [
      `${volume.exact ? "" : "≈ "}${signed(huAt(p))} HU`,
      `slice ${p[0]}  row ${p[1]}  col ${p[2]}`,
      volume.scaled && volume.oriented &&
        `${toMm(p).map((x, k) => `${PATIENT[2 * k + (x < 0 ? 1 : 0)]} ${Math.abs(x).toFixed(1)}`).join("  ")} mm`,
      [label & 1 && "in reference", label & 2 && "in prediction"].filter(Boolean).join(", "),
    ];
    readout.replaceChildren(...parts.filter(Boolean).map((t) => h("span", {}, t)));
  }

  // ---- controls follow the model ----
  let speaking = 0;
  function controls(g, i) {
    const [low, high] = range(g.n);
    if (slider.min !== String(low)) slider.min = low;
    if (slider.max !== String(high)) slider.max = high;
    slider.value = i;
    slider.setAttribute("aria-valuetext", `${PLANE_NAMES[g.plane]} slice ${i}`);
    planeButtons.forEach((b) => pressed(b, b.dataset.plane === g.plane));
    const [level, width] = [get("window_level"), get("window_width")];
    PRESETS.forEach(([, l, w], k) => pressed(presetButtons[k], l === level && w === width));
    if (document.activeElement !== levelInput) levelInput.value = Math.round(level);
    if (document.activeElement !== widthInput) widthInput.value = Math.round(width);
    const both = masks.ref && masks.pred;
    maskSection.hidden = !masks.ref && !masks.pred;
    scoreSection.hidden = !masks.scores;
    refLabel.hidden = !masks.ref;
    predLabel.hidden = !masks.pred;
    const mode = get("mode") === "errors" && !both ? "outline" : get("mode");
    MODES.forEach(([m], k) => {
      pressed(modeButtons[k], m === mode);
      modeButtons[k].disabled = m === "errors" && !both;
    });
    refInput.checked = get("show_ref");
    predInput.checked = get("show_pred");
    refInput.disabled = predInput.disabled = mode === "errors";
    opacity.value = get("opacity");
    legend.hidden = mode !== "errors";
    pressed(smoothButton, get("smooth"));
    pressed(helpButton, !help.hidden);
    const score = masks.scores?.[g.plane]?.[i];
    const words = `${PLANE_NAMES[g.plane]} slice ${i} of ${low} to ${high}${masks.scores ? `, ${scoreText(score)}` : ""}, ` +
      `window level ${Math.round(level)} width ${Math.round(width)}${volume.scaled ? "" : ", spacing unknown"}`;
    stage.setAttribute("aria-label", `${get("title") || "CT"}: ${words}`);
    clearTimeout(speaking);
    if (!playing) speaking = setTimeout(() => { spoken.textContent = words; }, 400);
  }
  const toggleHelp = () => { help.hidden = !help.hidden; draw(); };
  const fullScreen = () => {
    const asked = document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen?.();
    asked?.catch((error) => {
      badge.textContent = `Full screen was refused: ${error.message}`;
      badge.hidden = false;
    });
  };
  function play(on = !playing) {
    clearInterval(playing);
    playing = 0;
    if (on) {
      const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
      playing = setInterval(guard(() => {
        if (!root.isConnected) return play(false);
        const [low, high] = range(layout().n);
        goSlice(get("slice") >= high ? low : get("slice") + 1);
      }), calm ? 500 : 80);
    }
    playButton.textContent = on ? "❚❚" : "▶";
    playButton.setAttribute("aria-label", on ? "Pause" : "Play");
  }

  // ---- mouse, touch and keys ----
  const at = (e) => {
    const box = stage.getBoundingClientRect();
    return [e.clientX - box.left - stage.clientLeft, e.clientY - box.top - stage.clientTop];
  };
  let elsewhere = -1e9; // a wheel that began outside is the page's: do not seize it half-way
  const outside = (e) => {
    if (!stage.contains(e.target)) elsewhere = performance.now();
  };
  window.addEventListener("wheel", outside, { passive: true, capture: true });
  let turned = 0;
  stage.addEventListener("wheel", guard((e) => {
    if (!volume) return;
    if (performance.now() - elsewhere < 250 && !e.ctrlKey) return void (elsewhere = performance.now());
    const unit = e.deltaMode === 1 ? 33 : e.deltaMode === 2 ? 400 : 1;
    if (e.ctrlKey || e.metaKey) {
      e.preventDefault();
      return zoomAt(Math.exp(-clamp(e.deltaY * unit, -200, 200) / 250), ...at(e));
    }
    e.preventDefault();
    turned += e.deltaY * unit;
    const steps = Math.trunc(turned / 50) || (Math.abs(e.deltaY * unit) >= 30 ? Math.sign(e.deltaY) : 0);
    if (!steps) return;
    turned = 0;
    const g = layout();
    goSlice(get("slice") - Math.sign(steps) * Math.min(Math.abs(steps), 3) * headward(g));
  }), { passive: false });

  const pointers = new Map();
  let gesture = null;
  stage.addEventListener("pointerdown", guard((e) => {
    if (!volume || e.target.closest(".lsv-help")) return;
    stage.focus({ preventScroll: true });
    pointers.set(e.pointerId, at(e));
    stage.setPointerCapture(e.pointerId);
    const [x, y] = at(e);
    const kind = e.pointerType === "touch" ? "scroll" : e.shiftKey || e.button === 1 ? "pan" : e.button === 2 ? "zoom" : "window";
    gesture = { kind, x, y, x0: x, y0: y, moved: false, level: get("window_level"), width: get("window_width"), slice: get("slice") };
    if (pointers.size === 2) gesture.kind = "pinch";
    if (e.button === 1) e.preventDefault();
  }));
  stage.addEventListener("contextmenu", (e) => e.preventDefault());
  stage.addEventListener("pointermove", guard((e) => {
    if (!volume) return;
    const [x, y] = at(e);
    cursor = [x, y];
    if (!gesture || !pointers.has(e.pointerId)) return draw();
    if (Math.hypot(x - gesture.x0, y - gesture.y0) > 3) gesture.moved = true;
    if (gesture.kind === "pinch") {
      const before = [...pointers.values()];
      pointers.set(e.pointerId, [x, y]);
      const after = [...pointers.values()];
      const apart = (p) => Math.hypot(p[0][0] - p[1][0], p[0][1] - p[1][1]) || 1;
      const middle = (p) => [(p[0][0] + p[1][0]) / 2, (p[0][1] + p[1][1]) / 2];
      const [m0, m1] = [middle(before), middle(after)];
      pan(m1[0] - m0[0], m1[1] - m0[1]);
      return zoomAt(apart(after) / apart(before), ...m1);
    }
    pointers.set(e.pointerId, [x, y]);
    const [dx, dy] = [x - gesture.x, y - gesture.y];
    [gesture.x, gesture.y] = [x, y];
    if (!gesture.moved) return;
    if (gesture.kind === "pan") return pan(dx, dy);
    if (gesture.kind === "zoom") return zoomAt(Math.exp(-dy / 150), gesture.x0, gesture.y0);
    if (gesture.kind === "scroll") return goSlice(gesture.slice + Math.round((x - gesture.x0) / 5));
    set({
      window_width: clamp(Math.round(gesture.width + (x - gesture.x0) * 4), 1, 6000),
      window_level: clamp(Math.round(gesture.level + (y - gesture.y0) * 3), -1500, 3500),
    });
  }));
  const release = guard((e) => {
    if (gesture && !gesture.moved && e.type === "pointerup" && gesture.kind !== "pinch" && e.button === 0) {
      const p = pick(...at(e));
      if (p) set({ point: p });
    }
    pointers.delete(e.pointerId);
    gesture = null;
  });
  stage.addEventListener("pointerup", release);
  stage.addEventListener("pointercancel", release);
  stage.addEventListener("pointerleave", guard(() => { cursor = null; draw(); }));
  stage.addEventListener("dblclick", guard(() => resetView()));
  const stripTo = guard((e) => {
    if (!volume || (e.type === "pointermove" && !e.buttons)) return;
    if (e.type === "pointerdown") {
      e.preventDefault();
      stage.focus({ preventScroll: true }); // so that the keys go on from here
    }
    const box = strip.getBoundingClientRect();
    const [low, high] = range(layout().n);
    goSlice(low + Math.floor(((e.clientX - box.left - 7) / (box.width - 14)) * (high - low + 1)));
  });
  strip.addEventListener("pointerdown", stripTo);
  strip.addEventListener("pointermove", stripTo);
  strip.addEventListener("pointermove", guard((e) => {
    if (!volume) return;
    const box = strip.getBoundingClientRect();
    const g = layout();
    const [low, high] = range(g.n);
    const k = clamp(low + Math.floor(((e.clientX - box.left - 7) / (box.width - 14)) * (high - low + 1)), low, high);
    if (masks.scores) strip.title = `slice ${k}: ${scoreText(masks.scores[g.plane][k])}`;
  }));

  const cycle = () => {
    const usable = MODES.map(([m]) => m).filter((m) => m !== "errors" || (masks.ref && masks.pred));
    set({ mode: usable[(usable.indexOf(get("mode")) + 1) % usable.length] });
  };
  const preset = (k) => () => set({ window_level: PRESETS[k][1], window_width: PRESETS[k][2] });
  const by = (d) => () => goSlice(get("slice") + d * headward(layout()));
  const keys = {
    a: () => goPlane("axial"), c: () => goPlane("coronal"), s: () => goPlane("sagittal"),
    1: preset(0), 2: preset(1), 3: preset(2), 4: preset(3),
    ArrowUp: by(1), ArrowDown: by(-1), PageUp: by(10), PageDown: by(-10),
    ArrowRight: () => goSlice(get("slice") + 1), ArrowLeft: () => goSlice(get("slice") - 1),
    Home: () => goSlice(range(layout().n)[0]), End: () => goSlice(range(layout().n)[1]),
    m: cycle, r: () => set({ show_ref: !get("show_ref") }), p: () => set({ show_pred: !get("show_pred") }),
    "[": () => set({ opacity: clamp(Math.round((get("opacity") - 0.1) * 20) / 20, 0, 1) }),
    "]": () => set({ opacity: clamp(Math.round((get("opacity") + 0.1) * 20) / 20, 0, 1) }),
    i: () => set({ smooth: !get("smooth") }), x: () => { cross = !cross; draw(); }, w: worst,
    "+": () => zoomAt(1.25), "=": () => zoomAt(1.25), "-": () => zoomAt(0.8), 0: () => resetView(),
    " ": () => play(), f: fullScreen, "?": toggleHelp, Escape: () => { help.hidden = true; draw(); },
  };
  root.addEventListener("keydown", guard((e) => {
    if (!volume || e.ctrlKey || e.metaKey || e.altKey) return;
    const field = e.target.closest("input, button");
    if (field?.type === "number" || (field && e.key === " ")) return;
    if (field?.type === "range" && /^(Arrow|Page|Home|End)/.test(e.key)) return;
    const action = keys[e.key] ?? keys[e.key.toLowerCase()];
    if (!action) return;
    e.preventDefault();
    e.stopPropagation();
    action();
  }));

  // ---- life ----
  const onState = () => draw();
  for (const k of STATE) model.on(`change:${k}`, onState);
  model.on("change:title", onState);
  async function loadVolume() {
    const trait = get("_volume");
    if (!trait?.data) return void model.send?.({ kind: "volume" }); // shown inside another widget: ask for it
    volume = await once(decodeVolume, trait);
    for (const k of Object.keys(cache)) delete cache[k];
    badge.textContent = volume.note ?? "";
    badge.hidden = !volume.note;
    draw();
  }
  let revision = 0;
  async function loadMasks() {
    const trait = get("_masks");
    if (!trait?.grid) return;
    const mine = ++revision;
    const next = await once(decodeMasks, trait);
    if (mine !== revision) return; // a newer one came while this was unpacked
    masks = { ...next, id: mine };
    draw();
  }
  const load = (f) => () => f().catch(fail);
  const [onVolume, onMasks] = [load(loadVolume), load(loadMasks)];
  model.on("change:_volume", onVolume);
  model.on("change:_masks", onMasks);
  const sized = new ResizeObserver(onState);
  sized.observe(stage);
  const themed = new MutationObserver(onState);
  for (const e of [document.documentElement, document.body]) themed.observe(e, { attributes: true });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", onState);
  onMasks();
  onVolume();
  return () => {
    play(false);
    cancelAnimationFrame(frame);
    clearTimeout(speaking);
    window.removeEventListener("wheel", outside, { capture: true });
    dark.removeEventListener("change", onState);
    sized.disconnect();
    themed.disconnect();
    for (const k of [...STATE, "title"]) model.off(`change:${k}`, onState);
    model.off("change:_volume", onVolume);
    model.off("change:_masks", onMasks);
  };
}

// ---- the static page: a model without a kernel --------------------------------------------------------------

function mountStatic(id) {
  // Two equal viewers on a page have equal ids: each script takes the first that nobody has taken.
  const host = document.querySelector(`[data-lungseg-viewer="${id}"]:not([data-mounted])`);
  if (!host) return;
  host.dataset.mounted = "";
  try {
    const state = JSON.parse(host.querySelector("script[type='application/json']").textContent);
    const listeners = {};
    const model = {
      get: (k) => state[k],
      set: (k, v) => {
        if (state[k] === v) return;
        state[k] = v;
        for (const f of listeners[`change:${k}`] ?? []) f();
      },
      save_changes: () => {},
      on: (event, f) => (listeners[event] ??= new Set()).add(f),
      off: (event, f) => listeners[event]?.delete(f),
    };
    render({ model, el: host });
  } catch (error) {
    const p = document.createElement("p");
    p.setAttribute("role", "alert");
    p.className = "lsv-error";
    p.textContent = `The viewer stopped: ${error.message}`;
    host.append(p);
  }
}

export default { render };
