// The graph of runs: boxes are buttons, from left (first) to right (last).
const WIDE = 212,
  TALL = 74,
  GAP_X = 64,
  GAP_Y = 16;

function render({ model, el }) {
  const { nodes, edges, left_out: leftOut } = model.get("graph");
  const at = new Map(nodes.map((node) => [node.id, [node.column * (WIDE + GAP_X), node.row * (TALL + GAP_Y)]]));
  const width = Math.max(...nodes.map((node) => at.get(node.id)[0])) + WIDE,
    height = Math.max(...nodes.map((node) => at.get(node.id)[1])) + TALL;
  const svg = (tag, props) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [k, v] of Object.entries(props)) made.setAttribute(k, v);
    return made;
  };
  const drawing = svg("svg", { width, height, "aria-hidden": "true", class: "wbl-edges" });
  for (const [from, to, role] of edges) {
    const [x1, y1] = at.get(from),
      [x2, y2] = at.get(to),
      a = [x1 + WIDE, y1 + TALL / 2],
      b = [x2, y2 + TALL / 2],
      bend = Math.max(30, (b[0] - a[0]) / 2);
    drawing.append(
      svg("path", { d: `M${a[0]},${a[1]} C${a[0] + bend},${a[1]} ${b[0] - bend},${b[1]} ${b[0] - 7},${b[1]}` }),
      svg("path", { class: "wbl-tip", d: `M${b[0] - 9},${b[1] - 4} L${b[0]},${b[1]} L${b[0] - 9},${b[1] + 4} Z` }),
    );
    const text = svg("text", { x: (a[0] + b[0]) / 2, y: (a[1] + b[1]) / 2 - 6, "text-anchor": "middle" });
    text.textContent = role;
    drawing.append(text);
  }
  const boxes = [...nodes]
    .sort((a, b) => a.column - b.column || a.row - b.row)
    .map((node) => {
      const [left, top] = at.get(node.id);
      return wb.h(
        "button",
        {
          class: `wbl-node${node.here ? " wbl-here" : ""}`,
          type: "button",
          disabled: node.status === "deleted",
          "aria-current": node.here ? "true" : null,
          "data-run": node.id,
          title: node.id,
          style: { left: `${left}px`, top: `${top}px`, width: `${WIDE}px`, height: `${TALL}px` },
          on: {
            click: () => {
              if (!node.here) model.send({ open: node.id });
            },
          },
        },
        wb.h("span", { class: "wbl-method wb-text" }, node.method || node.id),
        wb.h("span", { class: "wbl-title wb-text" }, node.title),
        wb.h(
          "span",
          { class: "wbl-foot" },
          wb.h("span", { class: `wb-${node.status}` }, node.status),
          node.metric ? wb.h("span", { class: "wb-muted wb-text" }, node.metric) : null,
        ),
      );
    });
  const canvas = wb.h(
    "div",
    { class: "wbl-canvas", style: { width: `${width}px`, height: `${height}px` } },
    drawing,
    ...boxes,
  );
  el.append(wb.h("div", { class: "wbl", role: "group", "aria-label": "lineage" }, canvas));
  if (leftOut) el.append(wb.h("div", { class: "wb-hint" }, `${leftOut} more runs are not drawn.`));
}

export default { render };
