"use strict";
// Colours come from the style sheet, so that the figures follow the page from light to dark.
function theme() {
  const style = getComputedStyle(document.documentElement);
  const family = getComputedStyle(document.body).fontFamily;
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = {
    gridcolor: colour("--grid"), zerolinecolor: colour("--grid"), linecolor: colour("--line"),
    tickfont: { color: colour("--soft") }, title: { font: { color: colour("--soft"), size: 12 }, standoff: 8 },
  };
  return { layout: {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--text"), size: 12, family },
    xaxis: axis, yaxis: axis, hovermode: "closest",
    hoverlabel: {
      bgcolor: colour("--card"), bordercolor: colour("--boundary"), font: { color: colour("--text"), family }, align: "left",
    },
    annotationdefaults: { font: { color: colour("--soft") } },
    shapedefaults: { line: { color: colour("--boundary") }, fillcolor: colour("--shade") },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--line"), activecolor: colour("--soft") },
  } };
}

const figures = JSON.parse(document.getElementById("figures").textContent);
const plots = figures.map((figure, i) => {
  const place = document.getElementById("figure-" + i);
  Plotly.newPlot(place, figure.data, { ...figure.layout, template: theme() },
    { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
  return place;
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const plot of plots) Plotly.relayout(plot, { template: theme() });
});
