// The explorer of arrays. The kernel sends numbers; everything about colours, zoom and hovering happens here.
const { h, number, bytes } = wb;

const KINDS = { image: "Pictures", line: "Curves", histogram: "Histogram", table: "Table" };
const MAPS = { gray: "grey", cividis: "cividis", viridis: "viridis", magma: "magma", RdBu_r: "blue – red", PuOr_r: "purple – orange" };
const SCALES = { shared: "shared by the page", each: "each by itself", full: "full range" };
const NEXT_FRAME = 90;
const BLINK = 700;

function render({ model, el }) {
  const palette = model.get("palette"), maps = model.get("color_maps");
  let spec = model.get("spec"), view = structuredClone(spec.view), frame = null, values = null, over = null;
  let sequence = 0, waiting = false, dirty = null, playing = null, keep = null, mode = "side", blink = 0, blinker = null;
  let look = { map: "", overlayMap: "magma", opacity: 0.75 };
  const chosen = {}; // dims as they were last placed, for when the kind changes back
  let zoom = null; // rows and columns on view, as in view.window, but fractions are allowed: [top, bottom, left, right]

  // ------------------------------------------------------------------------------------------------- parts of the page
  const head = h("div", { class: "wbx-head" }), fields = h("div", { class: "wbx-fields" });
  const sliders = h("div", { class: "wbx-sliders", role: "group", "aria-label": "positions" });
  const main = h("div", { class: "wbx-main" }), side = h("div", { class: "wbx-side" });
  const stage = h("div", { class: "wbx-stage" }, main, side);
  const hover = h("span", { class: "wbx-hover", "aria-live": "polite" }), read = h("span", { class: "wbx-read" });
  const trouble = h("div", { class: "wb-error wb-text", role: "alert", hidden: true });
  const code = h("pre", {}), copier = h("button", { class: "wb-button wb-quiet", type: "button", on: { click: () => wb.copy(code.textContent, copier) } }, "Copy");
  el.classList.add("wbx");
  el.append(head, fields, sliders, trouble, stage, h("div", { class: "wbx-status" }, hover, read), h("div", { class: "wbx-code" }, code, copier));
  const plot = wb.chart(palette, { height: 340, label: "curves of the array" });
  let tiles = [];

  // ------------------------------------------------------------------------------------------- asking and being answered
  function ask(message) {
    if (waiting) { dirty = message; return; }
    waiting = true;
    main.classList.add("wbx-waiting");
    model.send({ ...message, seq: ++sequence });
  }
  const show = (changes = {}) => { Object.assign(view, changes); ask({ view: structuredClone(view) }); };

  model.on("msg:custom", (answer, buffers) => {
    if (answer.seq !== sequence) return; // another view of this widget asked
    waiting = false;
    main.classList.remove("wbx-waiting");
    el.dataset.answered = answer.seq;
    trouble.hidden = !answer.error;
    trouble.textContent = answer.error ?? "";
    if (!answer.error) {
      if (answer.spec) { spec = answer.spec; zoom = keep = null; mode = "side"; }
      view = answer.view;
      frame = answer;
      if (frame.kind === "image") {
        values = frame.type === "uint8" ? bytesOf(buffers[0]) : floatsOf(buffers[0]);
        over = frame.overlay ? (frame.overlay.type === "uint8" ? bytesOf(buffers[1]) : floatsOf(buffers[1])) : null;
        if (!look.map || answer.spec) look.map = chosenMap();
      }
      if (answer.spec || !head.childElementCount || fields.dataset.kind !== placement(view) + frame.page) controls();
      else settle();
      draw();
    }
    if (dirty) { const message = dirty; dirty = null; ask(message); }
  });
  const bytesOf = (part) => new Uint8Array(part.buffer, part.byteOffset, part.byteLength);
  const floatsOf = (part) => (part.byteOffset % 4 ? new Float32Array(part.buffer.slice(part.byteOffset, part.byteOffset + part.byteLength)) : new Float32Array(part.buffer, part.byteOffset, part.byteLength / 4));
  const placement = (v) => JSON.stringify([v.kind, v.x, v.y, v.color, v.facet, v.overlay, v.scale]);

  function chosenMap() {
    const [low, high] = frame.limits[0];
    if (low < 0 && high > 0) return "RdBu_r";
    return frame.square ? "gray" : "cividis";
  }

  // ---------------------------------------------------------------------------------------------------------- controls
  function choice(label, options, value, change, props = {}) {
    const select = h("select", { class: "wb-input", ...props, on: { change: () => change(select.value || null) } },
      ...options.map(([key, text]) => h("option", { value: key }, text)));
    select.value = value ?? "";
    return h("label", { class: "wbx-field" }, label, select);
  }

  function controls() {
    fields.dataset.kind = placement(view) + frame.page;
    const names = spec.dims.map((dim) => dim.name), size = Object.fromEntries(spec.dims.map((dim) => [dim.name, dim.size]));
    const array = choice("array", spec.arrays.map((item) => [item.name, `${item.name}  (${item.shape})`]), spec.array, (name) => ask({ array: name }));
    const kinds = h("div", { class: "wbx-segments", role: "radiogroup", "aria-label": "show as" },
      ...Object.entries(KINDS).map(([kind, text]) => {
        const off = (kind !== "table" && !spec.numeric) || (kind === "image" && names.length < 2) || (kind !== "table" && !names.length);
        const input = h("input", { type: "radio", name: `kind-${model.model_id ?? "x"}`, value: kind, checked: view.kind === kind, disabled: off, on: { change: () => { zoom = null; for (const place of ["x", "y", "color", "facet"]) if (view[place]) chosen[place] = view[place]; show({ ...chosen, kind, window: null, start: 0 }); } } });
        return h("label", {}, input, text);
      }));
    const facts = [spec.dims.map((dim) => `${dim.name} ${dim.size.toLocaleString("en")}`).join(" × ") || "one number", spec.dtype + (spec.units ? ` [${spec.units}]` : ""), bytes(spec.bytes)];
    head.replaceChildren(array, kinds, h("span", { class: "wbx-facts wb-text", title: `chunks of ${spec.chunk.join(" × ")}${spec.shard.length ? `, in files of ${spec.shard.join(" × ")}` : ""}` },
      facts.join(" · "), spec.description ? h("div", {}, spec.description) : null));

    const set = (place) => (dim) => {
      const next = { [place]: dim, window: null, start: 0 };
      for (const other of ["x", "y", "color", "facet"]) if (other !== place && dim && view[other] === dim) next[other] = view[place];
      zoom = null;
      show(next);
    };
    const dims = (filter = () => true) => names.filter(filter).map((name) => [name, `${name} (${size[name].toLocaleString("en")})`]);
    const none = [["", "–"]];
    const wanted = {
      image: [["across (x)", "x", dims()], ["down (y)", "y", dims()], ["colour", "color", [...none, ...dims((n) => size[n] === 3 || size[n] === 4)]], ["one picture per", "facet", [...none, ...dims()]]],
      line: [["along x", "x", dims()], ["one curve per", "color", [...none, ...dims()]]],
      histogram: [["values along", "x", dims()], ["and along", "y", [...none, ...dims()]], ["one histogram per", "color", [...none, ...dims()]]],
      table: [["rows", "y", [...none, ...dims()]], ["columns", "x", [...none, ...dims()]]],
    }[view.kind];
    fields.replaceChildren(...wanted.filter(([, , options]) => options.some(([key]) => key)).map(([label, place, options]) => choice(label, options, view[place], set(place), { "aria-label": label, "data-place": place })));
    if (frame.kind === "image") {
      if (view.facet) fields.append(choice("captions", [...none, ...frame.caption_choices.map((n) => [n, n])], view.captions, (captions) => show({ captions }), { "data-place": "captions" }));
      if (frame.overlays.length) fields.append(choice("overlay", [...none, ...frame.overlays.map((n) => [n, n])], view.overlay, (overlay) => show({ overlay }), { "data-place": "overlay" }));
      if (view.facet) fields.append(choice("on a page", [1, 4, 8, 12, 24, 48].map((n) => [n, String(n)]), view.count, (n) => show({ count: Number(n) }), { "data-place": "count" }));
    }
    makeSliders(size);
    makeSide();
  }

  function makeSliders(size) {
    stop();
    const rows = [];
    const paged = view.kind === "image" ? view.facet : view.kind === "table" ? view.y : null;
    if (paged && pages(size[paged]) > 1) rows.push([paged, true]);
    for (const dim of spec.dims) if (dim.name in view.index && dim.size > 1) rows.push([dim.name, false]);
    sliders.replaceChildren(...rows.flatMap(([name, page]) => {
      const most = page ? pages(size[name]) - 1 : size[name] - 1;
      const at = () => (page ? Math.ceil(view.start / step()) : view.index[name]);
      const input = h("input", { type: "range", min: 0, max: most, value: at(), "aria-label": page ? `page of ${name}` : name, "data-dim": name,
        on: { input: () => { move(name, page, Number(input.value)); }, change: () => move(name, page, Number(input.value)) } });
      input.value = at();
      const play = h("button", { class: "wb-button wbx-play", type: "button", "aria-label": `play ${name}`, "aria-pressed": "false", on: { click: () => (playing === name ? stop() : start(name, page, most)) } }, "▶");
      const where = h("span", { class: "wbx-where wb-text", "data-where": name });
      return [h("span", {}, page ? `${name}, page` : name), play, input, where];
    }));
    settle();
  }
  const step = () => Math.max(1, frame.page);
  const sizeOf = (name) => spec.dims.find((dim) => dim.name === name)?.size ?? 0;
  const pages = (many) => Math.ceil(many / step());

  function move(name, page, to) {
    if (page) show({ start: to * step() });
    else show({ index: { ...view.index, [name]: to } });
  }
  function settle() {
    for (const where of sliders.querySelectorAll("[data-where]")) {
      const name = where.dataset.where, input = sliders.querySelector(`input[data-dim="${CSS.escape(name)}"]`);
      const paged = !(name in view.index), many = sizeOf(name);
      const at = paged ? Math.ceil(view.start / step()) : view.index[name];
      if (document.activeElement !== input && !waiting && !dirty) input.value = at;
      const last = paged ? Math.min(many, view.start + (frame.kind === "image" ? frame.count : frame.page)) : 0;
      where.textContent = paged ? `${view.start.toLocaleString("en")} – ${(last - 1).toLocaleString("en")} of ${many.toLocaleString("en")}` : `${at.toLocaleString("en")} of ${many.toLocaleString("en")}${frame.places[name] ? `: ${frame.places[name]}` : ""}`;
      input.setAttribute("aria-valuetext", where.textContent);
    }
  }
  function start(name, page, most) {
    stop();
    playing = name;
    const button = sliders.querySelector(`[aria-label="${CSS.escape(`play ${name}`)}"]`);
    button.textContent = "❚❚";
    button.setAttribute("aria-pressed", "true");
    const input = sliders.querySelector(`input[data-dim="${CSS.escape(name)}"]`);
    const turn = () => {
      if (playing !== name) return;
      if (!waiting) { input.value = (Number(input.value) + 1) % (most + 1); move(name, page, Number(input.value)); }
      setTimeout(turn, NEXT_FRAME);
    };
    turn();
  }
  function stop() {
    if (!playing) return;
    const button = sliders.querySelector(`[aria-label="${CSS.escape(`play ${playing}`)}"]`);
    if (button) { button.textContent = "▶"; button.setAttribute("aria-pressed", "false"); }
    playing = null;
  }

  const ramp = h("canvas", { class: "wbx-ramp", width: 256, height: 1, role: "img" }), ends = h("div", { class: "wbx-ends" });
  function makeSide() {
    stage.classList.toggle("wbx-plain", frame.kind !== "image" && frame.kind !== "histogram");
    if (frame.kind !== "image") {
      side.replaceChildren(...(frame.kind === "histogram" ? [clip()] : []));
      return;
    }
    const parts = [];
    if (frame.channels === 1) parts.push(choice("colours", Object.entries(MAPS), look.map, (map) => { look.map = map; draw(); }, { "data-place": "map" }));
    parts.push(h("div", {}, ramp, ends));
    parts.push(choice("scale", Object.entries(SCALES), view.scale, (scale) => { keep = null; show({ scale }); }, { "data-place": "scale" }), clip());
    const hold = h("input", { type: "checkbox", checked: keep !== null, on: { change: () => { keep = hold.checked ? frame.limits[0] : null; draw(); } } });
    parts.push(h("label", { class: "wb-bar" }, hold, "hold this scale"));
    if (frame.overlay) {
      const slider = h("input", { type: "range", min: 0, max: 100, value: look.opacity * 100, "aria-label": "opacity of the overlay", on: { input: () => { look.opacity = slider.value / 100; draw(); } } });
      parts.push(h("label", { class: "wbx-field" }, `opacity of ${frame.overlay.name}`, slider));
      if (!frame.overlay.mask) parts.push(choice("its colours", Object.entries(MAPS), look.overlayMap, (map) => { look.overlayMap = map; draw(); }));
    }
    if (view.facet && frame.count > 1) parts.push(choice("compare", [["side", "side by side"], ["difference", "difference to the first"], ["blink", "blink"]], mode, (next) => { mode = next; draw(true); }, { "data-place": "mode" }));
    const zoomed = h("button", { class: "wb-button", type: "button", on: { click: () => setZoom(null) } }, "Whole picture");
    const png = h("button", { class: "wb-button", type: "button", on: { click: savePng } }, "Save PNG");
    parts.push(h("div", { class: "wb-bar" }, png, zoomed), h("div", { class: "wbx-note" }, "Wheel or + and − zoom, drag or arrow keys move."));
    side.replaceChildren(...parts);
  }
  function clip() {
    return choice("cut off at each end", [[0, "nothing"], [0.5, "0.5 %"], [1, "1 %"], [2, "2 %"], [5, "5 %"]], view.clip, (p) => { keep = null; show({ clip: Number(p) }); }, { "data-place": "clip" });
  }

  // ----------------------------------------------------------------------------------------------------------- drawing
  function draw(afresh = false) {
    code.textContent = frame.code;
    const ratio = frame.shown ? frame.read / frame.shown : 0;
    read.textContent = `read ${bytes(frame.read)} for ${bytes(frame.shown ?? 0)} on view${ratio > 4 ? " (whole chunks are read)" : ""}; ${bytes(frame.read_in_all)} in all`;
    clearInterval(blinker);
    blinker = null;
    if (frame.kind === "image") pictures(afresh);
    else if (frame.kind === "line" || frame.kind === "histogram") curves();
    else if (frame.kind === "table") table();
    else main.replaceChildren(h("div", { class: "wb-empty" }, h("div", { class: "wb-title" }, "This array has no entries"), "One of its dims has the size 0."));
  }

  function curves() {
    const notes = [...frame.notes];
    if (frame.kind === "histogram" && frame.mean !== null) notes.unshift(`${frame.total.toLocaleString("en")} entries, mean ${number(frame.mean)}, standard deviation ${number(frame.deviation)}.`);
    if (!main.contains(plot.el)) main.replaceChildren(plot.el, h("div", { class: "wbx-note" }));
    main.lastChild.textContent = notes.join(" ");
    plot.update(frame, true);
    hover.textContent = "";
  }

  function table() {
    const rows = frame.rows.map((row, i) => h("tr", {}, h("th", { scope: "row" }, frame.row_labels[i]), ...row.map((cell) => h("td", { class: frame.numeric ? "wb-number" : "wb-text" }, cell))));
    const names = frame.column_dim ? frame.column_labels : [spec.array];
    const top = h("tr", {}, h("th", {}, [frame.row_dim, frame.column_dim].filter(Boolean).join(" \\ ")), ...names.map((name) => h("th", { scope: "col", class: frame.numeric ? "wb-number" : null }, name)));
    main.replaceChildren(h("div", { class: "wbx-cells" }, h("table", { class: "wb-table" }, h("thead", {}, top), h("tbody", {}, ...rows))));
    hover.textContent = "";
  }

  const limitsOf = (i) => (mode === "difference" && i > 0 ? differenceLimits() : keep ?? frame.limits[Math.min(i, frame.limits.length - 1)]);
  let spanOf = { of: null };
  function differenceLimits() {
    if (spanOf.of !== values) {
      let most = 0;
      const size = frame.width * frame.height;
      for (let i = 1; i < frame.count; i++) for (let p = 0; p < size; p++) { const d = Math.abs(gray(i, p) - gray(0, p)); if (d > most) most = d; }
      spanOf = { of: values, most: most || 1 };
    }
    return [-spanOf.most, spanOf.most];
  }
  function gray(i, p) {
    const c = frame.channels, at = (i * frame.width * frame.height + p) * c;
    if (c === 1) return values[at];
    return (values[at] + values[at + 1] + values[at + 2]) / 3;
  }

  /** Picture number i as colours. */
  function paint(i) {
    const { width, height, channels } = frame, size = width * height, image = new ImageData(width, height), out = new Uint32Array(image.data.buffer);
    const different = mode === "difference" && i > 0 && frame.count > 1;
    const [low, high] = limitsOf(i), factor = 255 / (high - low || 1);
    if (channels === 1 || different) {
      const lut = packed(maps[different ? "RdBu_r" : look.map]);
      const from = i * size;
      for (let p = 0; p < size; p++) {
        const v = different ? gray(i, p) - gray(0, p) : values[from + p];
        if (v !== v) continue; // no value: transparent
        const level = (v - low) * factor;
        out[p] = lut[level <= 0 ? 0 : level >= 255 ? 255 : level | 0];
      }
    } else {
      const from = i * size * 3;
      const level = (v) => { const l = (v - low) * factor; return l <= 0 ? 0 : l >= 255 ? 255 : Math.round(l); };
      for (let p = 0, at = from; p < size; p++, at += 3) {
        if (values[at] !== values[at]) continue;
        out[p] = 0xff000000 | (level(values[at + 2]) << 16) | (level(values[at + 1]) << 8) | level(values[at]);
      }
    }
    if (over) blend(i, image.data);
    return image;
  }
  const packedMaps = new Map();
  function packed(map) {
    if (!packedMaps.has(map)) packedMaps.set(map, Uint32Array.from({ length: 256 }, (_, i) => 0xff000000 | (map[3 * i + 2] << 16) | (map[3 * i + 1] << 8) | map[3 * i]));
    return packedMaps.get(map);
  }
  function blend(i, data) {
    const size = frame.width * frame.height, from = i * size, { mask, limits } = frame.overlay, map = maps[look.overlayMap];
    const both = look.overlayMap === "RdBu_r" || look.overlayMap === "PuOr_r";
    const classes = palette.light.map((text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)));
    for (let p = 0; p < size; p++) {
      const v = over[from + p];
      if (v !== v || (mask && v === 0)) continue;
      let color, alpha = look.opacity;
      if (mask) color = classes[(v - 1) % classes.length];
      else { // faint where there is little to see, so that the picture stays visible
        const level = Math.max(0, Math.min(255, ((v - limits[0]) / (limits[1] - limits[0] || 1)) * 255 | 0));
        color = [map[3 * level], map[3 * level + 1], map[3 * level + 2]];
        alpha *= both ? Math.abs(level - 127.5) / 127.5 : level / 255;
      }
      const at = 4 * p, under = data[at + 3] / 255;
      for (let c = 0; c < 3; c++) data[at + c] = data[at + c] * under * (1 - alpha) + color[c] * alpha;
      data[at + 3] = 255 * Math.max(under, alpha);
    }
  }

  const whole = () => [0, sizeOf(view.y), 0, sizeOf(view.x)];
  function pictures(afresh) {
    const count = mode === "blink" ? 1 : frame.count;
    const [top, bottom, left, right] = whole(), tall = bottom - top, wide = right - left;
    const room = Math.max(200, main.clientWidth || 640), shape = frame.square ? tall / wide : Math.min(1, Math.max(0.25, tall / wide));
    const columns = count === 1 ? 1 : Math.min(count, Math.max(2, Math.floor(room / (count <= 4 ? 250 : count <= 8 ? 190 : 120))));
    const fit = Math.floor((room - 10 * (columns - 1)) / columns);
    const side = Math.round(Math.min(fit, count === 1 ? Math.min(560, 480 / shape) : count <= 4 ? 300 : 220));
    const key = JSON.stringify([count, side, shape, view.x, view.y]);
    if (afresh || main.dataset.key !== key || !tiles.length || !main.contains(tiles[0].canvas)) {
      main.dataset.key = key;
      tiles = Array.from({ length: count }, (_, i) => tile(i, side, Math.max(24, Math.round(side * shape))));
      main.replaceChildren(h("div", { class: "wbx-tiles" }, ...tiles.map((item) => item.el)), ...(frame.step > 1 ? [h("div", { class: "wbx-note" })] : []));
    }
    const note = main.querySelector(".wbx-note");
    if (note) note.textContent = frame.step > 1 ? `One pixel in ${frame.step} along each side is shown; zoom in to see all.` : "";
    tiles.forEach((item, i) => { item.number = mode === "blink" ? blink % frame.count : i; item.paint(); });
    if (mode === "blink" && frame.count > 1) blinker = setInterval(() => { blink += 1; tiles[0].number = blink % frame.count; tiles[0].paint(); }, BLINK);
    drawRamp();
  }

  function drawRamp() {
    const different = mode === "difference" && frame.count > 1;
    ramp.parentElement.hidden = frame.channels !== 1 && !different;
    if (ramp.parentElement.hidden) return;
    const image = new ImageData(256, 1);
    new Uint32Array(image.data.buffer).set(packed(maps[different ? "RdBu_r" : look.map]));
    ramp.getContext("2d").putImageData(image, 0, 0);
    const [low, high] = different ? differenceLimits() : keep ?? frame.limits[0];
    const own = !different && view.scale === "each" && !keep && frame.count > 1;
    ends.replaceChildren(...(own ? ["lowest of each", "highest of each"] : [number(low, 3), number(high, 3)]).map((text) => h("span", {}, text)));
    ramp.setAttribute("aria-label", `colours from ${number(low, 3)} to ${number(high, 3)}`);
  }

  function tile(first, width, height) {
    const ratio = Math.min(2, devicePixelRatio || 1);
    const canvas = h("canvas", { width: Math.round(width * ratio), height: Math.round(height * ratio), tabindex: 0, role: "img", style: { width: `${width}px`, height: `${height}px` } });
    const caption = h("figcaption", { class: "wb-text", style: { width: `${width}px` } });
    const item = { el: h("figure", { class: "wbx-tile" }, canvas, caption), canvas, number: first };
    const source = document.createElement("canvas");
    let pixels = null;
    item.paint = () => {
      source.width = frame.width;
      source.height = frame.height;
      source.getContext("2d").putImageData(paint(item.number), 0, 0);
      pixels = source;
      const title = frame.titles[item.number] ?? "", more = frame.captions?.[item.number];
      const against = mode === "difference" && item.number > 0 ? `${title} − ${frame.titles[0]}` : title;
      caption.replaceChildren(...(against ? [h("b", {}, against)] : []), ...(more !== undefined ? [h("div", {}, `${view.captions}: ${more}`)] : []));
      canvas.setAttribute("aria-label", [spec.array, against, more].filter(Boolean).join(", "));
      item.place();
    };
    item.place = () => {
      if (!pixels) return;
      const pen = canvas.getContext("2d"), seen = zoom ?? whole(), [top, , left] = frame.extent, s = frame.step;
      pen.clearRect(0, 0, canvas.width, canvas.height);
      pen.imageSmoothingEnabled = false;
      const kx = canvas.width / (seen[3] - seen[2]), ky = canvas.height / (seen[1] - seen[0]);
      pen.drawImage(pixels, (left - seen[2]) * kx, (top - seen[0]) * ky, frame.width * s * kx, frame.height * s * ky);
    };
    item.at = (event) => {
      const box = canvas.getBoundingClientRect(), seen = zoom ?? whole();
      return [seen[0] + ((event.clientY - box.top) / box.height) * (seen[1] - seen[0]), seen[2] + ((event.clientX - box.left) / box.width) * (seen[3] - seen[2])];
    };
    let grip = null;
    canvas.addEventListener("pointerdown", (event) => { grip = { at: item.at(event), zoom: zoom ?? whole() }; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointerup", () => (grip = null));
    canvas.addEventListener("pointermove", (event) => {
      if (grip && zoom) { const now = item.at(event); shift(grip.at[0] - now[0], grip.at[1] - now[1]); }
      tell(item, item.at(event));
    });
    canvas.addEventListener("pointerleave", () => (hover.textContent = ""));
    canvas.addEventListener("dblclick", () => setZoom(null));
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoomBy(event.deltaY < 0 ? 1.25 : 0.8, item.at(event)); }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const seen = zoom ?? whole(), stepY = (seen[1] - seen[0]) / 10, stepX = (seen[3] - seen[2]) / 10;
      const acts = { "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(0.8), 0: () => setZoom(null), ArrowUp: () => shift(-stepY, 0), ArrowDown: () => shift(stepY, 0), ArrowLeft: () => shift(0, -stepX), ArrowRight: () => shift(0, stepX) };
      if (acts[event.key]) { acts[event.key](); event.preventDefault(); event.stopPropagation(); }
    });
    return item;
  }

  function setZoom(next) {
    zoom = next;
    for (const item of tiles) item.place();
    const full = whole(), large = Math.max(full[1], full[3]) > 1024;
    if (!large) return;
    clearTimeout(setZoom.later); // a finer grain, once the zoom stands still
    setZoom.later = setTimeout(() => show({ window: zoom ? zoom.map((v, i) => (i % 2 ? Math.ceil(v) : Math.floor(v))) : null }), 120);
  }
  function zoomBy(factor, at) {
    const full = whole(), seen = zoom ?? full, centre = at ?? [(seen[0] + seen[1]) / 2, (seen[2] + seen[3]) / 2];
    const next = [0, 2].flatMap((i) => { const c = centre[i / 2]; return [c - (c - seen[i]) / factor, c + (seen[i + 1] - c) / factor]; });
    if (next[1] - next[0] >= full[1] && next[3] - next[2] >= full[3]) { setZoom(null); return; }
    if (next[1] - next[0] < 4 && next[3] - next[2] < 4) return;
    setZoom(inside(next));
  }
  function shift(dy, dx) { if (zoom) setZoom(inside([zoom[0] + dy, zoom[1] + dy, zoom[2] + dx, zoom[3] + dx])); }
  function inside(z) {
    const full = whole(), fitted = [...z];
    for (const i of [0, 2]) {
      const span = Math.min(z[i + 1] - z[i], full[i + 1]);
      fitted[i] = Math.max(0, Math.min(full[i + 1] - span, z[i]));
      fitted[i + 1] = fitted[i] + span;
    }
    return fitted;
  }

  function tell(item, [row, column]) {
    const [top, , left] = frame.extent, r = Math.floor((Math.floor(row) - top) / frame.step), c = Math.floor((Math.floor(column) - left) / frame.step);
    if (r < 0 || c < 0 || r >= frame.height || c >= frame.width) { hover.textContent = ""; return; }
    const p = r * frame.width + c, size = frame.width * frame.height, i = item.number;
    const own = frame.channels === 1 ? number(values[i * size + p], 5) : [0, 1, 2].map((k) => number(values[(i * size + p) * 3 + k], 4)).join(", ");
    const parts = [frame.titles[i], `${view.y} ${top + r * frame.step}`, `${view.x} ${left + c * frame.step}`].filter(Boolean);
    const more = [];
    if (mode === "difference" && i > 0) more.push(`difference ${number(gray(i, p) - gray(0, p), 4)}`);
    if (over) more.push(`${frame.overlay.name} ${number(over[i * size + p], 4)}`);
    hover.replaceChildren(parts.join(" · "), ": ", h("b", {}, own), more.length ? ` · ${more.join(" · ")}` : "");
  }

  function savePng() {
    const gap = 10, text = 20, each = tiles.map((item) => item.canvas), columns = Math.max(1, Math.round(Math.sqrt(each.length * 1.5)));
    const w = each[0].width, t = each[0].height, rows = Math.ceil(each.length / columns);
    const sheet = h("canvas", { width: Math.min(columns, each.length) * (w + gap) + gap, height: rows * (t + gap + text) + gap }), pen = sheet.getContext("2d");
    pen.fillStyle = "#ffffff";
    pen.fillRect(0, 0, sheet.width, sheet.height);
    pen.fillStyle = "#1f2430";
    pen.font = "13px sans-serif";
    each.forEach((canvas, i) => {
      const x = gap + (i % columns) * (w + gap), y = gap + Math.floor(i / columns) * (t + gap + text);
      pen.drawImage(canvas, x, y);
      pen.fillText(tiles[i].el.querySelector("figcaption").textContent, x, y + t + 15, w);
    });
    wb.save(sheet, `${spec.array}.png`);
  }

  // ------------------------------------------------------------------------------------------------------------- begin
  let width = 0;
  const size = new ResizeObserver(() => { if (frame?.kind === "image" && Math.abs(main.clientWidth - width) > 20) { width = main.clientWidth; pictures(true); } });
  size.observe(main);
  const changed = () => { spec = model.get("spec"); view = structuredClone(spec.view); zoom = keep = null; head.replaceChildren(); show(); };
  model.on("change:spec", changed);
  show();
  return () => { stop(); clearInterval(blinker); size.disconnect(); plot.end(); model.off("change:spec", changed); };
}

export default { render };
