// The form of a method. The kernel checks what is typed; its answers stand beside the fields.
const { h } = wb;
const CHECK_AFTER = 120;

function render({ model, el }) {
  const form = model.get("form");
  let seq = 0,
    later = null;
  const uid = wb.unique("wbf");
  const inputs = new Map(),
    rows = new Map();
  const texts = () =>
    Object.fromEntries(
      [...inputs].map(([name, input]) => [name, input.type === "checkbox" ? String(input.checked) : input.value]),
    );
  const changed = () => {
    clearTimeout(later);
    later = setTimeout(() => model.send({ type: "changed", texts: texts(), seq: ++seq }), CHECK_AFTER);
  };

  function line(field) {
    const id = `${uid}-${field.name}`;
    let input,
      more = null;
    const on = { input: changed, change: changed };
    const shared = { id, name: field.name, "aria-describedby": `${id}-help ${id}-error`, on };
    if (field.given) input = h("input", { ...shared, class: "wb-input", value: field.given, disabled: true });
    else if (field.kind === "choice") {
      input = h(
        "select",
        { ...shared, class: "wb-input" },
        ...field.choices.map((text) => h("option", { value: text }, text)),
      );
      input.value = field.value;
    } else if (field.kind === "flag")
      input = h("input", { ...shared, type: "checkbox", checked: field.value === "true" });
    else {
      const list = field.choices.length ? `${id}-list` : null;
      input = h("input", {
        ...shared,
        class: "wb-input",
        type: "text",
        value: field.value,
        list,
        spellcheck: "false",
        autocomplete: "off",
        inputmode: field.kind === "number" ? "decimal" : null,
        placeholder:
          field.kind === "subject"
            ? field.type === "model"
              ? "a name, or run:ID"
              : "a name, a path, or run:ID"
            : field.required
              ? "needed"
              : "",
      });
      if (list) more = h("datalist", { id: list }, ...field.choices.map((text) => h("option", { value: text })));
    }
    if (!field.given) inputs.set(field.name, input);
    const facts = [
      field.type && field.kind !== "choice" && field.kind !== "subject" ? field.type : "",
      field.range,
      field.default && field.group === "parameter" ? `default ${field.default}` : "",
      field.group === "input" && !field.required ? "may be left out" : "",
    ]
      .filter(Boolean)
      .join(" · ");
    const reset =
      field.group === "parameter" && !field.required
        ? h(
            "button",
            {
              class: "wb-button wb-quiet wbf-reset",
              type: "button",
              title: `back to ${field.default}`,
              "aria-label": `${field.name} back to its default`,
              hidden: true,
              on: {
                click: () => {
                  if (input.type === "checkbox") input.checked = field.default === "true";
                  else input.value = field.default;
                  changed();
                },
              },
            },
            "↺",
          )
        : null;
    const error = h("div", { class: "wbf-error wb-text", id: `${id}-error`, role: "alert", hidden: true });
    const row = h(
      "div",
      { class: "wbf-row" },
      h(
        "label",
        { for: id, title: field.help },
        field.label,
        field.required ? h("span", { class: "wbf-must", title: "needed" }, " *") : null,
      ),
      h(
        "div",
        { class: "wbf-cell" },
        h("div", { class: "wbf-entry" }, input, more, reset),
        error,
        h(
          "div",
          { class: "wb-hint wb-text", id: `${id}-help` },
          field.help,
          facts ? h("span", { class: "wbf-facts" }, `${field.help ? "  " : ""}${facts}`) : null,
        ),
      ),
    );
    rows.set(field.name, { row, error, input, field, reset });
    return row;
  }

  const group = (name) => form.fields.filter((field) => field.group === name).map(line);
  const subjects = group("input"),
    parameters = group("parameter"),
    run = group("run");
  const start = h(
    "button",
    {
      class: "wb-button wb-primary",
      type: "button",
      on: {
        click: () => {
          clearTimeout(later);
          model.send({ type: "run", texts: texts() });
        },
      },
    },
    "Run",
  );
  const cancel = h(
    "button",
    { class: "wb-button", type: "button", disabled: true, on: { click: () => model.send({ type: "cancel" }) } },
    "Cancel",
  );
  const status = h("span", { class: "wbf-status", role: "status" }),
    trouble = h("div", { class: "wb-error wb-text", role: "alert", hidden: true });
  const code = h("pre", { tabindex: 0, "aria-label": "Python code" }),
    copy = h(
      "button",
      { class: "wb-button wb-quiet", type: "button", on: { click: () => wb.copy(code.textContent, copy) } },
      "Copy",
    );
  el.classList.add("wbf");
  el.append(
    h(
      "div",
      { class: "wbf-head" },
      h("span", { class: "wb-title" }, form.title),
      h("span", { class: "wb-code wb-muted" }, `${form.id} ${form.version}`),
    ),
    ...(form.paper ? [h("div", { class: "wb-hint wb-text" }, form.paper)] : []),
    h(
      "form",
      {
        class: "wbf-form",
        on: {
          submit: (event) => {
            event.preventDefault();
            if (!start.disabled) start.click();
          },
        },
      },
      ...(subjects.length ? [h("fieldset", {}, h("legend", {}, "Inputs"), ...subjects)] : []),
      ...(parameters.length
        ? [
            h(
              "fieldset",
              { class: parameters.length > 3 ? "wbf-many" : null },
              h("legend", {}, "Parameters"),
              ...parameters,
            ),
          ]
        : []),
      h("details", {}, h("summary", {}, "Seed, device, precision, study"), h("fieldset", {}, ...run)),
    ),
    trouble,
    h("div", { class: "wb-bar wbf-bar" }, start, cancel, status),
    h("details", { class: "wbf-code" }, h("summary", {}, "As code"), h("div", { class: "wbp-code" }, code, copy)),
  );

  const WORDS = {
    idle: "",
    starting: "loads and checks the inputs …",
    pending: "waits for its turn …",
    running: "runs in the background: the notebook stays free",
    cancelling: "stops at its next report of progress …",
    complete: "complete",
    cancelled: "cancelled",
    failed: "failed",
    skipped: "the method declined",
  };
  function show() {
    const state = model.get("state"),
      busy = ["starting", "pending", "running", "cancelling"].includes(state.status),
      problems = Object.entries(state.errors);
    for (const [name, { error, input, field, reset }] of rows) {
      const text = state.errors[name] ?? "";
      error.textContent = text;
      error.hidden = !text;
      input.setAttribute("aria-invalid", text ? "true" : "false");
      const value = input.type === "checkbox" ? String(input.checked) : input.value,
        differs = field.group === "parameter" && value.trim() !== field.default;
      if (reset) reset.hidden = !differs;
      rows.get(name).row.classList.toggle("wbf-changed", differs);
    }
    const other = problems.filter(([name]) => !rows.has(name)).map(([, text]) => text);
    trouble.textContent = [state.trouble, ...other].filter(Boolean).join("\n");
    trouble.hidden = !trouble.textContent;
    start.disabled = busy || problems.length > 0;
    cancel.disabled = !["pending", "running"].includes(state.status);
    status.className = `wbf-status wb-${state.status}`;
    status.textContent = WORDS[state.status] ?? state.status;
    if (state.status === "idle" && problems.length)
      status.textContent = `${problems.length} field${problems.length > 1 ? "s" : ""} to mend`;
    code.textContent = state.code;
    el.dataset.seq = state.seq ?? "";
  }
  model.on("change:state", show);
  show();
  return () => {
    clearTimeout(later);
    model.off("change:state", show);
  };
}

export default { render };
