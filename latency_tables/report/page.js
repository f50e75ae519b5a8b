(async () => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const boxes = Object.keys(figures).map((name) => document.getElementById(name)).filter(Boolean);
  const fail = (text) => boxes.forEach((box) => { box.innerHTML = `<p class="failed">${text}</p>`; });
  if (!("DecompressionStream" in window)) {
    fail("This browser cannot unpack the figures; any browser since 2023 can.");
    return;
  }
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const library = document.createElement("script");
  library.textContent = await new Response(stream).text();
  document.head.append(library);

  const paint = (value, style) => {
    if (Array.isArray(value)) return value.map((item) => paint(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, paint(item, style)]));
    }
    return typeof value === "string" && value.startsWith("$") ? style.getPropertyValue("--" + value.slice(1)).trim() : value;
  };
  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    const narrow = window.innerWidth < 640;
    const axis = { gridcolor: "$rule", linecolor: "$rule", tickcolor: "$rule", automargin: true, nticks: narrow ? 5 : 9 };
    for (const box of boxes) {
      const { data, layout } = figures[box.id];
      const shared = {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false,
        font: { family: "system-ui, sans-serif", size: 12.5, color: "$soft" },
        margin: { l: 56, r: 14, t: 30, b: 46 },
        legend: { orientation: "h", x: 0, y: 1.02, xanchor: "left", yanchor: "bottom" },
        hoverlabel: { bgcolor: "$card", bordercolor: "$rule", font: { color: "$ink", size: 12.5 }, align: "left" },
        ...layout,
        xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
      };
      const options = { responsive: true, displayModeBar: false };
      window.Plotly.react(box, paint(data, style), paint(shared, style), options);
    }
  };
  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
