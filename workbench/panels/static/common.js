// Shared by the panels' scripts, which this file is put in front of. Text is only ever set as text, never as markup.
const wb = (() => {
  const FOCUSABLE = new Set(["button", "input", "select", "summary", "textarea"]);

  /** An element. Children that are strings become text nodes; `on` maps events to handlers. */
  function h(tag, props = {}, ...children) {
    const made = document.createElement(tag);
    // Keys pressed here are the panel's: JupyterLab would take arrows for its own, and 0 0 for "restart the kernel".
    if (FOCUSABLE.has(tag) || props.tabindex !== undefined) made.setAttribute("data-lm-suppress-shortcuts", "true");
    for (const [name, value] of Object.entries(props)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "on") for (const [event, call] of Object.entries(value)) made.addEventListener(event, call);
      else if (name === "style") Object.assign(made.style, value);
      else if (name === "value" || name === "checked" || name === "disabled") made[name] = value;
      else made.setAttribute(name, value === true ? "" : String(value));
    }
    made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
    return made;
  }

  function number(value, digits = 4) {
    if (value === null || value === undefined || Number.isNaN(value)) return "no value";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en").replace("-", "−");
    const size = Math.abs(value);
    const text =
      size >= 1e6 || size < 1e-4 ? value.toExponential(digits - 1) : String(Number(value.toPrecision(digits)));
    return text.replace("-", "−");
  }

  function bytes(count) {
    let size = count;
    for (const unit of ["B", "kB", "MB", "GB"]) {
      if (size < 999.5)
        return `${unit === "B" || size >= 99.5 ? Math.round(size) : Number(size.toPrecision(3))} ${unit}`;
      size /= 1000;
    }
    return `${Number(size.toPrecision(3))} TB`;
  }

  function dark() {
    if (document.body.dataset.jpThemeLight) return document.body.dataset.jpThemeLight === "false";
    if (document.body.dataset.vscodeThemeKind) return !document.body.dataset.vscodeThemeKind.includes("light");
    return matchMedia("(prefers-color-scheme: dark)").matches;
  }

  /** Calls back when the notebook changes between light and dark; returns what ends it. */
  function onTheme(call) {
    const watcher = new MutationObserver(() => {
      call();
      setTimeout(call, 300);
    }); // style sheets may come after the attribute
    watcher.observe(document.body, {
      attributes: true,
      attributeFilter: ["data-jp-theme-light", "data-vscode-theme-kind", "class"],
    });
    return () => watcher.disconnect();
  }

  /** A name that nothing else in the page has: for ids, and for groups of radio buttons. */
  let named = 0;
  const unique = (what) => `${what}-${++named}-${Math.random().toString(36).slice(2, 8)}`;

  /** Copy text, and say so on the button for a moment. */
  async function copy(text, button) {
    const before = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = h("textarea", { value: text, style: { position: "fixed", opacity: 0 } });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = before), 1200);
  }

  function save(canvas, name) {
    canvas.toBlob((blob) => {
      const link = h("a", { href: URL.createObjectURL(blob), download: name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }, "image/png");
  }

  function ticks(low, high, most) {
    if (!(high > low)) return [low];
    const rough = (high - low) / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough) ?? 10 * power;
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step)
      found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
    return found;
  }

  const DASHES = [[], [7, 4], [2, 3], [8, 3, 2, 3]];

  /**
   * Curves or steps in a canvas that follows the theme: hover for values, drag to zoom, double click to see all again.
   * data: {curves: [{name, y, x?, color?, lower?, upper?}], x, edges, categories, x_label, y_label}; edges make steps.
   */
  function chart(palette, { height = 300, label = "curves" } = {}) {
    const canvas = h("canvas", {
      class: "wbc-canvas",
      role: "img",
      "aria-label": label,
      style: { height: `${height}px` },
    });
    const tip = h("div", { class: "wbc-tip wb-card", hidden: true });
    const legend = h("div", { class: "wbc-legend", role: "group", "aria-label": "curves shown" });
    const el = h("div", { class: "wbc" }, h("div", { class: "wbc-stage" }, canvas, tip), legend);
    const pad = { left: 62, right: 14, top: 10, bottom: 40 };
    const hidden = new Set();
    let data = { curves: [] },
      zoom = null,
      hover = null,
      drag = null,
      scale = null;

    const color = (curve, index) =>
      curve.color ?? (dark() ? palette.dark : palette.light)[(curve.slot ?? index) % palette.light.length];
    const dashOf = (curve, index) => DASHES[Math.floor((curve.slot ?? index) / palette.light.length) % DASHES.length];
    const xsOf = (curve) => curve.x ?? data.x ?? curve.y.map((_, i) => i);
    const shown = () => data.curves.map((curve, index) => [curve, index]).filter(([curve]) => !hidden.has(curve.name));

    function spans() {
      let x = [Infinity, -Infinity],
        y = [Infinity, -Infinity];
      const take = (span, value) => {
        if (value !== null && Number.isFinite(value)) {
          span[0] = Math.min(span[0], value);
          span[1] = Math.max(span[1], value);
        }
      };
      for (const [curve] of shown()) {
        const xs = data.edges ?? xsOf(curve);
        for (const value of xs) take(x, value);
        for (const list of [curve.y, curve.lower ?? [], curve.upper ?? []]) {
          list.forEach((value, i) => {
            if (!zoom || (xs[i] >= zoom[0] && xs[i] <= zoom[1])) take(y, value);
          });
        }
      }
      if (data.edges) y[0] = 0;
      if (!Number.isFinite(x[0])) x = [0, 1];
      if (!Number.isFinite(y[0])) y = [0, 1];
      if (x[0] === x[1]) x = [x[0] - 0.5, x[1] + 0.5];
      if (y[0] === y[1]) y = [y[0] - (Math.abs(y[0]) * 0.05 || 0.5), y[1] + (Math.abs(y[1]) * 0.05 || 0.5)];
      const room = (y[1] - y[0]) * 0.06;
      return { x: zoom ?? x, y: [data.edges ? 0 : y[0] - room, y[1] + room] };
    }

    /** Marks of the x axis; steps and places are whole numbers, and so are their marks. */
    function stops(x, most) {
      const found = ticks(x[0], x[1], most);
      const whole = shown().every(([curve]) => (data.edges ?? xsOf(curve)).every(Number.isInteger));
      if (!whole || x[1] - x[0] < 1) return found;
      return found.map(Math.round).filter((at, i, all) => Math.abs(at - found[i]) < 1e-6 && at !== all[i - 1]);
    }

    function draw() {
      const width = canvas.clientWidth,
        ratio = devicePixelRatio || 1;
      if (!width) return;
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      const pen = canvas.getContext("2d"),
        css = getComputedStyle(el);
      const ink = css.color,
        faint = css.getPropertyValue("--wb-line").trim() || "#ddd",
        muted = css.getPropertyValue("--wb-muted").trim() || ink;
      pen.scale(ratio, ratio);
      pen.font = `11px ${css.fontFamily}`;
      const { x, y } = spans();
      const px = (v) => pad.left + ((v - x[0]) / (x[1] - x[0])) * (width - pad.left - pad.right);
      const py = (v) => height - pad.bottom - ((v - y[0]) / (y[1] - y[0])) * (height - pad.top - pad.bottom);
      scale = { x, width, back: (p) => x[0] + ((p - pad.left) / (width - pad.left - pad.right)) * (x[1] - x[0]) };
      pen.lineWidth = 1;
      pen.textBaseline = "middle";
      for (const at of ticks(y[0], y[1], 5)) {
        pen.strokeStyle = faint;
        pen.beginPath();
        pen.moveTo(pad.left, py(at));
        pen.lineTo(width - pad.right, py(at));
        pen.stroke();
        pen.fillStyle = muted;
        pen.textAlign = "right";
        pen.fillText(number(at, 3), pad.left - 8, py(at));
      }
      pen.textBaseline = "alphabetic";
      pen.textAlign = "center";
      const names = data.categories;
      const marks = names
        ? names.map((_, i) => i).filter((i) => i % Math.ceil(names.length / Math.max(2, width / 90)) === 0)
        : stops(x, Math.max(2, Math.floor(width / 90)));
      for (const at of marks.filter((at) => at >= x[0] && at <= x[1])) {
        pen.fillStyle = muted;
        const text = names ? String(names[at]).slice(0, 12) : number(at, 4);
        pen.fillText(text, px(at), height - pad.bottom + 16);
      }
      pen.fillStyle = ink;
      pen.fillText(data.x_label ?? "", pad.left + (width - pad.left - pad.right) / 2, height - 6);
      pen.save();
      pen.translate(12, pad.top + (height - pad.top - pad.bottom) / 2);
      pen.rotate(-Math.PI / 2);
      pen.fillText(String(data.y_label ?? "").slice(0, 48), 0, 0);
      pen.restore();
      pen.save();
      pen.beginPath();
      pen.rect(pad.left, pad.top, width - pad.left - pad.right, height - pad.top - pad.bottom);
      pen.clip();
      for (const [curve, index] of shown()) {
        pen.strokeStyle = pen.fillStyle = color(curve, index);
        pen.lineWidth = 1.8;
        pen.setLineDash(dashOf(curve, index));
        if (data.edges) steps(pen, curve, px, py);
        else line(pen, curve, px, py);
        pen.setLineDash([]);
      }
      if (hover !== null) {
        pen.strokeStyle = muted;
        pen.lineWidth = 1;
        pen.beginPath();
        pen.moveTo(hover, pad.top);
        pen.lineTo(hover, height - pad.bottom);
        pen.stroke();
      }
      if (drag !== null && hover !== null) {
        pen.globalAlpha = 0.15;
        pen.fillStyle = ink;
        pen.fillRect(Math.min(drag, hover), pad.top, Math.abs(hover - drag), height);
      }
      pen.restore();
    }

    function line(pen, curve, px, py) {
      const xs = xsOf(curve),
        good = (v) => v !== null && Number.isFinite(v);
      if (curve.lower && curve.upper) {
        const at = xs.map((_, i) => i).filter((i) => good(curve.lower[i]) && good(curve.upper[i]));
        pen.globalAlpha = 0.16;
        pen.beginPath();
        at.forEach((i) => pen.lineTo(px(xs[i]), py(curve.upper[i])));
        at.reverse().forEach((i) => pen.lineTo(px(xs[i]), py(curve.lower[i])));
        pen.fill();
        pen.globalAlpha = 1;
      }
      pen.beginPath();
      let open = false;
      curve.y.forEach((v, i) => {
        if (!good(v)) {
          open = false;
          return;
        }
        open ? pen.lineTo(px(xs[i]), py(v)) : pen.moveTo(px(xs[i]), py(v));
        open = true;
      });
      pen.stroke();
      if (xs.length <= 40)
        curve.y.forEach((v, i) => {
          if (good(v)) {
            pen.beginPath();
            pen.arc(px(xs[i]), py(v), 2.6, 0, 7);
            pen.fill();
          }
        });
    }

    function steps(pen, curve, px, py) {
      pen.beginPath();
      pen.moveTo(px(data.edges[0]), py(0));
      curve.y.forEach((v, i) => {
        pen.lineTo(px(data.edges[i]), py(v));
        pen.lineTo(px(data.edges[i + 1]), py(v));
      });
      pen.lineTo(px(data.edges.at(-1)), py(0));
      pen.globalAlpha = data.curves.length > 1 ? 0.15 : 0.4;
      pen.fill();
      pen.globalAlpha = 1;
      pen.stroke();
    }

    function tell(event) {
      if (!scale) return;
      hover = event.clientX - canvas.getBoundingClientRect().left;
      const at = scale.back(hover),
        rows = [];
      let title = "";
      for (const [curve, index] of shown()) {
        const xs = data.edges ?? xsOf(curve);
        let best = -1,
          least = Infinity;
        for (let i = 0; i < curve.y.length; i++) {
          const middle = data.edges ? (xs[i] + xs[i + 1]) / 2 : xs[i];
          if (curve.y[i] !== null && Math.abs(middle - at) < least) [best, least] = [i, Math.abs(middle - at)];
        }
        if (best < 0) continue;
        title = data.edges
          ? `${number(xs[best])} … ${number(xs[best + 1])}`
          : (data.categories?.[best] ?? `${data.x_label ?? "x"} ${number(xs[best])}`);
        rows.push(
          h(
            "div",
            {},
            h("span", { class: "wbc-dot", style: { background: color(curve, index) } }),
            `${curve.name ? curve.name + " " : ""}`,
            h("b", {}, number(curve.y[best])),
          ),
        );
      }
      tip.replaceChildren(h("div", { class: "wb-muted" }, title), ...rows.slice(0, 12));
      tip.hidden = !rows.length;
      tip.style.left = `${Math.min(hover + 14, Math.max(0, canvas.clientWidth - 190))}px`;
      draw();
    }

    canvas.addEventListener("pointermove", tell);
    canvas.addEventListener("pointerleave", () => {
      hover = drag = null;
      tip.hidden = true;
      draw();
    });
    canvas.addEventListener("pointerdown", (event) => {
      drag = event.clientX - canvas.getBoundingClientRect().left;
    });
    canvas.addEventListener("pointerup", (event) => {
      const end = event.clientX - canvas.getBoundingClientRect().left;
      if (drag !== null && Math.abs(end - drag) > 6)
        zoom = [scale.back(Math.min(drag, end)), scale.back(Math.max(drag, end))];
      drag = null;
      draw();
    });
    canvas.addEventListener("dblclick", () => {
      zoom = null;
      draw();
    });

    function update(next, keepZoom = false) {
      data = next;
      if (!keepZoom) zoom = null;
      const named = data.curves.filter((curve) => curve.name);
      legend.replaceChildren(
        ...(named.length > 1 || data.legend ? data.curves : []).map((curve, index) => {
          const swatch = h("span", {
            class: "wbc-line",
            style: {
              borderTop: `3px ${["solid", "dashed", "dotted", "dashed"][Math.floor((curve.slot ?? index) / palette.light.length) % 4]} ${color(curve, index)}`,
            },
          });
          return h(
            "button",
            {
              class: "wbc-entry",
              type: "button",
              "aria-pressed": String(!hidden.has(curve.name)),
              title: "show or hide",
              on: {
                click: (event) => {
                  hidden.has(curve.name) ? hidden.delete(curve.name) : hidden.add(curve.name);
                  event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(curve.name)));
                  draw();
                },
              },
            },
            swatch,
            h("span", { class: "wb-text" }, curve.name || "value"),
          );
        }),
      );
      draw();
    }

    const size = new ResizeObserver(draw);
    size.observe(canvas);
    const stop = onTheme(() => update(data, true));
    return {
      el,
      update,
      canvas,
      end: () => {
        size.disconnect();
        stop();
      },
    };
  }

  return { h, unique, number, bytes, dark, onTheme, copy, save, chart };
})();
