"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("chart-data").textContent);
  const shapes = ["circle", "rect", "triangle", "rectRot", "cross", "star", "rectRounded"];
  const charts = new Map();
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = (value) => Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 });

  // Intervals: a band along a line, whiskers on single points. Diagonal: where y = x.
  const intervals = {
    id: "intervals",
    beforeDatasetsDraw(chart) {
      const { ctx, chartArea: area, scales: { x, y } } = chart;
      ctx.save();
      ctx.beginPath();
      ctx.rect(area.left - 8, area.top - 8, area.width + 16, area.height + 16);
      ctx.clip();
      if (chart.options.diagonal) {
        ctx.setLineDash([5, 5]);
        ctx.strokeStyle = css("--soft");
        ctx.beginPath();
        ctx.moveTo(x.getPixelForValue(0), y.getPixelForValue(0));
        ctx.lineTo(x.getPixelForValue(1), y.getPixelForValue(1));
        ctx.stroke();
        ctx.setLineDash([]);
      }
      chart.data.datasets.forEach((set, index) => {
        const points = set.data.filter((p) => p.low !== null);
        if (!chart.isDatasetVisible(index) || points.length === 0) return;
        const at = (p, end) => [x.getPixelForValue(p.x), y.getPixelForValue(p[end])];
        ctx.beginPath();
        if (set.showLine && points.length > 1) {
          points.forEach((p) => ctx.lineTo(...at(p, "low")));
          [...points].reverse().forEach((p) => ctx.lineTo(...at(p, "high")));
          ctx.globalAlpha = 0.16;
          ctx.fillStyle = set.borderColor;
          ctx.fill();
        } else {
          points.forEach((p) => { ctx.moveTo(...at(p, "low")); ctx.lineTo(...at(p, "high")); });
          ctx.globalAlpha = 0.6;
          ctx.lineWidth = 2;
          ctx.strokeStyle = set.borderColor;
          ctx.stroke();
        }
        ctx.globalAlpha = 1;
      });
      ctx.restore();
    },
  };

  const dataset = (series, small) => {
    const color = css(`--s${series.color}`);
    const alone = series.markers || series.points.length === 1;
    return {
      label: series.name, data: series.points, parsing: false, showLine: series.line, borderColor: color, backgroundColor: color,
      borderWidth: small ? 1.6 : 2, pointStyle: shapes[series.color], pointRadius: alone ? 5 : 0, pointHitRadius: 10, pointHoverRadius: 6, clip: 8,
    };
  };

  const axis = (title, small, { ticks, ...bounds }) => ({
    type: "linear", ...bounds, border: { display: false }, grid: { color: css("--grid") },
    title: { display: !small, text: title, color: css("--soft") },
    ticks: { color: css("--soft"), maxTicksLimit: small ? 4 : 7, maxRotation: 0, callback: (value) => short(value), ...ticks },
  });

  const xBounds = (spec) => (spec.series.every((s) => s.points.every((p) => Number.isInteger(p.x))) ? { ticks: { precision: 0 } } : {});
  const yBounds = (spec) => (spec.shares ? { min: 0, max: 1 } : spec.small ? {} : { grace: "4%" });

  const tooltip = (spec) => ({
    backgroundColor: css("--ink"), titleColor: css("--paper"), bodyColor: css("--paper"), displayColors: false,
    callbacks: {
      title: (items) => items[0].raw.label || items[0].dataset.label,
      label: ({ raw }) => {
        const range = raw.low === null ? "" : ` (${short(raw.low)} to ${short(raw.high)})`;
        return [`${spec.y}: ${short(raw.y)}${range}`, `${spec.x}: ${short(raw.x)}`];
      },
    },
  });

  const draw = (canvas) => {
    const spec = specs[canvas.dataset.chart];
    charts.get(canvas)?.destroy();
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    charts.set(canvas, new Chart(canvas, {
      type: "scatter",
      data: { datasets: spec.series.map((series) => dataset(series, spec.small)) },
      plugins: [intervals],
      options: {
        animation: false, responsive: true, maintainAspectRatio: false, diagonal: spec.diagonal,
        interaction: { mode: "nearest", intersect: false, axis: spec.small ? "x" : "xy" },
        scales: { x: axis(spec.x, spec.small, xBounds(spec)), y: axis(spec.y, spec.small, yBounds(spec)) },
        plugins: {
          legend: { display: !spec.small && spec.series.length > 1, position: "bottom", labels: { color: css("--ink"), usePointStyle: true, boxWidth: 7, boxHeight: 7, padding: 16 } },
          tooltip: tooltip(spec),
        },
      },
    }));
  };
  const visible = () => document.querySelectorAll("canvas[data-chart]").forEach((canvas) => { if (canvas.offsetParent) draw(canvas); });

  // Curves inside a closed part have no size, so they are drawn when it opens.
  document.querySelectorAll("details").forEach((part) => part.addEventListener("toggle", () => part.open && part.querySelectorAll("canvas").forEach(draw)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", visible);
  addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; visible(); });
  addEventListener("afterprint", () => { delete document.documentElement.dataset.theme; visible(); });
  visible();

  const buttons = document.querySelectorAll("[data-filter]");
  buttons.forEach((button) => button.addEventListener("click", () => {
    const wanted = button.dataset.filter;
    buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    document.querySelectorAll(".comparison").forEach((item) => {
      item.hidden = !(wanted === "" || item.dataset.kind === wanted || (wanted === "worse" && "worse" in item.dataset));
    });
  }));
})();
