// A grid of any number of rows, of which only those on view are in the page and only pages near them are held.
const WIDTHS = { status: 104, wide: 188, time: 122, text: 82, number: 92, parameter: 112, tags: 130 };
const ROW = 30, PAGE = 60, MOST_PAGES = 40;
const NARROWEST = 44, WIDEST = 2000, STEP = 16; // pixels of a column, and of one press of a key
const TALLEST = 8e6; // browsers cut elements that are taller than some ten million pixels

/**
 * ask: (message) => Promise(reply); on: {sort(name), open(row), select(Set of ids), stale(), widths(object)}; widths: by column,
 * those that somebody chose.
 */
function runGrid({ ask, on, label, uid, widths: chosen = {} }) {
  const h = wb.h;
  const head = h("div", { class: "wbb-head wbb-line", role: "row", "aria-rowindex": 1 });
  const canvas = h("div", { class: "wbb-canvas", role: "rowgroup" });
  const el = h("div", { class: "wbb-grid", role: "grid", tabindex: 0, "aria-label": label, "aria-multiselectable": "true" },
    h("div", { role: "rowgroup" }, head), canvas);
  const selected = new Set();
  let state = { columns: [], sort: "", descending: true, total: 0, version: 0 };
  let pages = new Map(), shown = new Map(), active = 0, pivot = null, opened = null, asking = null, wanted = null, name = 0;

  const height = () => Math.max(ROW, el.clientHeight - head.offsetHeight);
  const full = () => state.total * ROW;
  const drawn = () => Math.min(full(), TALLEST);
  const factor = () => (full() > TALLEST ? (full() - height()) / (TALLEST - height()) : 1);
  const top = () => el.scrollTop * factor();
  const rowAt = (index) => pages.get(Math.floor(index / PAGE))?.[index % PAGE];

  /** Columns as wide as their kind says; what room is left goes to a wide column, else to the right of all. */
  function measure() {
    const named = (column) => 26 + 7.8 * column.title.length + (column.arrow ? 16 : 0) + (column.name === state.sort ? 18 : 0);
    const widths = state.columns.map((column) => chosen[column.name] ?? Math.max(WIDTHS[column.kind] ?? WIDTHS.text, named(column)));
    const room = el.clientWidth - 36 - widths.reduce((sum, width) => sum + width, 0);
    const greedy = ["tags", "wide"].map((kind) => state.columns.findIndex((column) => column.kind === kind && !(column.name in chosen))).filter((at) => at >= 0);
    for (const at of greedy) widths[at] += Math.max(0, room) / greedy.length;
    if (!greedy.length) widths.push(Math.max(0, room));
    el.style.setProperty("--wbb-columns", ["36px", ...widths.map((width) => `${width.toFixed(1)}px`)].join(" "));
  }

  function header() {
    measure();
    el.setAttribute("aria-colcount", state.columns.length + 1);
    const focused = head.contains(document.activeElement);
    name = Math.min(name, state.columns.length - 1);
    head.replaceChildren(
      h("span", { role: "columnheader", class: "wbb-cell wbb-check", "aria-label": "selected" }),
      ...state.columns.map((column, at) => {
        const sorted = column.name === state.sort;
        const numeric = column.kind === "number" || column.kind === "parameter";
        return h("span", { role: "columnheader", class: numeric ? "wb-number" : "", "aria-sort": sorted ? (state.descending ? "descending" : "ascending") : "none" },
          h("button", { class: "wbb-name", type: "button", tabindex: at === name ? 0 : -1, title: `${column.help}. Click to sort; drag the edge, or Alt with ← →, for its width.`, "data-column": column.name, on: { click: () => { name = at; on.sort(column.name); } } },
            h("span", {}, column.title), column.arrow ? h("span", { "aria-hidden": "true" }, column.arrow) : null,
            sorted ? h("span", { class: "wbb-arrow", "aria-hidden": "true" }, state.descending ? "▼" : "▲") : null),
          edge(column.name));
      }));
    if (focused) head.querySelectorAll(".wbb-name")[name]?.focus();
  }

  /** The edge of a column, to drag; a double click gives it back its own width. */
  function edge(name) {
    const made = h("span", { class: "wbb-edge", "aria-hidden": "true" });
    made.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      made.setPointerCapture(event.pointerId);
      const from = event.clientX, before = made.parentElement.offsetWidth;
      const drag = (moved) => widen(name, before + moved.clientX - from, false);
      made.addEventListener("pointermove", drag);
      made.addEventListener("lostpointercapture", () => { made.removeEventListener("pointermove", drag); on.widths(chosen); }, { once: true });
    });
    made.addEventListener("dblclick", () => widen(name, null));
    return made;
  }
  function widen(name, width, told = true) {
    chosen = { ...chosen };
    if (width === null) delete chosen[name]; else chosen[name] = Math.round(Math.max(NARROWEST, Math.min(WIDEST, width)));
    measure();
    if (told) on.widths(chosen);
  }

  /** One of the names can be reached with Tab; arrows go from name to name, and down into the rows. */
  head.addEventListener("keydown", (event) => {
    const names = [...head.querySelectorAll(".wbb-name")], step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "ArrowDown") el.focus();
    else if (event.altKey && step) widen(names[name].dataset.column, names[name].parentElement.offsetWidth + step * STEP);
    else if (step && names[name + step]) { names[name].tabIndex = -1; name += step; names[name].tabIndex = 0; names[name].focus(); }
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  function cell(column, value, row) {
    const [text, title] = Array.isArray(value) && column.kind !== "tags" ? value : [value, null];
    if (column.kind === "status") {
      const made = h("span", { class: "wbb-cell", role: "gridcell", title: row.message ? `${text}: ${row.message}` : null },
        h("span", { class: `wbb-state wb-${/^[a-z]+$/.test(row.status) ? row.status : "unknown"}` }, text,
          row.progress !== undefined ? h("span", { class: "wbb-progress", role: "img", "aria-label": `${Math.round(100 * row.progress)} %` },
            h("span", { style: { width: `${100 * row.progress}%` } })) : null));
      return made;
    }
    if (column.kind === "tags") {
      return h("span", { class: "wbb-cell", role: "gridcell", title: value.length ? value.join(", ") : null }, ...value.map((tag) => h("span", { class: "wbb-tag" }, tag)));
    }
    const kind = column.kind === "number" || column.kind === "parameter" ? " wb-number" : column.kind === "time" ? " wbb-time" : "";
    return h("span", { class: `wbb-cell${kind}`, role: "gridcell", title: title ?? (text.length > 12 ? text : null) }, text);
  }

  function line(index) {
    const row = rowAt(index);
    const made = h("div", { class: `wbb-row wbb-line${index % 2 ? " wbb-odd" : ""}`, role: "row", id: `${uid}-row-${index}`, "aria-rowindex": index + 2, "data-index": index });
    if (row === undefined) {
      made.setAttribute("aria-busy", "true");
      made.append(...[null, ...state.columns].map((column) => h("span", { class: "wbb-cell", role: "gridcell" }, column ? h("div", { class: "wbb-bone" }) : null)));
    } else if (row === null) {
      made.append(h("span", { role: "gridcell" }), h("span", { class: "wbb-cell wb-muted", role: "gridcell", style: { gridColumn: "2 / -1" } }, "deleted since"));
    } else {
      const box = h("input", { type: "checkbox", tabindex: -1, checked: selected.has(row.id), "aria-label": `select ${row.id}` });
      made.dataset.run = row.id;
      made.setAttribute("aria-selected", selected.has(row.id));
      made.classList.toggle("wbb-open", row.id === opened);
      made.append(h("span", { class: "wbb-cell wbb-check", role: "gridcell" }, box), ...state.columns.map((column, at) => cell(column, row.cells[at] ?? "", row)));
    }
    made.classList.toggle("wbb-active", index === active);
    return made;
  }

  function draw(again = false) {
    canvas.style.height = `${drawn()}px`;
    const from = Math.max(0, Math.floor(top() / ROW) - 4), to = Math.min(state.total, Math.ceil((top() + height()) / ROW) + 4);
    const shift = el.scrollTop - top();
    for (const [index, node] of shown) {
      if (again || index < from || index >= to || (node.ariaBusy === "true" && rowAt(index) !== undefined)) { node.remove(); shown.delete(index); }
    }
    for (let index = from; index < to; index++) {
      if (!shown.has(index)) { const node = line(index); shown.set(index, node); canvas.append(node); }
      shown.get(index).style.top = `${index * ROW + shift}px`;
    }
    fetch(from, to);
  }

  /** One question at a time; while it is on its way only the latest place scrolled to is remembered. */
  async function fetch(from, to) {
    const missing = [];
    for (let page = Math.floor(from / PAGE); page <= Math.floor(Math.max(from, to - 1) / PAGE); page++) if (!pages.has(page)) missing.push(page);
    if (!missing.length || !state.total) return;
    if (asking) { wanted = true; return; }
    const version = state.version, start = missing[0] * PAGE;
    asking = ask({ kind: "rows", version, start, count: (missing.at(-1) - missing[0] + 1) * PAGE });
    const reply = await asking.catch(() => null);
    asking = null;
    if (reply && version === state.version) {
      if (reply.stale) return on.stale();
      if (reply.rows) keep(start, reply.rows);
    }
    const again = wanted || (reply && version !== state.version);
    wanted = false;
    if (reply?.rows || again) draw();
  }

  function keep(start, rows) {
    for (let at = 0; at < rows.length; at += PAGE) pages.set((start + at) / PAGE, rows.slice(at, at + PAGE));
    const here = Math.floor(top() / ROW / PAGE);
    for (const page of [...pages.keys()].sort((a, b) => Math.abs(b - here) - Math.abs(a - here)).slice(0, Math.max(0, pages.size - MOST_PAGES))) pages.delete(page);
  }

  /** New rows: `reply` is a first page. `place`: which row to have on top; undefined leaves the table where it is. */
  function show(reply, { place = 0, columns = false } = {}) {
    state = { ...state, ...reply.state, columns: reply.columns, total: reply.total, version: reply.version };
    pages = new Map();
    if (reply.rows.length && reply.start % PAGE === 0) keep(reply.start, reply.rows);
    el.setAttribute("aria-rowcount", state.total + 1);
    if (!columns) active = Math.min(active, Math.max(0, state.total - 1));
    header();
    canvas.style.height = `${drawn()}px`;
    if (place !== undefined) { el.scrollTop = (place * ROW) / factor(); if (!columns) active = place; }
    draw(true);
    point();
  }

  /** The same rows in a new version of the order, with `place` the new place of the row that was on top. */
  function renew(reply, offset) {
    state = { ...state, total: reply.total, version: reply.version };
    pages = new Map();
    el.setAttribute("aria-rowcount", state.total + 1);
    canvas.style.height = `${drawn()}px`;
    if (reply.place !== null && reply.place !== undefined && offset > 0) el.scrollTop = (reply.place * ROW + (offset % ROW)) / factor();
    active = Math.min(active, Math.max(0, state.total - 1));
    refresh();
  }

  /** Ask for the rows on view again, without taking away what is there. */
  async function refresh() {
    const from = Math.max(0, Math.floor(top() / ROW / PAGE) * PAGE), count = PAGE * Math.ceil(height() / ROW / PAGE + 1);
    const version = state.version;
    const reply = await ask({ kind: "rows", version, start: from, count }).catch(() => null);
    if (!reply?.rows || version !== state.version) return;
    keep(from, reply.rows);
    draw(true);
  }

  function point() {
    for (const [index, node] of shown) node.classList.toggle("wbb-active", index === active);
    if (shown.has(active)) el.setAttribute("aria-activedescendant", `${uid}-row-${active}`);
    else el.removeAttribute("aria-activedescendant");
  }

  function go(index, extend) {
    if (!state.total) return;
    if (extend && pivot === null) pivot = active;
    active = Math.max(0, Math.min(index, state.total - 1));
    const here = active * ROW;
    if (here < top()) el.scrollTop = here / factor();
    else if (here + ROW > top() + height()) el.scrollTop = (here + ROW - height()) / factor();
    draw();
    point();
    if (extend) range(pivot, active); else pivot = null;
  }

  async function range(first, last) {
    const reply = await ask({ kind: "ids", version: state.version, first, last }).catch(() => null);
    if (!reply?.ids) return;
    for (const id of reply.ids) selected.add(id);
    mark();
  }

  function toggle(index) {
    const row = rowAt(index);
    if (!row) return;
    if (!selected.delete(row.id)) selected.add(row.id);
    pivot = index;
    mark();
  }

  function mark() {
    for (const node of shown.values()) {
      if (!node.dataset.run) continue;
      const chosen = selected.has(node.dataset.run);
      node.setAttribute("aria-selected", chosen);
      node.querySelector("input").checked = chosen;
      node.classList.toggle("wbb-open", node.dataset.run === opened);
    }
    on.select(selected);
  }

  function open(index) {
    const row = rowAt(index);
    if (row) on.open(row);
  }

  let frame = null;
  el.addEventListener("scroll", () => { frame ??= requestAnimationFrame(() => { frame = null; draw(); point(); }); });
  const sized = new ResizeObserver(() => { measure(); draw(); });
  sized.observe(el);
  canvas.addEventListener("click", (event) => {
    const node = event.target.closest(".wbb-row");
    if (!node) return;
    const index = Number(node.dataset.index);
    active = index;
    point();
    if (event.shiftKey) { getSelection()?.removeAllRanges(); range(pivot ?? index, index); }
    else if (event.target.closest(".wbb-check") || event.ctrlKey || event.metaKey) toggle(index);
    else if (!String(getSelection())) open(index);
  });
  el.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(height() / ROW) - 1);
    const steps = { ArrowDown: active + 1, ArrowUp: active - 1, PageDown: active + page, PageUp: active - page, Home: 0, End: state.total - 1 };
    if (event.target !== el) return;
    if (event.key in steps) go(steps[event.key], event.shiftKey);
    else if (event.key === "Enter") open(active);
    else if (event.key === " ") toggle(active);
    else if (event.key === "Escape") { if (selected.size) { selected.clear(); mark(); } else on.close(); }
    else return;
    event.preventDefault();
  });

  return {
    el, show, renew, refresh, selected, mark, draw,
    get state() { return state; },
    get offset() { return top(); },
    get anchor() { return el.scrollTop > 0 ? rowAt(Math.floor(top() / ROW))?.id ?? null : null; },
    clear() { selected.clear(); mark(); },
    choose(ids) { selected.clear(); for (const id of ids) selected.add(id); mark(); },
    opened(id) { opened = id; mark(); },
    end() { sized.disconnect(); },
  };
}
