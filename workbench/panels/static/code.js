// Code to copy.
function render({ model, el }) {
  const code = wb.h("pre", { tabindex: 0, "aria-label": "Python code" });
  const button = wb.h(
    "button",
    { class: "wb-button wb-quiet", type: "button", on: { click: () => wb.copy(model.get("code"), button) } },
    "Copy",
  );
  const show = () => (code.textContent = model.get("code"));
  model.on("change:code", show);
  show();
  el.append(wb.h("div", { class: "wbp-code" }, code, button));
  return () => model.off("change:code", show);
}

export default { render };
