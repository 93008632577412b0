// Beside the table: facets with their counts, the chooser of columns, saved views.
const FEW = 7, MOST_LISTED = 250;

/** on: {facet(name, values)}. */
function facetList({ on }) {
  const h = wb.h;
  const el = h("nav", { class: "wbb-facets", "aria-label": "Filters" });
  const wide = new Set();
  const shared = (item, most, node) => { node.style.setProperty("--share", `${(100 * item.count) / most}%`); return node; };
  let last = [[], {}];

  function show(facets, chosen) {
    last = [facets, chosen];
    const focus = el.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    el.replaceChildren(...facets.map((facet) => {
      const picked = chosen[facet.name] ?? [];
      const most = Math.max(1, ...facet.values.map((item) => item.count));
      const listed = wide.has(facet.name) ? facet.values : facet.values.filter((item, at) => at < FEW || picked.includes(item.value));
      const hidden = facet.values.length - listed.length;
      return h("fieldset", { class: "wbb-facet" }, h("legend", {}, facet.name), ...listed.map((item) =>
        shared(item, most, h("label", { class: "wbb-value", title: item.text },
          h("input", { type: "checkbox", checked: picked.includes(item.value), "data-key": `${facet.name} ${item.value}`, on: { change: (event) =>
            on.facet(facet.name, event.target.checked ? [...picked, item.value] : picked.filter((value) => value !== item.value)) } }),
          h("span", { class: "wb-text" }, item.text), h("span", { class: "wb-number" }, item.count.toLocaleString("en"))))),
        hidden > 0 || wide.has(facet.name) ? h("button", { class: "wbb-more", type: "button", on: { click: () => {
          if (!wide.delete(facet.name)) wide.add(facet.name);
          show(...last);
        } } }, wide.has(facet.name) ? "fewer" : `${hidden} more`) : null,
        facet.more ? h("div", { class: "wb-hint" }, `and ${facet.more} rare ones`) : null);
    }));
    if (focus) [...el.querySelectorAll("input")].find((node) => node.dataset.key === focus)?.focus();
  }

  return { el, show };
}

/** A button with a box below it that closes with Escape or a click elsewhere. `fill` is called whenever it opens. */
function popover(title, fill, root) {
  const h = wb.h;
  const el = h("div", { class: "wbb-pop", role: "dialog", "aria-label": title, hidden: true });
  const button = h("button", { class: "wb-button", type: "button", "aria-haspopup": "dialog", "aria-expanded": "false", on: { click: () => (el.hidden ? open() : close()) } }, title);
  function open() { el.hidden = false; button.setAttribute("aria-expanded", "true"); fill(el); }
  function close() { el.hidden = true; button.setAttribute("aria-expanded", "false"); }
  for (const part of [el, button]) part.addEventListener("keydown", (event) => { if (event.key === "Escape" && !el.hidden) { close(); button.focus(); event.stopPropagation(); } });
  root.addEventListener("pointerdown", (event) => { if (!el.hidden && !el.contains(event.target) && !button.contains(event.target)) close(); });
  return { el, button, close };
}

/** on: {columns(names)}; current: () => names shown. */
async function fillColumns(el, { ask, on, current }) {
  const h = wb.h;
  const search = h("input", { class: "wb-input", type: "text", placeholder: "Find a metric or parameter", "aria-label": "Find a column", spellcheck: "false" });
  const list = h("div", { class: "wbb-list" });
  el.replaceChildren(search, list);
  const names = await ask({ kind: "names" }).catch(() => null);
  if (!names?.columns) return list.append(h("div", { class: "wb-error" }, names?.error ?? "The kernel does not answer."));
  function show() {
    const typed = search.value.trim().toLowerCase(), chosen = current();
    let room = MOST_LISTED;
    const group = (title, items) => {
      const found = items.filter((item) => item.name.includes(typed)).slice(0, Math.max(0, room));
      room -= found.length;
      return found.length ? [h("h4", {}, title), ...found.map((item) => h("label", { class: "wbb-pick" },
        h("input", { type: "checkbox", checked: chosen.includes(item.name), on: { change: (event) => {
          on.columns(event.target.checked ? [...current(), item.name] : current().filter((name) => name !== item.name));
        } } }), h("span", { class: "wb-text" }, item.shown ?? item.name), item.help ? h("span", { class: "wb-hint" }, item.help) : null))] : [];
    };
    const plain = (items) => items.map((name) => ({ name, shown: name.slice(0, 120) }));
    list.replaceChildren(...group("Of every run", names.columns), ...group("Metrics", plain(names.metrics)), ...group("Parameters", plain(names.parameters)));
    if (!list.children.length) list.append(h("div", { class: "wb-hint" }, "No column is called like that."));
    if (room <= 0) list.append(h("div", { class: "wb-hint" }, "There are more: type a part of the name."));
  }
  search.addEventListener("input", show);
  show();
  search.focus();
}

/** on: {view(view)}; writable: whether views can be saved and deleted. */
async function fillViews(el, { ask, on, writable }) {
  const h = wb.h;
  const list = h("div", { class: "wbb-list" });
  const name = h("input", { class: "wb-input", type: "text", placeholder: "Name of this view", "aria-label": "Name of this view", maxlength: 80 });
  const save = h("button", { class: "wb-button wb-primary", type: "submit" }, "Save");
  const said = h("div", { class: "wb-hint", role: "status" }, writable
    ? "A view keeps search, filters, order and columns. Everybody who uses this store can open it."
    : "This store cannot be written here: views can be opened, not saved.");
  const form = h("form", { class: "wbb-save", on: { submit: (event) => { event.preventDefault(); change({ kind: "save", name: name.value }, `Saved. In a notebook: bench.browse(view=${JSON.stringify(name.value.trim())})`); } } }, name, save);
  el.replaceChildren(...[list, writable ? form : null, said].filter(Boolean));

  function show(reply) {
    if (!reply?.views) return tell(reply);
    list.replaceChildren(...(reply.views.length ? reply.views.map((view) => h("div", { class: "wbb-view" },
      h("button", { type: "button", disabled: !view.state, on: { click: () => on.view(view) } }, h("span", { class: "wb-text" }, view.text),
        h("span", { class: "wb-hint" }, [view.user && `by ${view.user}`, view.query].filter(Boolean).join(" · "))),
      writable ? h("button", { class: "wb-button wb-quiet", type: "button", "aria-label": `Delete the view ${view.text}`, title: "Delete", on: { click: () => change({ kind: "forget", name: view.name }, "Deleted.") } }, "×") : null))
      : [h("div", { class: "wb-hint", style: { padding: "4px 6px" } }, "No saved views yet.")]));
  }
  function tell(reply) {
    said.className = "wb-error wb-text";
    said.textContent = reply?.error ?? "The kernel does not answer.";
  }
  async function change(message, done) {
    const reply = await ask(message).catch(() => null);
    if (!reply?.views) return tell(reply);
    said.className = "wb-hint wb-text";
    said.textContent = done;
    show(reply);
  }
  show(await ask({ kind: "views" }).catch(() => null));
  (writable ? name : el.querySelector("button"))?.focus();
}
