// The time line: speeds, when each worker computed, and what happened to it. Both charts have one axis of time.
const STEPS = [1, 5, 15, 60, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400];
const MARKS = { start: "start", join: "more workers", restart: "restart", stop: "stop", stall: "stall" };
const markColor = { start: "done", join: "series-4", restart: "accent", stop: "error", stall: "warn" };

function showTime() {
  const { timeline } = data;
  byId("time-charts").hidden = !timeline;
  if (!timeline) {
    setText("time-note", data.status.rows.done ? "The directory has no figures of workers." : "No worker has written figures yet.");
    return;
  }
  const { start, bin_secs: bin, lines, events, workers } = timeline;
  const end = start + bin * timeline.rows_per_sec.length;
  const isLong = end - start > 86400 || moment(start).slice(0, 10) !== moment(end).slice(0, 10);
  const clock = (secs) => (isLong ? moment(secs) : moment(secs).slice(11));
  setText("time-note", `From ${moment(start)} to ${moment(end)} UTC. Speeds count the tokens of prompts and completions that were computed.`);
  const timeAxis = axis("", { type: "linear", min: start, max: end, grid: { display: false },
    ticks: { maxRotation: 0, autoSkipPadding: 24, stepSize: STEPS.find((step) => (end - start) / step <= 8) ?? 604800,
      callback: (secs) => (end - start > 86400 ? moment(secs).slice(5, 16) : end - start < 600 ? moment(secs).slice(11) : moment(secs).slice(11, 16)) } });
  const marks = { id: "marks", afterDatasetsDraw: (chart) => drawEvents(chart, events) };
  const afterFit = (scale) => { scale.width = isNarrow() ? 96 : 168; };
  draw("speed-chart", {
    type: "line",
    data: { datasets: lines.map((line, idx) => ({
      label: line.name, data: [...line.tokens_per_sec, line.tokens_per_sec.at(-1)].map((value, at) => ({ x: start + bin * at, y: value })),
      borderColor: series(idx), backgroundColor: series(idx) + "55", borderWidth: 1.3, pointRadius: 0, pointHitRadius: 8,
      fill: idx ? "-1" : "origin", stepped: "before" })) },
    options: {
      interaction: { mode: "index", intersect: false }, parsing: false, normalized: true,
      plugins: { legend: { display: false },
        tooltip: { callbacks: { title: (items) => moment(items[0].parsed.x), label: (item) => `${item.dataset.label}: ${plain(item.raw.y)}` } } },
      scales: { x: timeAxis, y: { ...counts("tokens/s"), stacked: true, afterFit } },
    },
    plugins: [marks],
  }, events);
  const kinds = Object.keys(MARKS).filter((kind) => events.some((event) => event.kind === kind));
  const legend = [...kinds.map((kind) => [kind, MARKS[kind]]), ...(workers.some((worker) => worker.waits.length) ? [["wait", "without rows to compute"]] : [])];
  byId("marks").replaceChildren(...legend.map(([kind, title]) => make("span", "", make("span", `dot ${kind}`), title)));
  drawWorkers(timeline, timeAxis, afterFit, marks);
  showEvents(timeline, clock);
}

function drawEvents({ ctx, chartArea: area, scales: { x } }, events) {
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
}

/** Draw when each worker computed, in the colour that it has in the chart of speeds. */
function drawWorkers({ workers, lines, events, num_workers: total }, timeAxis, afterFit, marks) {
  const lineOf = new Map(lines.map((line, idx) => [line.name, idx]));
  const fills = workers.map((worker) => series(lineOf.get(worker.worker_id) ?? lines.length - 1));
  const stalls = events.filter((event) => event.kind === "stall" && workers.some((worker) => worker.worker_id === event.worker_id));
  const waits = workers.flatMap((worker) => worker.waits.map((wait) => ({ y: worker.worker_id, x: wait })));
  byId("workers-box").style.height = `${40 + 24 * Math.max(1, workers.length)}px`;
  setText("workers-title", workers.length < total ? `The first ${workers.length} of ${whole(total)} workers` : "Workers");
  draw("workers-chart", {
    type: "bar",
    data: { labels: workers.map((worker) => worker.worker_id), datasets: [
      { label: "computing", data: workers.map((worker) => [worker.start, worker.end]), backgroundColor: fills, borderRadius: 3, minBarLength: 2, grouped: false, order: 2 },
      { label: "without rows to compute", data: waits, backgroundColor: color("soft"), borderColor: color("pending"), borderWidth: 1, minBarLength: 2, grouped: false, order: 1 },
      { label: "stalled", data: stalls.map((event) => ({ y: event.worker_id, x: [event.time, event.time + event.secs] })),
        backgroundColor: color("warn"), minBarLength: 2, grouped: false, order: 1 },
    ] },
    options: {
      indexAxis: "y", plugins: { legend: { display: false }, tooltip: { callbacks: { label: (item) => {
        const { barStart: from, barEnd: to } = item.parsed._custom;
        return `${item.dataset.label} ${moment(from)} to ${moment(to).slice(11)} (${span(to - from)})`;
      } } } },
      scales: { x: timeAxis, y: axis("", { afterFit, grid: { display: false }, ticks: { autoSkip: false, callback(value) {
        return shortened(this.getLabelForValue(value), isNarrow() ? 11 : 24);
      } } }) },
    },
    plugins: [marks],
  }, events);
}

function showEvents({ num_events: total, events, workers, num_workers: totalWorkers }, clock) {
  setText("events-title", events.length < total ? `The first ${whole(events.length)} of ${some(total, "event")}` : some(total, "event"));
  const box = byId("events-box");
  box.hidden = events.every((event) => event.kind === "start");
  if (!box.hidden && !box.dataset.known) {
    box.open = events.length <= 8; // from then on, it is as the reader leaves it
    box.dataset.known = "true";
  }
  fillTable(byId("events"), ["Time (UTC)", "Event", "What", "Worker"], events.map((event) => [
    cell(clock(event.time)), make("td", "", make("span", `dot ${event.kind}`), MARKS[event.kind]), cell(event.text, "wide"), cell(event.worker_id),
  ]));
  setText("workers-summary", workers.length < totalWorkers ? `The first ${workers.length} workers in numbers` : "Workers in numbers");
  const ended = (worker) => (worker.is_active ? "at work" : worker.left || (worker.has_open_rows ? "did not say why" : "–"));
  fillTable(byId("workers"), ["Worker", ">Devices", ">Time", ">Rows", ">Errors", ">Tokens/s", "Device", "Ended"], workers.map((worker) => [
    cell(worker.worker_id), number(worker.num_devices), number(span(worker.end - worker.start)), number(whole(worker.num_rows)),
    number(whole(worker.num_errors)), number(plain(worker.tokens_per_sec)), cell(worker.device || "–"), cell(ended(worker)),
  ]));
}
