// The sections about the run as a whole: its main numbers, rows in and out, lengths, errors, cost, settings.
function showHeader() {
  const { status } = data;
  setText("output", lastName(status.output));
  setText("subtitle", `${[status.model, ...status.adapters].map(localName).join(" + ")} on ${localName(status.dataset)}`);
  const running = data.live_secs == null ? "Was running" : "Running";
  const [name, text] = status.parts.unreadable ? ["broken", "Damaged"] : status.done ? ["done", "Done"]
    : status.workers.length ? ["running", running] : ["idle", "Not finished"];
  byId("state").className = `pill ${name}`;
  setText("state", text);
  const live = data.live_secs == null ? "" : ` This page asks for new numbers every ${data.live_secs} s while the run goes on.`;
  setText("made", `Made ${moment(data.made)} UTC by job ${data.version}.${live} ${status.advice}`);
  const notes = [...data.notes, ...(status.parts.unreadable ? [status.advice] : [])];
  byId("notes").hidden = !notes.length;
  byId("notes").replaceChildren(...notes.map((note) => make("li", "", note)));
}

const timeLeft = (secs) => (secs == null ? "" : secs < 1 ? "nearly done" : `about ${span(secs)} left`);

function showTiles() {
  const { status, reconciliation: rows, timeline, cost } = data;
  const share = rows.total ? rows.done / rows.total : 1;
  const each = status.rows.samples_per_row;
  fillTiles(byId("tiles"), [
    each > 1 ? ["total", "Samples", whole(rows.total), `${each} for each of ${some(rows.total / each, "row")}`] : ["total", "Rows", whole(rows.total)],
    ["done", "Done", whole(rows.done), percent(share, share > 0.999 && share < 1 ? 3 : 1)],
    ["errors", "Errors", whole(rows.errors), percent(rows.total ? rows.errors / rows.total : 0, 2)],
    status.tokens.completion || !status.tokens.prompt ? ["tokens", "Completion tokens", short(status.tokens.completion), `and ${short(status.tokens.prompt)} of prompts`]
      : ["tokens", "Prompt tokens", short(status.tokens.prompt)],
    ["elapsed", "Time since the start", span(status.elapsed_secs), timeline ? some(timeline.num_workers, "worker") : ""],
    ["speed", "Tokens/s", plain(status.workers.length ? status.tokens_per_sec : cost?.tokens_per_device_sec),
      status.workers.length ? ["in the last minute", timeLeft(status.eta_secs)].filter(Boolean).join("; ") : cost ? `per ${cost.unit}, on average` : ""],
  ]);
}

function showReconciliation() {
  const { reconciliation: rows, status } = data;
  const parts = [["done", rows.done, "done"], ["error", rows.errors, rows.errors === 1 ? "error" : "errors"], ["pending", rows.pending, "pending"]];
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
  byId("equation").replaceChildren(make("b", "", whole(rows.total)), ` ${unit()}s`, ...terms);
  setText("coverage", data.coverage ?? "");
  byId("coverage").hidden = !data.coverage;
  const open = status.rows.done - status.rows.in_parts;
  setText("reconciliation-note", [
    rows.total ? `${whole(status.shards.done)} of ${some(status.shards.total, "shard")} done.` : "The dataset has no rows.",
    open ? `${some(open, `finished ${unit()}`)} ${open === 1 ? "is" : "are"} in journals: safe, but not in a Parquet file yet.` : "",
    status.shards.to_retry ? `${some(status.shards.to_retry, "shard")} with rows to retry, which count as pending.` : "",
    status.parts.unreadable ? `${some(status.parts.unreadable, "part")} cannot be read; the rows there count as done.` : "",
    status.parts.partial ? "Not everything has been read yet." : "",
  ].filter(Boolean).join(" "));
}

function showLengths() {
  const found = Object.entries(data.lengths).filter(([, value]) => value && value.total);
  byId("lengths").hidden = !found.length;
  for (const name of Object.keys(data.lengths)) byId(`${name}-box`).hidden = !found.some(([each, { bars }]) => each === name && bars.length > 1);
  for (const [name, { bars, mean, total }] of found) {
    // The last bar is wider if a few rows are much longer than all others.
    const isWide = ([first, last]) => bars.length > 1 && last - first > bars[0][1] - bars[0][0];
    const label = ([first, last]) => (first === last ? whole(first) : `${whole(first)} to ${whole(last)}`);
    setText(`${name}-caption`, `${name === "prompt" ? "Prompts" : "Completions"}: mean ${plain(mean)} tokens, ${short(total)} in all`);
    drawColumns(`${name}-chart`, bars.map((bar) => `${whole(bar[0])}${isWide(bar) ? "+" : ""}`), bars.map(([, , count]) => count),
      { xTitle: "tokens", fill: series(name === "prompt" ? 0 : 1), title: (idx) => `${label(bars[idx])} tokens` });
  }
  const shares = { 0: "Shortest", 0.25: "25 %", 0.5: "Median", 0.75: "75 %", 0.95: "95 %", 0.99: "99 %", 1: "Longest" };
  if (found.length) {
    fillTable(byId("quantiles"), ["Tokens", ...Object.values(found[0][1].quantiles).map(([share]) => `>${shares[share]}`)],
      found.map(([name, value]) => [cell(`${name}s`), ...value.quantiles.map(([, length]) => number(whole(length)))]));
  }
}

const REASONS = { stop: "complete", length: "cut off at the limit of new tokens", repetition: "cut off because it repeated itself" };

function showErrors() {
  const { errors, finish_reasons: reasons } = data.status;
  const named = Object.entries(reasons).sort((one, other) => other[1] - one[1]);
  fillBars(byId("finish"), ["Reason", unit() === "row" ? ">Rows" : ">Samples"], named.map(([name, count]) => [name, count, REASONS[name]]), "done");
  byId("finish-box").hidden = !named.length || !data.status.tokens.completion; // without one, nothing was generated
  const kinds = Object.entries(errors.by_kind).sort((one, other) => other[1] - one[1]);
  const table = make("table");
  table.ariaLabel = "Errors by kind";
  fillTable(table, ["Kind", unit() === "row" ? ">Rows" : ">Samples", "First of them", ""], kinds.map(([kind, count]) => {
    const first = errors.first[kind];
    const link = make("button", "link", "show rows");
    link.type = "button";
    link.setAttribute("aria-label", `Show rows with the error ${kind}`);
    link.addEventListener("click", () => {
      setFilter(`error:${kind}`);
      byId("rows").scrollIntoView();
      byId("filter").focus({ preventScroll: true });
    });
    return [cell(kind), number(whole(count)), cell(first ? `row ${whole(first.row_idx)}: ${shortened(first.detail, 600)}` : "–", "wide"),
      make("td", "", data.rows.some((row) => kindOf(row) === kind) ? link : "")];
  }));
  byId("kinds").replaceChildren(kinds.length ? make("div", "scroll", table) : make("p", "muted", "No row has an error."));
  byId("outcome").replaceChildren(...data.outcome.filter(([title]) => title !== "labels" || !data.labels).map(([title, line]) => make("p", "muted", make("b", "", title), ` ${line}`)));
}

function showCost() {
  const { cost } = data;
  byId("cost").hidden = !cost;
  if (!cost) return;
  const price = (value) => (value == null ? "–" : value.toLocaleString("en-US", { maximumFractionDigits: value >= 10 ? 2 : 4 }));
  const { unit } = cost, title = unit === "GPU" ? unit : unit[0].toUpperCase() + unit.slice(1);
  fillTiles(byId("cost-tiles"), [
    ["device_hours", `${title} hours`, plain(cost.device_hours), cost.devices.join(", ")],
    ["tokens_per_device_sec", `Tokens/s per ${unit}`, plain(cost.tokens_per_device_sec), cost.completion_tokens_per_device_sec ? `${plain(cost.completion_tokens_per_device_sec)} of completions` : ""],
    ...(cost.kwh == null ? [] : [["kwh", "Energy", `${plain(cost.kwh)} kWh`, cost.is_all_measured ? "" : "of the workers that measured it"]]),
    ...(cost.price == null ? [] : [
      ["price", "Price", price(cost.price), `at ${price(cost.price_per_hour)} per ${unit} hour`],
      ["price_rows", "Per 1,000 rows", price(cost.price_per_1000_rows)],
      ["price_tokens", "Per million tokens", price(cost.price_per_million_tokens), "of completions"],
    ]),
  ]);
  setText("cost-note", [
    "Time in which workers computed, without loading the model.",
    unit === "process" ? "This run computed on CPUs, not on GPUs: the hours are those of its processes." : "",
    cost.price == null && unit !== "process" ? "job report --price-per-gpu-hour adds prices." : "",
    cost.kwh != null ? "Of GPUs that compute as one worker, the energy of the first is measured, times their number." : "",
  ].filter(Boolean).join(" "));
}

function showSettings() {
  byId("facts").replaceChildren(...facts(data.settings));
  byId("defaults").replaceChildren(...facts(data.defaults));
}
