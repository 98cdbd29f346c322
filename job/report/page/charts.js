// Charts: how all of them look, and drawing one anew only if it shows something else.
const charts = new Map();
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const series = (idx) => color(`series-${idx % 10}`);

/** Draw a chart. What its functions show besides its data is in ``shown``. */
function draw(id, config, shown = null) {
  const key = JSON.stringify([config, shown, color("text")]);
  if (charts.get(id)?.key === key) return;
  charts.get(id)?.chart.destroy();
  config.options = { responsive: true, maintainAspectRatio: false, animation: false, ...config.options };
  charts.set(id, { key, chart: new Chart(byId(id), config) });
}

function setDefaults() {
  Chart.defaults.color = color("muted");
  Chart.defaults.borderColor = color("line");
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  Chart.defaults.font.size = 12;
  Chart.defaults.plugins.legend.labels.boxWidth = 10;
  Chart.defaults.plugins.legend.labels.boxHeight = 10;
}

const axis = (title, more = {}) => ({
  title: { display: Boolean(title), text: title }, grid: { color: color("line") }, border: { display: false }, ...more,
});
/** What one result is: a row, or a sample of it. */
const unit = () => (data.status.rows.samples_per_row > 1 ? "sample" : "row");
const counts = (title = `${unit()}s`) => axis(title, { beginAtZero: true, ticks: { precision: 0, maxTicksLimit: 6, callback: short } });

function drawColumns(id, labels, values, { xTitle, fill, title, noun = `${unit()}s` }) {
  draw(id, {
    type: "bar",
    data: { labels, datasets: [{ label: noun, data: values, backgroundColor: fill, borderRadius: 2, maxBarThickness: 34,
      barPercentage: 1, categoryPercentage: 0.94 }] },
    options: {
      plugins: { legend: { display: false }, tooltip: { callbacks: { title: (items) => title(items[0].dataIndex) } } },
      scales: { x: axis(xTitle, { grid: { display: false }, ticks: { maxRotation: 0, autoSkipPadding: 14 } }), y: counts(noun) },
    },
  });
}
