"use strict";
// Shows the numbers of a run. Every text is set as text (textContent), never as markup.
(() => {
  const byId = (id) => document.getElementById(id);
  const ROWS_AT_ONCE = 25;
  let data = JSON.parse(byId("data").textContent);
  const view = { query: "", filter: "all", page: 0, open: new Set() };
  const charts = new Map();

  // ---- texts and elements ----
  const whole = (value) => (value == null ? "–" : Math.round(value).toLocaleString("en-US"));
  const short = (value) =>
    value == null ? "–" : value >= 1e6 ? `${(value / 1e6).toFixed(1)}M` : value >= 1e4 ? `${(value / 1e3).toFixed(1)}k` : plain(value);
  const plain = (value) =>
    value == null ? "–" : value.toLocaleString("en-US", { maximumFractionDigits: value >= 100 ? 0 : value >= 1 ? 2 : 4 });
  const percent = (share, digits = 1) => (share == null ? "–" : `${(100 * share).toFixed(digits)} %`);
  const span = (secs) => {
    if (secs == null) return "–";
    const minutes = Math.floor(secs / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
    if (days) return `${days} d ${hours % 24} h`;
    if (hours) return `${hours} h ${minutes % 60} min`;
    return minutes ? `${minutes} min ${Math.floor(secs % 60)} s` : `${secs.toFixed(secs < 10 ? 1 : 0)} s`;
  };
  const moment = (secs) => new Date(1000 * secs).toISOString().replace("T", " ").slice(0, 19);
  const clock = (secs) => moment(secs).slice(11, 16);
  const some = (count, noun) => `${whole(count)} ${noun}${count === 1 ? "" : "s"}`;

  function make(tag, className, ...children) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...children.filter((child) => child != null).map((child) => (child instanceof Node ? child : String(child))));
    return element;
  }
  const cell = (value, className) => make("td", className, value);
  const number = (value) => cell(value, "number");

  function fillTable(table, names, rows) {
    const head = make("tr", "", ...names.map((name) => make("th", name.startsWith(">") ? "number" : "", name.replace(">", ""))));
    table.replaceChildren(...(names.length ? [make("thead", "", head)] : []), make("tbody", "", ...rows.map((cells) => make("tr", "", ...cells))));
  }

  function fillTiles(box, entries) {
    box.replaceChildren(...entries.map(([key, title, value, note]) => {
      const tile = make("dl", "tile", make("dt", "", title), make("dd", "", value, note ? make("small", "", note) : null));
      tile.dataset.key = key;
      return tile;
    }));
  }

  // ---- charts ----
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const series = (idx) => color(`series-${idx % 10}`);

  function draw(id, config) {
    charts.get(id)?.destroy();
    config.options = { responsive: true, maintainAspectRatio: false, animation: false, ...config.options };
    charts.set(id, new Chart(byId(id), config));
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
  const counts = (title = "rows") => axis(title, { beginAtZero: true, ticks: { precision: 0, maxTicksLimit: 6, callback: short } });

  function drawBars(id, labels, values, { xTitle = "", fill = color("accent"), horizontal = false, tooltip } = {}) {
    const categories = axis(xTitle, { grid: { display: false }, ticks: { maxRotation: 0, autoSkip: !horizontal, autoSkipPadding: 14 } });
    draw(id, {
      type: "bar",
      data: { labels, datasets: [{ label: "rows", data: values, backgroundColor: fill, borderRadius: 2, maxBarThickness: 34,
        barPercentage: 1, categoryPercentage: horizontal ? 0.8 : 0.94, minBarLength: horizontal ? 2 : 0 }] },
      options: {
        indexAxis: horizontal ? "y" : "x",
        plugins: { legend: { display: false }, tooltip: tooltip ? { callbacks: tooltip } : {} },
        scales: horizontal ? { x: counts(), y: categories } : { x: categories, y: counts() },
      },
    });
  }

  // ---- sections ----
  function showHeader() {
    const { status } = data;
    byId("output").textContent = status.output;
    byId("subtitle").textContent = `${[status.model, ...status.adapters].join(" + ")} on ${status.dataset}`;
    const state = byId("state");
    const [name, text] = status.parts.unreadable ? ["broken", "Damaged"] : status.done ? ["done", "Done"]
      : status.workers.length ? ["running", "Running"] : ["idle", "Not running"];
    state.className = `pill ${name}`;
    state.textContent = text;
    const live = data.live_secs == null ? "" : ` It is asked for every ${data.live_secs} s while the run goes on.`;
    byId("made").textContent = `Made ${moment(data.made)} UTC by job ${data.version}.${live} ${status.advice}`;
    const notes = [...data.notes, ...(status.parts.unreadable ? [status.advice] : [])];
    byId("notes").hidden = !notes.length;
    byId("notes").replaceChildren(...notes.map((note) => make("li", "", note)));
  }

  function showTiles() {
    const { status, reconciliation: rows, timeline, cost } = data;
    const share = rows.total ? rows.done / rows.total : 1;
    const samples = status.rows.samples_per_row > 1 ? `${status.rows.samples_per_row} samples a row` : "";
    fillTiles(byId("tiles"), [
      ["total", "Rows", whole(rows.total), samples],
      ["done", "Done", whole(rows.done), percent(share, share > 0.999 && share < 1 ? 3 : 1)],
      ["errors", "Errors", whole(rows.errors), percent(rows.total ? rows.errors / rows.total : 0, 2)],
      ["tokens", "Completion tokens", short(status.tokens.completion), `${short(status.tokens.prompt)} of prompts`],
      ["elapsed", "Time", span(status.elapsed_secs), timeline ? some(timeline.num_workers, "worker") : ""],
      ["speed", "Tokens/s per device", plain(cost?.tokens_per_device_sec), status.eta_secs == null ? "" : `${span(status.eta_secs)} left`],
    ]);
  }

  function showReconciliation() {
    const { reconciliation: rows, status } = data;
    const parts = [["done", rows.done, "done"], ["error", rows.errors, "errors"], ["pending", rows.pending, "pending"]];
    draw("reconciliation-chart", {
      type: "bar",
      data: { labels: [""], datasets: parts.map(([name, value, label]) => ({
        label, data: [value], backgroundColor: color(name), minBarLength: value ? 3 : 0, barPercentage: 1, categoryPercentage: 1 })) },
      options: {
        indexAxis: "y", plugins: { legend: { display: false } },
        scales: { x: { stacked: true, display: false, max: rows.total || 1 }, y: { stacked: true, display: false } },
      },
    });
    const terms = parts.flatMap(([name, value, label], idx) => [
      idx ? " + " : " = ", make("span", "term", make("span", `dot ${name}`), make("b", "", whole(value)), ` ${label}`),
    ]);
    byId("equation").replaceChildren(make("b", "", whole(rows.total)), status.rows.samples_per_row > 1 ? " samples" : " rows", ...terms);
    const open = status.rows.done - status.rows.in_parts;
    byId("reconciliation-note").textContent = [
      `${whole(status.shards.done)} of ${some(status.shards.total, "shard")} done.`,
      open ? `${some(open, "row")} of them are in journals, not in a part yet.` : "",
      status.shards.to_retry ? `${some(status.shards.to_retry, "shard")} with rows to retry, which count as pending.` : "",
      status.parts.unreadable ? `${some(status.parts.unreadable, "part")} cannot be read; their rows count as done.` : "",
      status.parts.partial ? "Not everything has been read yet." : "",
    ].filter(Boolean).join(" ");
  }

  const STEPS = [1, 5, 15, 60, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400];
  const MARKS = { start: "start", restart: "restart", stop: "stop or preemption", stall: "stall" };
  const markColor = { start: "done", restart: "accent", stop: "error", stall: "warn" };

  function showTime() {
    const { timeline } = data;
    byId("time-charts").hidden = !timeline;
    if (!timeline) {
      byId("time-note").textContent = "No worker has written figures yet.";
      return;
    }
    const { start, bin_secs: bin, lines, events, workers } = timeline;
    const end = start + bin * timeline.rows_per_sec.length;
    const kinds = Object.keys(MARKS).filter((kind) => events.some((event) => event.kind === kind));
    byId("time-note").textContent = `From ${moment(start)} to ${moment(end)} UTC. Speeds count tokens of prompts and completions.`;
    const days = end - start > 86400;
    const timeAxis = axis("", { type: "linear", min: start, max: end, grid: { display: false },
      ticks: { maxRotation: 0, autoSkipPadding: 24, stepSize: STEPS.find((step) => (end - start) / step <= 8) ?? 604800,
        callback: (secs) => (days ? moment(secs).slice(5, 16) : end - start < 600 ? moment(secs).slice(11) : clock(secs)) } });
    const marks = { id: "marks", afterDatasetsDraw: (chart) => {
      const { ctx, chartArea: area, scales: { x } } = chart;
      ctx.save();
      for (const event of events) {
        const at = x.getPixelForValue(event.time);
        ctx.strokeStyle = ctx.fillStyle = color(markColor[event.kind]);
        if (event.kind === "stall") {
          ctx.globalAlpha = 0.18;
          ctx.fillRect(at, area.top, Math.max(2, x.getPixelForValue(event.time + event.secs) - at), area.bottom - area.top);
          ctx.globalAlpha = 1;
        } else {
          ctx.setLineDash([4, 3]);
          ctx.beginPath(); ctx.moveTo(at, area.top); ctx.lineTo(at, area.bottom); ctx.stroke();
        }
      }
      ctx.restore();
    } };
    draw("speed-chart", {
      type: "line",
      data: { datasets: lines.map((line, idx) => ({
        label: line.name, data: line.tokens_per_sec.map((value, at) => ({ x: start + bin * (at + 0.5), y: value })),
        borderColor: series(idx), backgroundColor: series(idx) + "55", borderWidth: 1.3, pointRadius: 0, pointHitRadius: 8,
        fill: idx ? "-1" : "origin", stepped: "middle" })) },
      options: {
        interaction: { mode: "index", intersect: false }, parsing: false, normalized: true,
        plugins: { legend: { display: lines.length > 1, position: "bottom" },
          tooltip: { callbacks: { title: (items) => moment(items[0].parsed.x), label: (item) => `${item.dataset.label}: ${plain(item.raw.y)}` } } },
        scales: { x: timeAxis, y: { ...counts("tokens/s"), stacked: true } },
      },
      plugins: [marks],
    });
    byId("marks").replaceChildren(...kinds.map((kind) => make("span", "", make("span", `dot ${kind}`), MARKS[kind])));
    byId("workers-box").style.height = `${60 + 22 * Math.max(1, workers.length)}px`;
    const stalls = events.filter((event) => event.kind === "stall" && workers.some((worker) => worker.worker_id === event.worker_id));
    draw("workers-chart", {
      type: "bar",
      data: { labels: workers.map((worker) => worker.worker_id), datasets: [
        { label: "computing", data: workers.map((worker) => [worker.start, worker.end]), backgroundColor: color("accent"), borderRadius: 3, minBarLength: 2, grouped: false, order: 2 },
        { label: "stalled", data: stalls.map((event) => ({ y: event.worker_id, x: [event.time, event.time + event.secs] })),
          backgroundColor: color("warn"), minBarLength: 2, grouped: false, order: 1 },
      ] },
      options: {
        indexAxis: "y", plugins: { legend: { display: false }, tooltip: { callbacks: { label: (item) => {
          const [from, to] = item.parsed._custom ? [item.parsed._custom.barStart, item.parsed._custom.barEnd] : [start, end];
          return `${item.dataset.label} ${moment(from)} to ${moment(to).slice(11)} (${span(to - from)})`;
        } } } },
        scales: { x: timeAxis, y: axis("", { grid: { display: false }, ticks: { autoSkip: false, callback(value) {
          const name = this.getLabelForValue(value), most = window.innerWidth < 640 ? 12 : 28;
          return name.length > most ? `${name.slice(0, most - 1)}…` : name;
        } } }) },
      },
    });
    byId("events-title").textContent = `${some(timeline.num_events, "event")}`;
    byId("events-box").open = byId("events-box").open || (events.length > 1 && events.length <= 8);
    fillTable(byId("events"), ["Time (UTC)", "Event", "Worker", ""], events.map((event) => [
      cell(moment(event.time)), make("td", "", make("span", `dot ${event.kind}`), MARKS[event.kind]), cell(event.worker_id), cell(event.text, "wide"),
    ]));
    fillTable(byId("workers"), ["Worker", ">Devices", ">Time", ">Rows", ">Errors", ">Tokens/s", "Device", "Ended"], workers.map((worker) => [
      cell(worker.worker_id), number(worker.num_devices), number(span(worker.end - worker.start)), number(whole(worker.num_rows)),
      number(whole(worker.num_errors)), number(plain(worker.tokens_per_sec)), cell(worker.device || "–"),
      cell(worker.is_active ? "active" : worker.left || "–"),
    ]));
  }

  function showLengths() {
    const found = Object.entries(data.lengths).filter(([, value]) => value);
    byId("lengths").hidden = !found.length;
    for (const [name, value] of found) {
      const bars = value.bars;
      const label = ([first, last]) => (first === last ? whole(first) : `${whole(first)} to ${whole(last)}`);
      byId(`${name}-caption`).textContent = `${name === "prompt" ? "Prompts" : "Completions"}: mean ${plain(value.mean)} tokens, ${short(value.total)} in all`;
      drawBars(`${name}-chart`, bars.map(([first]) => whole(first)), bars.map(([, , count]) => count),
        { xTitle: "tokens", fill: series(name === "prompt" ? 0 : 1), tooltip: { title: (items) => `${label(bars[items[0].dataIndex])} tokens` } });
    }
    const shares = { 0: "Least", 0.25: "25 %", 0.5: "Median", 0.75: "75 %", 0.95: "95 %", 0.99: "99 %", 1: "Most" };
    if (found.length) {
      fillTable(byId("quantiles"), ["Tokens", ...Object.values(found[0][1].quantiles).map(([share]) => `>${shares[share]}`)],
        found.map(([name, value]) => [cell(`${name}s`), ...value.quantiles.map(([, length]) => number(whole(length)))]));
    }
  }

  function showErrors() {
    const { errors, finish_reasons: reasons } = data.status;
    const named = Object.entries(reasons).sort((one, other) => other[1] - one[1]);
    drawBars("finish-chart", named.map(([name]) => name), named.map(([, count]) => count), { horizontal: true, fill: color("done") });
    byId("finish-chart").parentElement.style.height = `${70 + 34 * Math.max(1, named.length)}px`;
    const kinds = Object.entries(errors.by_kind).sort((one, other) => other[1] - one[1]);
    const table = make("table");
    fillTable(table, ["Kind", ">Rows", "First of them", ""], kinds.map(([kind, count]) => {
      const first = errors.first[kind];
      const link = make("button", "link", "examples");
      link.type = "button";
      link.addEventListener("click", () => { setFilter(`error:${kind}`); byId("rows").scrollIntoView(); });
      return [cell(kind), number(whole(count)), cell(first ? `row ${whole(first.row_idx)}: ${first.detail}` : "–", "wide"),
        make("td", "", data.rows.some((row) => kindOf(row) === kind) ? link : "")];
    }));
    byId("kinds").replaceChildren(kinds.length ? make("div", "scroll", table) : make("p", "muted", "No row has an error."));
    byId("outcome").replaceChildren(...data.outcome.map(([title, line]) => make("p", "muted", `${title}: ${line}`)));
  }

  const interval = (estimate, asPercent) => {
    if (!estimate || estimate.value == null) return ["–", ""];
    const text = (value) => (asPercent ? percent(value) : value.toFixed(3));
    return [text(estimate.value), estimate.low == null ? "" : `${text(estimate.low)} to ${text(estimate.high)}`];
  };

  function showLabels() {
    const { labels } = data;
    byId("labels").hidden = byId("labels-link").hidden = !labels && !data.labels_note;
    byId("labels-note").textContent = data.labels_note || "";
    for (const id of ["labels-box", "probabilities-box", "gold"]) byId(id).hidden = !labels;
    if (!labels) return;
    const sorted = Object.entries(labels.labels).sort((one, other) => other[1] - one[1]);
    const named = sorted.slice(0, 20);
    if (sorted.length > 20) named.push([`${sorted.length - 20} others`, sorted.slice(20).reduce((sum, [, count]) => sum + count, 0)]);
    if (labels.without_label) named.push(["(none)", labels.without_label]);
    byId("labels-caption").textContent = `Column ${labels.label}, ${some(labels.rows, "row")}`;
    byId("labels-chart").parentElement.style.height = `${70 + 28 * Math.max(2, named.length)}px`;
    drawBars("labels-chart", named.map(([name]) => (name.length > 24 ? `${name.slice(0, 23)}…` : name)), named.map(([, count]) => count), { horizontal: true });
    const bins = labels.probabilities;
    byId("probabilities-box").hidden = !bins;
    if (bins) {
      drawBars("probabilities-chart", bins.map((_, idx) => (idx / bins.length).toFixed(2)), bins, { xTitle: "probability", fill: series(4),
        tooltip: { title: (items) => `${(items[0].dataIndex / bins.length).toFixed(2)} to ${((items[0].dataIndex + 1) / bins.length).toFixed(2)}` } });
    }
    byId("gold").hidden = !labels.gold;
    if (labels.gold) showGold(labels.gold, labels.confidence_level);
  }

  function showGold(gold, level) {
    fillTiles(byId("scores"), [
      ["accuracy", "Accuracy", ...interval(gold.accuracy, true)],
      ["kappa", "Cohen's kappa", ...interval(gold.kappa)],
      ["macro_f1", "Macro F1", ...interval(gold.macro_f1)],
      ["gold_rows", "Rows with gold", whole(gold.rows), `column ${gold.column}; intervals of ${percent(level, 0)}`],
    ]);
    const { calibration } = gold;
    byId("calibration-box").hidden = !calibration;
    if (calibration) {
      const bins = calibration.bins;
      byId("calibration-caption").textContent = `Calibration: error ${interval(calibration.ece)[0]}`;
      const points = bins.map((each) => ({ x: each.confidence, y: each.accuracy.value }));
      const bars = { id: "intervals", afterDatasetsDraw: ({ ctx, scales: { x, y } }) => {
        ctx.save();
        ctx.strokeStyle = series(0);
        for (const each of bins) {
          const at = x.getPixelForValue(each.confidence);
          ctx.beginPath(); ctx.moveTo(at, y.getPixelForValue(each.accuracy.low)); ctx.lineTo(at, y.getPixelForValue(each.accuracy.high)); ctx.stroke();
        }
        ctx.restore();
      } };
      draw("calibration-chart", {
        type: "line",
        data: { datasets: [
          { label: "labels", data: points, borderColor: series(0), backgroundColor: series(0), borderWidth: 1.6, pointRadius: 4 },
          { label: "as probable as said", data: [{ x: 0, y: 0 }, { x: 1, y: 1 }], borderColor: color("muted"), borderDash: [5, 4], borderWidth: 1, pointRadius: 0 },
        ] },
        options: {
          plugins: { legend: { position: "bottom" }, tooltip: { callbacks: { title: () => "", label: (item) => {
            const each = bins[item.dataIndex];
            return item.datasetIndex ? "" : `probability ${percent(each.confidence)}, right ${percent(each.accuracy.value)}, ${some(each.num_rows, "row")}`;
          } } } },
          scales: { x: axis("probability", { type: "linear", min: 0, max: 1 }), y: axis("share that is right", { min: 0, max: 1 }) },
        },
        plugins: [bars],
      });
    }
    showConfusion(gold.confusion);
    const { shares } = gold;
    byId("shares").hidden = !shares;
    if (shares) {
      fillTable(byId("shares"), ["Share of a class", `>Labels (${whole(shares.rows)})`, `>Gold (${whole(shares.gold)})`, "", ">Corrected", ""],
        shares.classes.map((each) => [cell(each.name), number(percent(each.labels)), ...interval(each.gold, true).map(number), ...interval(each.corrected, true).map(number)]));
    }
  }

  function showConfusion({ gold, labels, counts: cells }) {
    const isShown = cells.length > 0 && gold.length <= 20;
    byId("confusion-box").hidden = !isShown;
    if (!isShown) return;
    const used = labels.map((_, column) => column).filter((column) => labels[column] != null || cells.some((row) => row[column]));
    const head = make("tr", "", make("th", ""), ...used.map((column) => make("th", "", labels[column] ?? "(none)")));
    const rows = cells.map((row, idx) => {
      const total = row.reduce((sum, count) => sum + count, 0);
      return make("tr", "", make("th", "", gold[idx]), ...used.map((column) => {
        const share = total ? row[column] / total : 0, entry = cell(whole(row[column]));
        entry.style.backgroundColor = `rgb(var(--heat) / ${(0.06 + 0.6 * share).toFixed(3)})`;
        entry.title = `${percent(share)} of the gold ${gold[idx]}`;
        return entry;
      }));
    });
    byId("confusion").replaceChildren(make("thead", "", head), make("tbody", "", ...rows));
  }

  function showCost() {
    const { cost } = data;
    byId("cost").hidden = !cost;
    if (!cost) return;
    const price = (value) => (value == null ? "–" : value.toLocaleString("en-US", { maximumFractionDigits: value >= 10 ? 2 : 4 }));
    fillTiles(byId("cost-tiles"), [
      ["device_hours", "Device hours", plain(cost.device_hours), cost.devices.join(", ")],
      ["tokens_per_device_sec", "Tokens/s per device", plain(cost.tokens_per_device_sec), `${plain(cost.completion_tokens_per_device_sec)} of completions`],
      ...(cost.kwh == null ? [] : [["kwh", "Energy", `${plain(cost.kwh)} kWh`, cost.is_all_measured ? "" : "of the workers that measured it"]]),
      ...(cost.price == null ? [] : [
        ["price", "Price", price(cost.price), `at ${price(cost.price_per_hour)} per device hour`],
        ["price_rows", "Per 1,000 rows", price(cost.price_per_1000_rows)],
        ["price_tokens", "Per million tokens", price(cost.price_per_million_tokens), "of completions"],
      ]),
    ]);
    byId("cost-note").textContent = "Time from when a worker had loaded its model to its last figures. A device is a GPU, or the processor of one process."
      + (cost.price == null ? " --price-per-gpu-hour adds prices." : "") + (cost.kwh == null ? " No device measured energy." : " Of GPUs that compute as one worker, the energy of the first is measured.");
  }

  function showSettings() {
    for (const [id, entries] of [["facts", data.settings], ["defaults", data.defaults]]) {
      byId(id).replaceChildren(...entries.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]));
    }
  }

  // ---- rows ----
  const kindOf = (row) => (row.error == null ? null : row.error.split(": ", 1)[0]);
  const labelOf = (row) => {
    const name = data.labels?.label;
    return name == null || row.error != null ? null : row[name] ?? row.more[name] ?? null;
  };
  const haystack = (row) => {
    row.haystack ??= [row.row_idx, row.prompt, row.reasoning, row.completion, row.error, ...Object.values(row.more)].filter((text) => text != null).join("\n").toLowerCase();
    return row.haystack;
  };
  const filters = {
    all: () => true, done: (row) => row.error == null, error: (row) => row.error != null, random: (row) => row.why === "random",
  };
  const passes = (row, filter) => {
    const [name, ...rest] = filter.split(":"), value = rest.join(":");
    if (!rest.length) return filters[name](row);
    return { error: kindOf, finish: (each) => each.finish_reason, label: labelOf }[name](row) === value;
  };

  function fillFilter() {
    const kinds = [...new Set(data.rows.map(kindOf).filter(Boolean))].sort();
    const reasons = [...new Set(data.rows.map((row) => row.finish_reason).filter(Boolean))].sort();
    const labels = [...new Set(data.rows.map(labelOf).filter((label) => label != null))].sort().slice(0, 30);
    const entries = [["all", "all of these rows"], ["random", "rows chosen at random"], ["done", "without an error"], ["error", "with an error"],
      ...kinds.map((kind) => [`error:${kind}`, `error: ${kind}`]), ...reasons.map((reason) => [`finish:${reason}`, `finish reason: ${reason}`]),
      ...labels.map((label) => [`label:${label}`, `label: ${label}`])];
    byId("filter").replaceChildren(...entries.map(([value, text]) => {
      const option = make("option", "", text);
      option.value = value;
      return option;
    }));
    if (!entries.some(([value]) => value === view.filter)) view.filter = "all";
    byId("filter").value = view.filter;
  }

  function marked(text) {
    const query = view.query;
    if (!query) return [text];
    const parts = [], lower = text.toLowerCase();
    if (lower.length !== text.length) return [text];
    let from = 0;
    for (let at = lower.indexOf(query); at >= 0 && parts.length < 400; at = lower.indexOf(query, from)) {
      parts.push(text.slice(from, at), make("mark", "", text.slice(at, at + query.length)));
      from = at + query.length;
    }
    return [...parts, text.slice(from)];
  }

  function rowElement(row) {
    const id = `${row.row_idx}.${row.sample_idx}`;
    const box = make("details", "row"), line = (text) => make("span", "text", (text ?? "").slice(0, 240).replace(/\s+/g, " "));
    const name = row.sample_idx ? `${row.row_idx} / ${row.sample_idx}` : row.row_idx;
    const outcome = row.error == null ? make("span", "", row.finish_reason ?? "done") : make("span", "bad", kindOf(row));
    box.append(make("summary", "", make("span", "index", `row ${name}`), outcome, line(row.prompt ?? Object.values(row.more)[0]), line(row.completion ?? row.error)));
    box.dataset.row = id;
    const open = () => {
      if (box.querySelector(".body")) return;
      const body = make("div", "body");
      for (const name of ["prompt", "reasoning", "completion", "error"]) {
        if (row[name] != null) body.append(make("h4", "", name), make("pre", name, ...marked(row[name])));
      }
      const facts = [["prompt tokens", row.num_prompt_tokens], ["completion tokens", row.num_completion_tokens], ["finish reason", row.finish_reason], ...Object.entries(row.more)];
      const list = make("table");
      fillTable(list, [], facts.filter(([, value]) => value != null).map(([key, value]) => [cell(key), make("td", "wide", ...marked(String(value)))]));
      body.append(list);
      box.append(body);
    };
    box.addEventListener("toggle", () => { box.open ? view.open.add(id) : view.open.delete(id); if (box.open) open(); });
    if (view.open.has(id)) { open(); box.open = true; }
    return box;
  }

  function showRows() {
    const { rows, sample } = data;
    const special = rows.length - sample.random;
    byId("rows-note").textContent = rows.length === sample.of ? `All ${some(sample.of, "finished row")}.`
      : `${some(rows.length, "row")} of the ${whole(sample.of)} that are finished: ${whole(sample.random)} at random`
        + (special ? `, and ${whole(special)} that were chosen because of an error or because they were cut.` : ".");
    const found = rows.filter((row) => passes(row, view.filter) && (!view.query || haystack(row).includes(view.query)));
    const pages = Math.max(1, Math.ceil(found.length / ROWS_AT_ONCE));
    view.page = Math.min(view.page, pages - 1);
    byId("found").textContent = `${some(found.length, "row")} found`;
    byId("page").textContent = `Page ${view.page + 1} of ${pages}`;
    byId("previous").disabled = view.page === 0;
    byId("next").disabled = view.page === pages - 1;
    const shown = found.slice(view.page * ROWS_AT_ONCE, (view.page + 1) * ROWS_AT_ONCE);
    byId("list").replaceChildren(...shown.map(rowElement));
  }

  function setFilter(filter) {
    view.filter = byId("filter").value = filter;
    view.page = 0;
    showRows();
  }

  // ---- all together ----
  function showAll() {
    setDefaults();
    for (const show of [showHeader, showTiles, showReconciliation, showTime, showLengths, showErrors, showLabels, showCost, fillFilter, showRows, showSettings]) show();
  }

  let waiting = 0;
  byId("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { view.query = byId("search").value.toLowerCase(); view.page = 0; showRows(); }, 120);
  });
  byId("filter").addEventListener("change", () => setFilter(byId("filter").value));
  byId("previous").addEventListener("click", () => { view.page -= 1; showRows(); });
  byId("next").addEventListener("click", () => { view.page += 1; showRows(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showAll);

  async function follow() {
    if (data.live_secs == null || data.status.done) return;
    try {
      const answer = await fetch("data.json", { cache: "no-store" });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      data = await answer.json();
      const at = window.scrollY;
      showAll();
      window.scrollTo({ top: at, behavior: "instant" });
    } catch {
      byId("state").className = "pill idle";
      byId("state").textContent = "No longer followed";
    }
    setTimeout(follow, 1000 * data.live_secs);
  }

  showAll();
  document.documentElement.dataset.ready = "true";
  if (data.live_secs != null) setTimeout(follow, 1000 * data.live_secs);
})();
