// The search box: the store's query language, with what may come next and, below it, what is wrong.

/** on: {query(text, now)}; ask as in runGrid. */
function searchBox({ ask, on, uid }) {
  const h = wb.h;
  const input = h("input", {
    class: "wb-input", type: "text", role: "combobox", autocomplete: "off", spellcheck: "false", "aria-label": "Search runs", "aria-autocomplete": "list",
    "aria-expanded": "false", "aria-controls": `${uid}-options`, "aria-describedby": `${uid}-problem`,
    placeholder: "Search: accuracy > 0.9 and user = me",
  });
  const options = h("ul", { class: "wbb-options", role: "listbox", id: `${uid}-options`, "aria-label": "Completions", hidden: true });
  const wipe = h("button", { class: "wbb-wipe", type: "button", "aria-label": "Clear search", hidden: true, on: { click: () => { input.value = ""; changed(true); input.focus(); } } }, "×");
  const problem = h("div", { class: "wb-error wb-text", id: `${uid}-problem`, role: "alert", hidden: true });
  const el = h("div", { class: "wbb-search" }, input, wipe, options);
  let offered = null, chosen = -1, timer = null, number = 0;

  function close() {
    options.hidden = true;
    chosen = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function pick(index) {
    chosen = index;
    [...options.children].forEach((node, at) => node.setAttribute("aria-selected", at === index));
    if (index >= 0) { options.children[index].scrollIntoView({ block: "nearest" }); input.setAttribute("aria-activedescendant", options.children[index].id); }
    else input.removeAttribute("aria-activedescendant");
  }

  async function offer() {
    const mine = ++number, text = input.value, cursor = input.selectionStart;
    const reply = await ask({ kind: "complete", text, cursor }).catch(() => null);
    if (mine !== number || !reply?.options || document.activeElement !== input) return;
    offered = { ...reply, text };
    const typed = text.slice(reply.from, cursor);
    if (!reply.options.length || (reply.options.length === 1 && reply.options[0].text === typed)) return close();
    options.replaceChildren(...reply.options.map((option, at) => h("li", {
      class: "wbb-option", role: "option", id: `${uid}-option-${at}`, "aria-selected": "false",
      on: { mousedown: (event) => { event.preventDefault(); accept(at); } },
    }, h("span", { class: "wb-text" }, option.shown), h("span", {}, option.detail))));
    options.hidden = false;
    input.setAttribute("aria-expanded", "true");
    pick(-1);
  }

  function accept(index) {
    const text = offered.options[index].text, rest = offered.text.slice(offered.to);
    const before = offered.text.slice(0, offered.from) + text + (rest.startsWith(" ") ? "" : " ");
    input.value = before + rest;
    input.setSelectionRange(before.length, before.length);
    close();
    changed(false);
    offer();
  }

  function changed(now) {
    wipe.hidden = !input.value;
    clearTimeout(timer);
    if (now) on.query(input.value, true);
    else timer = setTimeout(() => on.query(input.value, false), 220);
  }

  input.addEventListener("input", () => { changed(false); offer(); });
  input.addEventListener("focus", () => offer());
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const count = options.hidden ? 0 : options.children.length;
    if (event.key === "ArrowDown" && !count) offer();
    else if (event.key === "ArrowDown") pick((chosen + 1) % count);
    else if (event.key === "ArrowUp" && count) pick(chosen <= 0 ? count - 1 : chosen - 1);
    else if ((event.key === "Enter" || event.key === "Tab") && count && chosen >= 0) accept(chosen);
    else if (event.key === "Enter") { close(); changed(true); }
    else if (event.key === "Escape" && count) close();
    else return;
    event.preventDefault();
  });

  return {
    el, problem, input,
    set(text) { if (input.value !== text) input.value = text; wipe.hidden = !text; },
    /** What is wrong with the query; nothing, if there is no message. */
    tell(message) {
      problem.hidden = !message;
      problem.textContent = message ?? "";
      input.setAttribute("aria-invalid", message ? "true" : "false");
    },
    end() { clearTimeout(timer); },
  };
}
