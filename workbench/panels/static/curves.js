// Charts side by side where there is room; they keep their zoom while their curves grow.
function render({ model, el }) {
  const box = wb.h("div", { class: "wbp-charts" });
  let charts = [];
  function show() {
    const wanted = model.get("charts");
    if (charts.length !== wanted.length) {
      for (const chart of charts) chart.end();
      charts = wanted.map((data) =>
        wb.chart(model.get("palette"), { height: 220, label: `${data.y_label} over ${data.x_label}` }),
      );
      box.replaceChildren(...charts.map((chart) => chart.el));
    }
    wanted.forEach((data, i) => charts[i].update(data, true));
  }
  model.on("change:charts", show);
  el.append(box);
  show();
  return () => {
    model.off("change:charts", show);
    for (const chart of charts) chart.end();
  };
}

export default { render };
