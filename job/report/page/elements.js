// Numbers and times as text, and elements. Every text is set as text (textContent), never as markup.
const byId = (id) => document.getElementById(id);

const whole = (value) => (value == null ? "–" : Math.round(value).toLocaleString("en-US"));
const plain = (value) =>
  value == null ? "–" : value.toLocaleString("en-US", { maximumFractionDigits: value >= 100 ? 0 : value >= 1 ? 2 : 4 });
const short = (value) =>
  value == null ? "–" : value >= 1e9 ? `${(value / 1e9).toFixed(1)}G` : value >= 1e6 ? `${(value / 1e6).toFixed(1)}M`
    : value >= 1e4 ? `${(value / 1e3).toFixed(1)}k` : plain(value);
const percent = (share, digits = 1) => (share == null ? "–" : `${(100 * share).toFixed(digits)} %`);
const some = (count, noun) => `${whole(count)} ${noun}${count === 1 ? "" : noun.endsWith("s") ? "es" : "s"}`;
const span = (secs) => {
  if (secs == null) return "–";
  const minutes = Math.floor(secs / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  if (minutes >= 10) return `${minutes} min`;
  return minutes ? `${minutes} min ${Math.floor(secs % 60)} s` : `${secs.toFixed(secs < 10 ? 1 : 0)} s`;
};
const moment = (secs) => new Date(1000 * secs).toISOString().replace("T", " ").slice(0, 19);
const lastName = (path) => path.split("/").filter(Boolean).at(-1) ?? path;
const localName = (path) => (/^(\/|\.{1,2}\/|~)/.test(path) ? lastName(path) : path); // org/name and addresses are whole
const shortened = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const isNarrow = () => window.innerWidth < 640;

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child != null).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

/** Set a text only if it is another one: screen readers announce what is set. */
function setText(id, text) {
  if (byId(id).textContent !== text) byId(id).textContent = text;
}

const cell = (value, className) => make("td", className, value);
const number = (value) => cell(value, "number");

/** Fill a table. A name that begins with ">" is that of a column of numbers. */
function fillTable(table, names, rows) {
  const head = make("tr", "", ...names.map((name) => {
    const title = make("th", name.startsWith(">") ? "number" : "", name.replace(">", ""));
    title.scope = "col";
    return title;
  }));
  table.replaceChildren(make("thead", "", head), make("tbody", "", ...rows.map((cells) => make("tr", "", ...cells))));
}

/** Fill a table with counts, each beside a bar: readable without a mouse. Entries are a name, a count and a note. */
function fillBars(table, names, entries, kind) {
  const total = entries.reduce((sum, [, count]) => sum + count, 0), most = Math.max(1, ...entries.map(([, count]) => count));
  fillTable(table, [...names, ">Share", ""], entries.map(([name, count, note]) => {
    const bar = make("div", `bar ${kind}`);
    bar.style.width = `${(100 * count) / most}%`;
    return [cell(make("span", "", name, note ? make("small", "", note) : null), "name"), number(whole(count)),
      number(percent(total ? count / total : 0)), cell(bar, "bars")];
  }));
}

function fillTiles(box, entries) {
  box.replaceChildren(...entries.map(([key, title, value, note]) => {
    const tile = make("dl", "tile", make("dt", "", title), make("dd", "", value, note ? make("small", "", note) : null));
    tile.dataset.key = key;
    return tile;
  }));
}

const facts = (entries) => entries.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]);
