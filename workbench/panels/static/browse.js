// The table of all runs: puts search, facets and grid together, and keeps up with the store while it is on view.
function render({ model, el }) {
  const h = wb.h, uid = wb.unique("wbb");
  const label = model.get("label");
  const pending = new Map();
  let state = model.get("state"), sequence = 0, ticking = false, asked = 0, ended = false;

  /** A question to the kernel; rejects when there is no answer for a minute. */
  function ask(message) {
    const id = `${uid}/${++sequence}`;
    return new Promise((resolve, reject) => {
      const slow = setTimeout(() => tell("Waiting for the kernel…"), 2500);
      const late = setTimeout(() => { pending.delete(id); reject(new Error("no answer")); tell("The kernel does not answer. Is it busy, or was it stopped?"); }, 60000);
      pending.set(id, (reply) => { clearTimeout(slow); clearTimeout(late); pending.delete(id); settle(); resolve(reply); });
      model.send({ ...message, id });
    });
  }
  const hear = (reply) => pending.get(reply.id)?.(reply);
  model.on("msg:custom", hear);

  const root = h("section", { class: "wb-panel wbb", "aria-label": label, "data-lm-suppress-shortcuts": "true" });
  const keepWidths = (widths) => { model.set("widths", widths); model.save_changes(); };
  const grid = runGrid({ ask, label, uid, widths: model.get("widths"), on: { sort, open, close, stale: () => again({ look: false }), select: chosen, widths: keepWidths } });
  const search = searchBox({ ask, uid, on: { query: (text, now) => { if (now || text !== state.query) change({ query: text }, { now }); } } });
  const facets = facetList({ on: { facet: (name, values) => change({ facets: { ...state.facets, [name]: values } }) } });
  const columns = popover("Columns", (box) => fillColumns(box, { ask, current: () => grid.state.columns.map((column) => column.name), on: { columns: (names) => change({ columns: names }, { columns: true }) } }), root);
  const views = popover("Views", (box) => fillViews(box, { ask, writable: model.get("writable"), on: { view: (view) => { views.close(); search.set(view.state.query); change(view.state); } } }), root);
  const compare = h("button", { class: "wb-button wb-primary", type: "button", disabled: true, on: { click: () => act({ kind: "compare", runs: [...grid.selected] }, `Comparing ${grid.selected.size} runs`, "The comparison is below the table.") } }, "Compare");
  const unfilter = h("button", { class: "wb-button wb-quiet", type: "button", hidden: true, on: { click: () => { search.set(""); change({ query: "", facets: {} }); } } }, "Clear filters");
  const narrow = h("button", { class: "wb-button wbb-narrow", type: "button", "aria-expanded": "false", on: { click: () => {
    narrow.setAttribute("aria-expanded", root.classList.toggle("wbb-filtering"));
  } } }, "Filters");
  const nothing = h("div", { class: "wbb-nothing", hidden: true });
  const count = h("span", { role: "status" }), said = h("span", { role: "status" }), help = h("span", {}, "↑ ↓ move · Enter open · Space select · click a name to sort");
  root.append(
    h("div", { class: "wbb-top" }, search.el, unfilter, compare, narrow, columns.button, views.button), search.problem,
    h("div", { class: "wbb-body" }, facets.el, h("div", { class: "wbb-main" }, grid.el, nothing)),
    h("div", { class: "wbb-foot" }, count, said, help), columns.el, views.el);
  for (const type of ["keydown", "keyup", "keypress"]) root.addEventListener(type, (event) => event.stopPropagation());
  el.append(root);

  function tell(text) { said.textContent = text; }
  function settle() { if (!pending.size && /kernel/.test(said.textContent)) tell(""); }
  function counted() {
    const total = grid.state.total, many = grid.selected.size;
    count.textContent = `${total.toLocaleString("en")} ${total === 1 ? "run" : "runs"}${many ? `, ${many} selected` : ""}`;
  }
  function chosen(selected) {
    compare.disabled = selected.size < 2;
    compare.textContent = selected.size > 1 ? `Compare ${selected.size}` : "Compare";
    counted();
    model.set("selected", [...selected]);
    model.save_changes();
  }

  function vacant(empty) {
    nothing.hidden = !empty;
    if (!empty) return;
    nothing.replaceChildren(h("div", { class: "wb-empty", role: "status" }, h("div", { class: "wb-title" }, empty.title), ...empty.advice.map((line) => h("div", { class: "wb-text" }, line)),
      empty.clear ? h("button", { class: "wb-button", type: "button", on: { click: () => { search.set(""); change({ query: "", facets: {} }); } } }, "Show all runs") : null));
  }

  function show(reply, options) {
    state = reply.state;
    grid.show(reply, options);
    vacant(reply.empty);
    counted();
    unfilter.hidden = !state.query && !Object.keys(state.facets).length;
    search.tell(null);
    tell("");
  }

  /** Ask with another state; only the latest question counts. */
  async function change(changes, options = {}) {
    const wanted = { ...state, columns: grid.state.columns.map((column) => column.name), ...changes };
    state = wanted;
    const mine = ++asked;
    const start = options.columns ? Math.floor(grid.offset / ROW / PAGE) * PAGE : 0;
    const reply = await ask({ kind: "ask", state: wanted, start, look: Boolean(options.look) }).catch(() => null);
    if (mine !== asked || !reply || ended) return;
    if (reply.building) {
      tell("Reading the store for the first time. The table opens by itself.");
      return setTimeout(() => mine === asked && change({}, options), 700);
    }
    if (reply.problem) return search.tell(reply.unfinished && !options.now ? null : reply.problem);
    if (reply.error) return tell(reply.error);
    show(reply, options.columns ? { place: undefined, columns: true } : options.stay ? { place: undefined } : {});
    if (!options.columns) count_facets();
  }
  const again = (options) => change({}, { stay: true, ...options });

  async function count_facets() {
    const mine = asked;
    const reply = await ask({ kind: "facets" }).catch(() => null);
    if (mine === asked && reply?.facets) facets.show(reply.facets, state.facets);
  }

  function sort(name) {
    const same = state.sort === name;
    const rising = ["method", "family", "user", "host", "device", "study", "tag", "status"].includes(name);
    change({ sort: name, descending: same ? !state.descending : !rising });
  }

  async function act(message, doing, done) {
    tell(`${doing}…`);
    const reply = await ask(message).catch(() => null);
    if (!reply) return;
    tell(reply.error ?? done);
    // What opened must be seen: with the table at the top of the page there is room for it below.
    if (!reply.error && root.getBoundingClientRect().bottom > innerHeight - 160) root.scrollIntoView({ block: "start" });
  }
  function open(row) {
    grid.opened(row.id);
    act({ kind: "open", run: row.id }, "Opening", "The run is open below the table.");
  }

  function close() {
    grid.opened(null);
    ask({ kind: "close" }).catch(() => null);
    tell("");
  }

  async function tick() {
    if (ticking || ended || document.hidden || !root.isConnected || !seen || pending.size) return;
    ticking = true;
    const mine = asked, offset = grid.offset;
    const reply = await ask({ kind: "tick", anchor: grid.anchor }).catch(() => null);
    ticking = false;
    if (!reply || mine !== asked || reply.error) return;
    if (grid.offset !== offset) reply.place = null; // scrolled meanwhile: stay there
    if (reply.changed) { grid.renew(reply, offset); vacant(reply.empty); counted(); count_facets(); }
    else if (reply.version !== grid.state.version) again({ look: false });
    else if (reply.live) grid.refresh();
  }
  let seen = false;
  const watcher = new IntersectionObserver((entries) => { seen = entries.at(-1).isIntersecting; });
  watcher.observe(root);
  const timer = setInterval(tick, model.get("interval"));

  const open_elsewhere = () => grid.opened(model.get("opened") || null);
  model.on("change:opened", open_elsewhere);

  const first = model.get("first");
  search.set(state.query ?? "");
  if (first.rows) { show(first); count_facets(); }
  else if (first.error) tell(first.error);
  else change({});
  if (model.get("selected").length) grid.choose(model.get("selected"));

  return () => {
    ended = true;
    clearInterval(timer);
    watcher.disconnect();
    grid.end();
    search.end();
    model.off("msg:custom", hear);
    model.off("change:opened", open_elsewhere);
  };
}

export default { render };
