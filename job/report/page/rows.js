// The browser of rows: search, filter, pages. A row that is open stays as it is while a page follows a run.
const ROWS_AT_ONCE = 25;
const MIN_COMMON = 20;
const view = { query: "", filter: "all", page: 0, open: new Set(), shown: "", common: 0 };

const kindOf = (row) => (row.error == null ? null : row.error.split(": ", 1)[0]);
const labelOf = (row) => {
  const name = data.labels?.label;
  return name == null || row.error != null ? null : row[name] ?? row.more[name] ?? row.kept[name] ?? null;
};
const haystack = (row) => {
  row.haystack ??= [row.row_idx, row.prompt, row.reasoning, row.completion, row.error, ...Object.values(row.kept), ...Object.values(row.more)].filter((text) => text != null).join("\n").toLowerCase();
  return row.haystack;
};
const filters = {
  all: () => true, reused: (row) => row.more.reused_from != null, done: (row) => row.error == null, error: (row) => row.error != null, random: (row) => row.why === "random",
};
const passes = (row, filter) => {
  const [name, ...rest] = filter.split(":"), value = rest.join(":");
  if (!rest.length) return filters[name](row);
  return { error: kindOf, finish: (each) => each.finish_reason, label: labelOf }[name](row) === value;
};

function fillFilter() {
  const distinct = (of) => [...new Set(data.rows.map(of).filter((value) => value != null))].sort();
  const entries = [["all", "all of these rows"], ["random", "rows chosen at random"], ["done", "without an error"], ["error", "with an error"],
    ...(data.rows.some(filters.reused) ? [["reused", "copied from another run"]] : []),
    ...distinct(kindOf).map((kind) => [`error:${kind}`, `error: ${kind}`]),
    ...distinct((row) => row.finish_reason).map((reason) => [`finish:${reason}`, `finish reason: ${reason}`]),
    ...distinct(labelOf).slice(0, 30).map((label) => [`label:${label}`, `label: ${shortened(label, 60)}`])];
  const known = [...byId("filter").options].map((option) => option.value);
  if (JSON.stringify(known) !== JSON.stringify(entries.map(([value]) => value))) {
    byId("filter").replaceChildren(...entries.map(([value, text]) => {
      const option = make("option", "", text);
      option.value = value;
      return option;
    }));
  }
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

/** Return how many characters all prompts begin with alike, such as a system prompt: a list of them would say nothing. */
function commonLength() {
  const [first, ...others] = data.rows.map((row) => row.prompt).filter((prompt) => prompt);
  if (!others.length) return 0;
  let length = first.length;
  for (const other of others) {
    let idx = 0;
    while (idx < length && first[idx] === other[idx]) idx += 1;
    length = idx;
  }
  while (length && !/[\s>]/.test(first[length - 1])) length -= 1;
  return length >= MIN_COMMON ? length : 0;
}

/** Return the beginning of a text in one line, from where it differs from others or, if that is later, from what is searched. */
function excerpt(text, from = 0) {
  const found = view.query ? text.toLowerCase().indexOf(view.query) : -1;
  const start = found > from + 60 ? found - 30 : from < text.length ? from : 0;
  return make("span", "text", ...marked((start ? "… " : "") + text.slice(start, start + 240).replace(/\s+/g, " ")));
}

function rowElement(row) {
  const id = `${row.row_idx}.${row.sample_idx}`;
  const box = make("details", "row");
  const name = data.status.rows.samples_per_row > 1 ? `${row.row_idx} / ${row.sample_idx}` : row.row_idx;
  const more = Object.entries(row.more), kept = Object.entries(row.kept);
  const inLine = (entries) => entries.map(([key, value]) => `${key} ${value}`).join("; ");
  const isWritten = row.completion != null && (row.completion !== "" || row.num_completion_tokens > 0);
  const outcome = row.error == null ? make("span", "", row.finish_reason ?? "done") : make("span", "bad", kindOf(row));
  const result = row.error == null ? (isWritten ? row.completion : inLine(more)) : row.error.slice(kindOf(row).length + 2) || row.error;
  box.append(make("summary", "", make("span", "index", name), outcome,
    row.prompt == null ? excerpt(inLine(kept)) : excerpt(row.prompt, view.common), excerpt(result)));
  box.dataset.row = id;
  const open = () => {
    if (box.querySelector(".body")) return;
    const body = make("div", "body");
    for (const name of ["prompt", "reasoning", "completion", "error"]) {
      if (row[name] == null || (name === "completion" && !isWritten)) continue;
      const text = make("pre", name, ...(row[name] === "" ? ["(empty)"] : marked(row[name])));
      text.dir = "auto";
      text.tabIndex = 0; // long ones scroll
      body.append(make("h3", "", name), text);
    }
    const others = [["prompt tokens", row.num_prompt_tokens], ["completion tokens", row.num_completion_tokens], ["finish reason", row.finish_reason], ...more, ...kept];
    const list = make("dl", "facts");
    for (const [key, value] of others) if (value != null) list.append(make("dt", "", key), make("dd", "", ...marked(String(value))));
    body.append(list);
    box.append(body);
  };
  box.addEventListener("toggle", () => { box.open ? view.open.add(id) : view.open.delete(id); if (box.open) open(); });
  if (view.open.has(id)) { open(); box.open = true; }
  return box;
}

/** Whether somebody reads a row: new ones must not push it away. */
const isReading = () => byId("list").querySelector("details[open]") != null || byId("list").contains(document.activeElement);

function describeSample({ rows, sample }) {
  const special = rows.length - sample.random;
  if (!sample.of) return `No ${unit()} is finished yet.`;
  if (rows.length === sample.of) return `All ${some(sample.of, `finished ${unit()}`)}.`;
  return `This page holds ${some(rows.length, unit())} of the ${whole(sample.of)} that are finished: ${whole(sample.random)} chosen at random`
    + (special ? `, and ${whole(special)} because of an error or because they were cut off.` : ".") + " Search and filter look at these alone.";
}

/** Show the rows that are asked for. ``isNew``: they are asked for by nobody, but new numbers came. */
function showRows({ isNew = false } = {}) {
  setText("rows-note", describeSample(data));
  for (const id of ["rows-controls", "list-head", "pager"]) byId(id).hidden = !data.rows.length;
  const found = data.rows.filter((row) => passes(row, view.filter) && (!view.query || haystack(row).includes(view.query)));
  const pages = Math.max(1, Math.ceil(found.length / ROWS_AT_ONCE));
  view.page = Math.min(view.page, pages - 1);
  setText("found", `${some(found.length, unit())} found`);
  setText("page", `Page ${view.page + 1} of ${pages}`);
  byId("previous").disabled = view.page === 0;
  byId("next").disabled = view.page === pages - 1;
  const rows = found.slice(view.page * ROWS_AT_ONCE, (view.page + 1) * ROWS_AT_ONCE);
  const shown = JSON.stringify(rows.map(({ haystack: _, ...row }) => row));
  const isSame = isNew && shown === view.shown, isHeld = isNew && !isSame && isReading();
  byId("newer").hidden = !isHeld;
  if (isSame || isHeld) return;
  view.shown = shown;
  view.common = commonLength();
  byId("list").replaceChildren(...rows.map(rowElement));
}

function setFilter(filter) {
  view.filter = byId("filter").value = filter;
  view.page = 0;
  showRows();
}
