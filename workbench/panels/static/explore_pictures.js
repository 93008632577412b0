// The pictures of the explorer: colours, zoom, hovering. Put in front of `explore.js`, whose state `s` it draws.
const BLINK = 700;

/**
 * A wall of pictures.
 * s: what is shown (see explore.js); parts: elements to draw into; colours: palette and colour maps; show(changes): asks
 * the kernel for another view.
 */
function pictureWall(s, { main, hover, ramp, ends }, { palette, maps }, show) {
  const { h, number } = wb;
  let tiles = [],
    blink = 0,
    blinker = null;
  const sizeOf = (name) => s.spec.dims.find((dim) => dim.name === name)?.size ?? 0;
  const rest = () => {
    clearInterval(blinker);
    blinker = null;
  };

  const limitsOf = (i) =>
    s.mode === "difference" && i > 0
      ? differenceLimits()
      : (s.keep ?? s.frame.limits[Math.min(i, s.frame.limits.length - 1)]);
  let spanOf = { of: null };
  function differenceLimits() {
    if (spanOf.of !== s.values) {
      let most = 0;
      const size = s.frame.width * s.frame.height;
      for (let i = 1; i < s.frame.count; i++)
        for (let p = 0; p < size; p++) {
          const d = Math.abs(gray(i, p) - gray(0, p));
          if (d > most) most = d;
        }
      spanOf = { of: s.values, most: most || 1 };
    }
    return [-spanOf.most, spanOf.most];
  }
  function gray(i, p) {
    const c = s.frame.channels,
      at = (i * s.frame.width * s.frame.height + p) * c;
    if (c === 1) return s.values[at];
    return (s.values[at] + s.values[at + 1] + s.values[at + 2]) / 3;
  }

  /** Picture number i as colours. */
  function paint(i) {
    const { width, height, channels } = s.frame,
      size = width * height,
      image = new ImageData(width, height),
      out = new Uint32Array(image.data.buffer);
    const different = s.mode === "difference" && i > 0 && s.frame.count > 1;
    const [low, high] = limitsOf(i),
      factor = 255 / (high - low || 1);
    if (channels === 1 || different) {
      const lut = packed(maps[different ? "RdBu_r" : s.look.map]);
      const from = i * size;
      for (let p = 0; p < size; p++) {
        const v = different ? gray(i, p) - gray(0, p) : s.values[from + p];
        if (v !== v) continue; // no value: transparent
        const level = (v - low) * factor;
        out[p] = lut[level <= 0 ? 0 : level >= 255 ? 255 : level | 0];
      }
    } else {
      const from = i * size * 3;
      const level = (v) => {
        const l = (v - low) * factor;
        return l <= 0 ? 0 : l >= 255 ? 255 : Math.round(l);
      };
      for (let p = 0, at = from; p < size; p++, at += 3) {
        if (s.values[at] !== s.values[at]) continue;
        out[p] = 0xff000000 | (level(s.values[at + 2]) << 16) | (level(s.values[at + 1]) << 8) | level(s.values[at]);
      }
    }
    if (s.over) blend(i, image.data);
    return image;
  }
  const packedMaps = new Map();
  function packed(map) {
    if (!packedMaps.has(map))
      packedMaps.set(
        map,
        Uint32Array.from(
          { length: 256 },
          (_, i) => 0xff000000 | (map[3 * i + 2] << 16) | (map[3 * i + 1] << 8) | map[3 * i],
        ),
      );
    return packedMaps.get(map);
  }
  function blend(i, data) {
    const size = s.frame.width * s.frame.height,
      from = i * size,
      { mask, limits } = s.frame.overlay,
      map = maps[s.look.overlayMap];
    const both = s.look.overlayMap === "RdBu_r" || s.look.overlayMap === "PuOr_r";
    const classes = palette.light.map((text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)));
    for (let p = 0; p < size; p++) {
      const v = s.over[from + p];
      if (v !== v || (mask && v === 0)) continue;
      let color,
        alpha = s.look.opacity;
      if (mask) color = classes[(v - 1) % classes.length];
      else {
        // faint where there is little to see, so that the picture stays visible
        const level = Math.max(0, Math.min(255, (((v - limits[0]) / (limits[1] - limits[0] || 1)) * 255) | 0));
        color = [map[3 * level], map[3 * level + 1], map[3 * level + 2]];
        alpha *= both ? Math.abs(level - 127.5) / 127.5 : level / 255;
      }
      const at = 4 * p,
        under = data[at + 3] / 255;
      for (let c = 0; c < 3; c++) data[at + c] = data[at + c] * under * (1 - alpha) + color[c] * alpha;
      data[at + 3] = 255 * Math.max(under, alpha);
    }
  }

  const whole = () => [0, sizeOf(s.view.y), 0, sizeOf(s.view.x)];
  function draw(afresh) {
    const count = s.mode === "blink" ? 1 : s.frame.count;
    const [top, bottom, left, right] = whole(),
      tall = bottom - top,
      wide = right - left;
    const room = Math.max(200, main.clientWidth || 640),
      shape = s.frame.square ? tall / wide : Math.min(1, Math.max(0.25, tall / wide));
    const most =
      count === 1 ? 1 : Math.min(count, Math.max(2, Math.floor(room / (count <= 4 ? 250 : count <= 8 ? 190 : 120))));
    const columns = Math.ceil(count / Math.ceil(count / most)); // rows of equal length
    const fit = Math.floor((room - 10 * (columns - 1)) / columns);
    const side = Math.round(Math.min(fit, count === 1 ? Math.min(720, 600 / shape) : count <= 8 ? 300 : 220));
    const key = JSON.stringify([count, columns, side, shape, s.view.x, s.view.y]);
    if (afresh || main.dataset.key !== key || !tiles.length || !main.contains(tiles[0].canvas)) {
      main.dataset.key = key;
      tiles = Array.from({ length: count }, (_, i) => tile(i, side, Math.max(24, Math.round(side * shape))));
      main.replaceChildren(
        h("div", { class: "wbx-tiles", style: { maxWidth: `${columns * (side + 10)}px` } }, ...tiles.map((item) => item.el)),
        ...(s.frame.step > 1 ? [h("div", { class: "wbx-note" })] : []),
      );
    }
    const note = main.querySelector(".wbx-note");
    if (note)
      note.textContent =
        s.frame.step > 1
          ? `One pixel in ${s.frame.step} along each side is shown${s.frame.known < 1 ? `, ${Math.floor(100 * s.frame.known)} % of them so far` : ""}; zoom in to see all.`
          : "";
    tiles.forEach((item, i) => {
      item.number = s.mode === "blink" ? blink % s.frame.count : i;
      item.paint();
    });
    if (s.mode === "blink" && s.frame.count > 1)
      blinker = setInterval(() => {
        blink += 1;
        tiles[0].number = blink % s.frame.count;
        tiles[0].paint();
      }, BLINK);
    drawRamp();
  }

  function drawRamp() {
    const different = s.mode === "difference" && s.frame.count > 1;
    ramp.parentElement.hidden = s.frame.channels !== 1 && !different;
    if (ramp.parentElement.hidden) return;
    const image = new ImageData(256, 1);
    new Uint32Array(image.data.buffer).set(packed(maps[different ? "RdBu_r" : s.look.map]));
    ramp.getContext("2d").putImageData(image, 0, 0);
    const [low, high] = different ? differenceLimits() : (s.keep ?? s.frame.limits[0]);
    const own = !different && s.view.scale === "each" && !s.keep && s.frame.count > 1;
    ends.replaceChildren(
      ...(own ? ["lowest of each", "highest of each"] : [number(low, 3), number(high, 3)]).map((text) =>
        h("span", {}, text),
      ),
    );
    ramp.setAttribute("aria-label", `colours from ${number(low, 3)} to ${number(high, 3)}`);
  }

  function tile(first, width, height) {
    const ratio = Math.min(2, devicePixelRatio || 1);
    const canvas = h("canvas", {
      width: Math.round(width * ratio),
      height: Math.round(height * ratio),
      tabindex: 0,
      role: "img",
      style: { width: `${width}px`, height: `${height}px` },
    });
    const caption = h("figcaption", { class: "wb-text", style: { width: `${width}px` } });
    const item = { el: h("figure", { class: "wbx-tile" }, canvas, caption), canvas, number: first };
    const source = document.createElement("canvas");
    let pixels = null;
    item.paint = () => {
      source.width = s.frame.width;
      source.height = s.frame.height;
      source.getContext("2d").putImageData(paint(item.number), 0, 0);
      pixels = source;
      const title = s.frame.titles[item.number] ?? "",
        more = s.frame.captions?.[item.number];
      const against = s.mode === "difference" && item.number > 0 ? `${title} − ${s.frame.titles[0]}` : title;
      caption.replaceChildren(
        ...(against ? [h("b", {}, against)] : []),
        ...(more !== undefined ? [h("div", {}, `${s.view.captions}: ${more}`)] : []),
      );
      canvas.setAttribute("aria-label", [s.spec.array, against, more].filter(Boolean).join(", "));
      item.place();
    };
    item.place = () => {
      if (!pixels) return;
      const pen = canvas.getContext("2d"),
        seen = s.zoom ?? whole(),
        [top, , left] = s.frame.extent,
        step = s.frame.step;
      pen.clearRect(0, 0, canvas.width, canvas.height);
      pen.imageSmoothingEnabled = false;
      const kx = canvas.width / (seen[3] - seen[2]),
        ky = canvas.height / (seen[1] - seen[0]);
      pen.drawImage(
        pixels,
        (left - seen[2]) * kx,
        (top - seen[0]) * ky,
        s.frame.width * step * kx,
        s.frame.height * step * ky,
      );
    };
    item.at = (event) => {
      const box = canvas.getBoundingClientRect(),
        seen = s.zoom ?? whole();
      return [
        seen[0] + ((event.clientY - box.top) / box.height) * (seen[1] - seen[0]),
        seen[2] + ((event.clientX - box.left) / box.width) * (seen[3] - seen[2]),
      ];
    };
    let grip = null;
    canvas.addEventListener("pointerdown", (event) => {
      grip = { at: item.at(event), zoom: s.zoom ?? whole() };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointerup", () => (grip = null));
    canvas.addEventListener("pointermove", (event) => {
      if (grip && s.zoom) {
        const now = item.at(event);
        shift(grip.at[0] - now[0], grip.at[1] - now[1]);
      }
      tell(item, item.at(event));
    });
    canvas.addEventListener("pointerleave", () => (hover.textContent = ""));
    canvas.addEventListener("dblclick", () => setZoom(null));
    canvas.addEventListener(
      "wheel",
      (event) => {
        // A wheel that passes over the pictures scrolls the notebook, as everywhere.
        if (document.activeElement !== canvas && !event.ctrlKey && !event.metaKey) return;
        event.preventDefault();
        zoomBy(event.deltaY < 0 ? 1.25 : 0.8, item.at(event));
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => {
      const seen = s.zoom ?? whole(),
        stepY = (seen[1] - seen[0]) / 10,
        stepX = (seen[3] - seen[2]) / 10;
      const acts = {
        "+": () => zoomBy(1.25),
        "=": () => zoomBy(1.25),
        "-": () => zoomBy(0.8),
        0: () => setZoom(null),
        ...(s.zoom ? { Escape: () => setZoom(null) } : {}),
        ArrowUp: () => shift(-stepY, 0),
        ArrowDown: () => shift(stepY, 0),
        ArrowLeft: () => shift(0, -stepX),
        ArrowRight: () => shift(0, stepX),
      };
      if (acts[event.key]) {
        acts[event.key]();
        event.preventDefault();
        event.stopPropagation();
      }
    });
    return item;
  }

  function setZoom(next) {
    s.zoom = next;
    for (const item of tiles) item.place();
    const full = whole(),
      large = Math.max(full[1], full[3]) > 1024;
    if (!large) return;
    clearTimeout(setZoom.later); // a finer grain, once the zoom stands still
    setZoom.later = setTimeout(
      () => show({ window: s.zoom ? s.zoom.map((v, i) => (i % 2 ? Math.ceil(v) : Math.floor(v))) : null }),
      120,
    );
  }
  function zoomBy(factor, at) {
    const full = whole(),
      seen = s.zoom ?? full,
      centre = at ?? [(seen[0] + seen[1]) / 2, (seen[2] + seen[3]) / 2];
    const next = [0, 2].flatMap((i) => {
      const c = centre[i / 2];
      return [c - (c - seen[i]) / factor, c + (seen[i + 1] - c) / factor];
    });
    if (next[1] - next[0] >= full[1] && next[3] - next[2] >= full[3]) {
      setZoom(null);
      return;
    }
    if (next[1] - next[0] < 4 && next[3] - next[2] < 4) return;
    setZoom(inside(next));
  }
  function shift(dy, dx) {
    if (s.zoom) setZoom(inside([s.zoom[0] + dy, s.zoom[1] + dy, s.zoom[2] + dx, s.zoom[3] + dx]));
  }
  function inside(z) {
    const full = whole(),
      fitted = [...z];
    for (const i of [0, 2]) {
      const span = Math.min(z[i + 1] - z[i], full[i + 1]);
      fitted[i] = Math.max(0, Math.min(full[i + 1] - span, z[i]));
      fitted[i + 1] = fitted[i] + span;
    }
    return fitted;
  }

  function tell(item, [row, column]) {
    const [top, , left] = s.frame.extent,
      r = Math.floor((Math.floor(row) - top) / s.frame.step),
      c = Math.floor((Math.floor(column) - left) / s.frame.step);
    if (r < 0 || c < 0 || r >= s.frame.height || c >= s.frame.width) {
      hover.textContent = "";
      return;
    }
    const p = r * s.frame.width + c,
      size = s.frame.width * s.frame.height,
      i = item.number;
    const own =
      s.frame.channels === 1
        ? number(s.values[i * size + p], 5)
        : [0, 1, 2].map((k) => number(s.values[(i * size + p) * 3 + k], 4)).join(", ");
    const parts = [
      s.frame.titles[i],
      `${s.view.y} ${top + r * s.frame.step}`,
      `${s.view.x} ${left + c * s.frame.step}`,
    ].filter(Boolean);
    const more = [];
    if (s.mode === "difference" && i > 0) more.push(`difference ${number(gray(i, p) - gray(0, p), 4)}`);
    if (s.over) more.push(`${s.frame.overlay.name} ${number(s.over[i * size + p], 4)}`);
    hover.replaceChildren(parts.join(" · "), ": ", h("b", {}, own), more.length ? ` · ${more.join(" · ")}` : "");
  }

  function savePng() {
    const gap = 10,
      text = 20,
      each = tiles.map((item) => item.canvas),
      columns = Math.max(1, Math.round(Math.sqrt(each.length * 1.5)));
    const w = each[0].width,
      t = each[0].height,
      rows = Math.ceil(each.length / columns);
    const sheet = h("canvas", {
        width: Math.min(columns, each.length) * (w + gap) + gap,
        height: rows * (t + gap + text) + gap,
      }),
      pen = sheet.getContext("2d");
    pen.fillStyle = "#ffffff";
    pen.fillRect(0, 0, sheet.width, sheet.height);
    pen.fillStyle = "#1f2430";
    pen.font = "13px sans-serif";
    each.forEach((canvas, i) => {
      const x = gap + (i % columns) * (w + gap),
        y = gap + Math.floor(i / columns) * (t + gap + text);
      pen.drawImage(canvas, x, y);
      pen.fillText(tiles[i].el.querySelector("figcaption").textContent, x, y + t + 15, w);
    });
    wb.save(sheet, `${s.spec.array}.png`);
  }

  return { draw, rest, savePng, setZoom };
}
