// All sections together: shown once, when the colours change, before printing, and as the run goes on.
let data = JSON.parse(byId("data").textContent);

function showAll({ isNew = false } = {}) {
  setDefaults();
  for (const show of [showHeader, showTiles, showReconciliation, showTime, showLengths, showErrors, showLabels, showCost, fillFilter, showSettings]) show();
  showRows({ isNew });
  for (const link of document.querySelectorAll("nav a")) link.hidden = document.querySelector(link.getAttribute("href")).hidden;
}

async function follow() {
  if (data.live_secs == null || data.status.done) return;
  try {
    const answer = await fetch("data.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(await answer.text());
    data = await answer.json();
    showAll({ isNew: true });
  } catch (error) {
    byId("state").className = "pill idle";
    setText("state", "Not followed");
    byId("notes").hidden = false;
    byId("notes").replaceChildren(make("li", "", error instanceof TypeError
      ? `job report --watch does not answer any more. These numbers are from ${moment(data.made)} UTC.` : error.message));
  }
  setTimeout(follow, 1000 * data.live_secs);
}

/** Print in the light colours, also where the screen is dark. */
function print(isPrinting) {
  document.documentElement.classList.toggle("printing", isPrinting);
  showAll({ isNew: true });
  for (const { chart } of charts.values()) chart.resize();
}

let waiting = 0;
byId("search").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { view.query = byId("search").value.toLowerCase(); view.page = 0; showRows(); }, 120);
});
byId("filter").addEventListener("change", () => setFilter(byId("filter").value));
byId("previous").addEventListener("click", () => { view.page -= 1; showRows(); });
byId("next").addEventListener("click", () => { view.page += 1; showRows(); });
byId("newer").addEventListener("click", () => { view.open.clear(); showRows(); byId("search").focus(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => showAll({ isNew: true }));
window.addEventListener("beforeprint", () => print(true));
window.addEventListener("afterprint", () => print(false));

showAll();
document.documentElement.dataset.ready = "true";
if (data.live_secs != null) setTimeout(follow, 1000 * data.live_secs);
