// The explorer of arrays. The kernel sends numbers; everything about colours, zoom and hovering happens here.
const { h, number, bytes } = wb;

const KINDS = { image: "Pictures", line: "Curves", histogram: "Histogram", table: "Table" };
const MAPS = {
  gray: "grey",
  cividis: "cividis",
  viridis: "viridis",
  magma: "magma",
  RdBu_r: "blue – red",
  PuOr_r: "purple – orange",
};
const SCALES = { shared: "shared by the page", each: "each by itself", full: "full range" };
const NEXT_FRAME = 90;

function render({ model, el }) {
  const palette = model.get("palette"),
    maps = model.get("color_maps");
  const s = {
    spec: model.get("spec"),
    view: structuredClone(model.get("spec").view),
    frame: null, // the kernel's newest answer
    values: null, // its numbers
    over: null, // those of the overlay
    keep: null, // ends of the colour scale that are held
    mode: "side",
    look: { map: "", overlayMap: "magma", opacity: 0.75 },
    zoom: null, // rows and columns on view: [top, bottom, left, right], fractions allowed; null: all
  };
  let sequence = 0,
    waiting = false,
    dirty = null,
    playing = null;
  const kindsOf = wb.unique("wbx-kind");
  const chosen = {}; // dims as they were last placed, for when the kind changes back

  // ------------------------------------------------------------------------------------------------- parts of the page
  const head = h("div", { class: "wbx-head" }),
    fields = h("div", { class: "wbx-fields" });
  const sliders = h("div", { class: "wbx-sliders", role: "group", "aria-label": "positions" });
  const main = h("div", { class: "wbx-main" }),
    side = h("div", { class: "wbx-side" });
  const stage = h("div", { class: "wbx-stage" }, main, side);
  const hover = h("span", { class: "wbx-hover", "aria-live": "polite" }),
    read = h("span", { class: "wbx-read" });
  const trouble = h("div", { class: "wb-error wb-text", role: "alert", hidden: true });
  const code = h("pre", {}),
    copier = h(
      "button",
      { class: "wb-button wb-quiet", type: "button", on: { click: () => wb.copy(code.textContent, copier) } },
      "Copy",
    );
  el.classList.add("wbx");
  el.append(
    head,
    fields,
    sliders,
    trouble,
    stage,
    h("div", { class: "wbx-status" }, hover, read),
    h("div", { class: "wbp-code" }, code, copier),
  );
  const plot = wb.chart(palette, { height: 340, label: "curves of the array" });

  // ------------------------------------------------------------------------------------------- asking and being answered
  function ask(message) {
    if (waiting) {
      dirty = message;
      return;
    }
    waiting = true;
    main.classList.add("wbx-waiting");
    model.send({ ...message, seq: ++sequence });
  }
  const show = (changes = {}) => {
    Object.assign(s.view, changes);
    ask({ view: structuredClone(s.view) });
  };

  model.on("msg:custom", (answer, buffers) => {
    if (answer.seq !== sequence) return; // another view of this widget asked
    waiting = false;
    main.classList.remove("wbx-waiting");
    el.dataset.answered = answer.seq;
    trouble.hidden = !answer.error;
    trouble.textContent = answer.error ?? "";
    if (!answer.error) {
      if (answer.spec) {
        s.spec = answer.spec;
        s.zoom = s.keep = null;
        s.mode = "side";
      }
      s.view = answer.view;
      s.frame = answer;
      if (s.frame.kind === "image") {
        s.values = s.frame.type === "uint8" ? bytesOf(buffers[0]) : floatsOf(buffers[0]);
        s.over = s.frame.overlay
          ? s.frame.overlay.type === "uint8"
            ? bytesOf(buffers[1])
            : floatsOf(buffers[1])
          : null;
        if (!s.look.map || answer.spec) s.look.map = chosenMap();
      }
      if (answer.spec || !head.childElementCount || fields.dataset.kind !== placement(s.view) + s.frame.page)
        controls();
      else settle();
      draw();
    } else if (answer.spec || !s.frame) {
      s.spec = answer.spec ?? s.spec;
      vacate();
    }
    if (dirty) {
      const message = dirty;
      dirty = null;
      ask(message);
    } else if (!answer.error && answer.known < 1 && !playing && !document.hidden && el.isConnected) {
      ask({ view: structuredClone(s.view) }); // an overview that becomes finer while one looks
    }
  });
  const bytesOf = (part) => new Uint8Array(part.buffer, part.byteOffset, part.byteLength);
  const floatsOf = (part) =>
    part.byteOffset % 4
      ? new Float32Array(part.buffer.slice(part.byteOffset, part.byteOffset + part.byteLength))
      : new Float32Array(part.buffer, part.byteOffset, part.byteLength / 4);
  const placement = (v) => JSON.stringify([v.kind, v.x, v.y, v.color, v.facet, v.overlay, v.scale]);

  function chosenMap() {
    const [low, high] = s.frame.limits[0];
    if (low < 0 && high > 0) return "RdBu_r";
    return s.frame.square ? "gray" : "cividis";
  }

  // ---------------------------------------------------------------------------------------------------------- controls
  function choice(label, options, value, change, props = {}) {
    const select = h(
      "select",
      { class: "wb-input", ...props, on: { change: () => change(select.value || null) } },
      ...options.map(([key, text]) => h("option", { value: key }, text)),
    );
    select.value = value ?? "";
    return h("label", { class: "wbx-field" }, label, select);
  }

  const arrays = () =>
    choice(
      "array",
      s.spec.arrays.map((item) => [item.name, `${item.name}  (${item.shape})`]),
      s.spec.array,
      (name) => ask({ array: name }),
    );

  /** Of an array that cannot be read nothing is left but the way to the others. */
  function vacate() {
    stop();
    wall.rest();
    s.frame = null;
    delete fields.dataset.kind;
    head.replaceChildren(arrays());
    for (const part of [fields, sliders, main, side]) part.replaceChildren();
    read.textContent = hover.textContent = "";
    code.parentElement.hidden = true;
  }

  function controls() {
    fields.dataset.kind = placement(s.view) + s.frame.page;
    const names = s.spec.dims.map((dim) => dim.name),
      size = Object.fromEntries(s.spec.dims.map((dim) => [dim.name, dim.size]));
    const array = arrays();
    const kinds = h(
      "div",
      { class: "wbx-segments", role: "radiogroup", "aria-label": "show as" },
      ...Object.entries(KINDS).map(([kind, text]) => {
        const off =
          (kind !== "table" && !s.spec.numeric) ||
          (kind === "image" && names.length < 2) ||
          (kind !== "table" && !names.length);
        const input = h("input", {
          type: "radio",
          name: kindsOf,
          value: kind,
          checked: s.view.kind === kind,
          disabled: off,
          on: {
            change: () => {
              s.zoom = null;
              for (const place of ["x", "y", "color", "facet"]) if (s.view[place]) chosen[place] = s.view[place];
              show({ ...chosen, kind, window: null, start: 0 });
            },
          },
        });
        return h("label", {}, input, text);
      }),
    );
    const facts = [
      s.spec.dims.map((dim) => `${dim.name} ${dim.size.toLocaleString("en")}`).join(" × ") || "one number",
      s.spec.dtype + (s.spec.units ? ` [${s.spec.units}]` : ""),
      bytes(s.spec.bytes),
    ];
    head.replaceChildren(
      array,
      kinds,
      h(
        "span",
        {
          class: "wbx-facts wb-text",
          title: `chunks of ${s.spec.chunk.join(" × ")}${s.spec.shard.length ? `, in files of ${s.spec.shard.join(" × ")}` : ""}`,
        },
        facts.join(" · "),
        s.spec.description ? h("div", {}, s.spec.description) : null,
      ),
    );

    const set = (place) => (dim) => {
      const next = { [place]: dim, window: null, start: 0 };
      for (const other of ["x", "y", "color", "facet"])
        if (other !== place && dim && s.view[other] === dim) next[other] = s.view[place];
      s.zoom = null;
      show(next);
    };
    const dims = (filter = () => true) =>
      names.filter(filter).map((name) => [name, `${name} (${size[name].toLocaleString("en")})`]);
    const none = [["", "–"]];
    const wanted = {
      image: [
        ["across (x)", "x", dims()],
        ["down (y)", "y", dims()],
        ["colour", "color", [...none, ...dims((n) => size[n] === 3 || size[n] === 4)]],
        ["one picture per", "facet", [...none, ...dims()]],
      ],
      line: [
        ["along x", "x", dims()],
        ["one curve per", "color", [...none, ...dims()]],
      ],
      histogram: [
        ["values along", "x", dims()],
        ["and along", "y", [...none, ...dims()]],
        ["one histogram per", "color", [...none, ...dims()]],
      ],
      table: [
        ["rows", "y", [...none, ...dims()]],
        ["columns", "x", [...none, ...dims()]],
      ],
    }[s.view.kind];
    fields.replaceChildren(
      ...wanted
        .filter(([, , options]) => options.some(([key]) => key))
        .map(([label, place, options]) =>
          choice(label, options, s.view[place], set(place), { "aria-label": label, "data-place": place }),
        ),
    );
    if (s.frame.kind === "image") {
      if (s.view.facet)
        fields.append(
          choice(
            "captions",
            [...none, ...s.frame.caption_choices.map((n) => [n, n])],
            s.view.captions,
            (captions) => show({ captions }),
            { "data-place": "captions" },
          ),
        );
      if (s.frame.overlays.length)
        fields.append(
          choice(
            "overlay",
            [...none, ...s.frame.overlays.map((n) => [n, n])],
            s.view.overlay,
            (overlay) => show({ overlay }),
            { "data-place": "overlay" },
          ),
        );
      if (s.view.facet)
        fields.append(
          choice(
            "on a page",
            [1, 4, 8, 12, 24, 48].map((n) => [n, String(n)]),
            s.view.count,
            (n) => show({ count: Number(n) }),
            { "data-place": "count" },
          ),
        );
    }
    makeSliders(size);
    makeSide();
  }

  function makeSliders(size) {
    stop();
    const rows = [];
    const paged = s.view.kind === "image" ? s.view.facet : s.view.kind === "table" ? s.view.y : null;
    if (paged && pages(size[paged]) > 1) rows.push([paged, true]);
    for (const dim of s.spec.dims) if (dim.name in s.view.index && dim.size > 1) rows.push([dim.name, false]);
    sliders.replaceChildren(
      ...rows.flatMap(([name, page]) => {
        const most = page ? pages(size[name]) - 1 : size[name] - 1;
        const at = () => (page ? Math.ceil(s.view.start / step()) : s.view.index[name]);
        const input = h("input", {
          type: "range",
          min: 0,
          max: most,
          value: at(),
          "aria-label": page ? `page of ${name}` : name,
          "data-dim": name,
          on: {
            input: () => {
              move(name, page, Number(input.value));
            },
            change: () => move(name, page, Number(input.value)),
          },
        });
        input.value = at();
        const play = h(
          "button",
          {
            class: "wb-button wbx-play",
            type: "button",
            "aria-label": `play ${name}`,
            "aria-pressed": "false",
            on: { click: () => (playing === name ? stop() : start(name, page, most)) },
          },
          "▶",
        );
        const where = h("span", { class: "wbx-where wb-text", "data-where": name });
        return [h("span", {}, page ? `${name}, page` : name), play, input, where];
      }),
    );
    settle();
  }
  const step = () => Math.max(1, s.frame.page);
  const sizeOf = (name) => s.spec.dims.find((dim) => dim.name === name)?.size ?? 0;
  const pages = (many) => Math.ceil(many / step());

  function move(name, page, to) {
    if (page) show({ start: to * step() });
    else show({ index: { ...s.view.index, [name]: to } });
  }
  function settle() {
    for (const where of sliders.querySelectorAll("[data-where]")) {
      const name = where.dataset.where,
        input = sliders.querySelector(`input[data-dim="${CSS.escape(name)}"]`);
      const paged = !(name in s.view.index),
        many = sizeOf(name);
      const at = paged ? Math.ceil(s.view.start / step()) : s.view.index[name];
      if (document.activeElement !== input && !waiting && !dirty) input.value = at;
      const last = paged ? Math.min(many, s.view.start + (s.frame.kind === "image" ? s.frame.count : s.frame.page)) : 0;
      where.textContent = paged
        ? `${s.view.start.toLocaleString("en")} – ${(last - 1).toLocaleString("en")} of ${many.toLocaleString("en")}`
        : `${at.toLocaleString("en")} of ${many.toLocaleString("en")}${s.frame.places[name] ? `: ${s.frame.places[name]}` : ""}`;
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
      if (!waiting) {
        input.value = (Number(input.value) + 1) % (most + 1);
        move(name, page, Number(input.value));
      }
      setTimeout(turn, NEXT_FRAME);
    };
    turn();
  }
  function stop() {
    if (!playing) return;
    const button = sliders.querySelector(`[aria-label="${CSS.escape(`play ${playing}`)}"]`);
    if (button) {
      button.textContent = "▶";
      button.setAttribute("aria-pressed", "false");
    }
    playing = null;
  }

  const ramp = h("canvas", { class: "wbx-ramp", width: 256, height: 1, role: "img" }),
    ends = h("div", { class: "wbx-ends" });
  const wall = pictureWall(s, { main, hover, ramp, ends }, { palette, maps }, show);
  function makeSide() {
    stage.classList.toggle("wbx-plain", s.frame.kind !== "image" && s.frame.kind !== "histogram");
    if (s.frame.kind !== "image") {
      side.replaceChildren(...(s.frame.kind === "histogram" ? [clip()] : []));
      return;
    }
    const parts = [];
    if (s.frame.channels === 1)
      parts.push(
        choice(
          "colours",
          Object.entries(MAPS),
          s.look.map,
          (map) => {
            s.look.map = map;
            draw();
          },
          { "data-place": "map" },
        ),
      );
    parts.push(h("div", {}, ramp, ends));
    parts.push(
      choice(
        "scale",
        Object.entries(SCALES),
        s.view.scale,
        (scale) => {
          s.keep = null;
          show({ scale });
        },
        { "data-place": "scale" },
      ),
      clip(),
    );
    const hold = h("input", {
      type: "checkbox",
      checked: s.keep !== null,
      on: {
        change: () => {
          s.keep = hold.checked ? s.frame.limits[0] : null;
          draw();
        },
      },
    });
    parts.push(h("label", { class: "wb-bar" }, hold, "hold this scale"));
    if (s.frame.overlay) {
      const slider = h("input", {
        type: "range",
        min: 0,
        max: 100,
        value: s.look.opacity * 100,
        "aria-label": "opacity of the overlay",
        on: {
          input: () => {
            s.look.opacity = slider.value / 100;
            draw();
          },
        },
      });
      parts.push(h("label", { class: "wbx-field" }, `opacity of ${s.frame.overlay.name}`, slider));
      if (!s.frame.overlay.mask)
        parts.push(
          choice("its colours", Object.entries(MAPS), s.look.overlayMap, (map) => {
            s.look.overlayMap = map;
            draw();
          }),
        );
    }
    if (s.view.facet && s.frame.count > 1)
      parts.push(
        choice(
          "compare",
          [
            ["side", "side by side"],
            ["difference", "difference to the first"],
            ["blink", "blink"],
          ],
          s.mode,
          (next) => {
            s.mode = next;
            draw(true);
          },
          { "data-place": "mode" },
        ),
      );
    const zoomed = h(
      "button",
      { class: "wb-button", type: "button", on: { click: () => wall.setZoom(null) } },
      "Whole picture",
    );
    const png = h("button", { class: "wb-button", type: "button", on: { click: wall.savePng } }, "Save PNG");
    parts.push(
      h("div", { class: "wb-bar" }, png, zoomed),
      h("div", { class: "wbx-note" }, "Click a picture; then wheel or + and − zoom, drag or arrow keys move, Esc shows all."),
    );
    side.replaceChildren(...parts);
  }
  function clip() {
    return choice(
      "cut off at each end",
      [
        [0, "nothing"],
        [0.5, "0.5 %"],
        [1, "1 %"],
        [2, "2 %"],
        [5, "5 %"],
      ],
      s.view.clip,
      (p) => {
        s.keep = null;
        show({ clip: Number(p) });
      },
      { "data-place": "clip" },
    );
  }

  // ----------------------------------------------------------------------------------------------------------- drawing
  function draw(afresh = false) {
    code.textContent = s.frame.code;
    code.parentElement.hidden = false;
    const ratio = s.frame.shown ? s.frame.read / s.frame.shown : 0;
    read.textContent = `read ${bytes(s.frame.read)} for ${bytes(s.frame.shown ?? 0)} on view${ratio > 4 ? " (whole chunks are read)" : ""}; ${bytes(s.frame.read_in_all)} in all`;
    wall.rest();
    if (s.frame.kind === "image") wall.draw(afresh);
    else if (s.frame.kind === "line" || s.frame.kind === "histogram") curves();
    else if (s.frame.kind === "table") table();
    else
      main.replaceChildren(
        h(
          "div",
          { class: "wb-empty" },
          h("div", { class: "wb-title" }, "This array has no entries"),
          "One of its dims has the size 0.",
        ),
      );
  }

  function curves() {
    const notes = [...s.frame.notes];
    if (s.frame.kind === "histogram" && s.frame.mean !== null)
      notes.unshift(
        `${s.frame.total.toLocaleString("en")} entries, mean ${number(s.frame.mean)}, standard deviation ${number(s.frame.deviation)}.`,
      );
    if (!main.contains(plot.el)) main.replaceChildren(plot.el, h("div", { class: "wbx-note" }));
    main.lastChild.textContent = notes.join(" ");
    plot.update(s.frame, true);
    hover.textContent = "";
  }

  function table() {
    const rows = s.frame.rows.map((row, i) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, s.frame.row_labels[i]),
        ...row.map((cell) => h("td", { class: s.frame.numeric ? "wb-number" : "wb-text" }, cell)),
      ),
    );
    const names = s.frame.column_dim ? s.frame.column_labels : [s.spec.array];
    const top = h(
      "tr",
      {},
      h("th", {}, [s.frame.row_dim, s.frame.column_dim].filter(Boolean).join(" \\ ")),
      ...names.map((name) => h("th", { scope: "col", class: s.frame.numeric ? "wb-number" : null }, name)),
    );
    main.replaceChildren(
      h("div", { class: "wbx-cells" }, h("table", { class: "wb-table" }, h("thead", {}, top), h("tbody", {}, ...rows))),
    );
    hover.textContent = "";
  }

  // ------------------------------------------------------------------------------------------------------------- begin
  let width = 0;
  const size = new ResizeObserver(() => {
    if (s.frame?.kind === "image" && Math.abs(main.clientWidth - width) > 20) {
      width = main.clientWidth;
      wall.draw(true);
    }
  });
  size.observe(main);
  const changed = () => {
    s.spec = model.get("spec");
    s.view = structuredClone(s.spec.view);
    s.zoom = s.keep = null;
    head.replaceChildren();
    show();
  };
  model.on("change:spec", changed);
  show();
  return () => {
    stop();
    wall.rest();
    size.disconnect();
    plot.end();
    model.off("change:spec", changed);
  };
}

export default { render };
