// The section about labels: how often each occurs, how sure the model is, and how they compare with gold.
const MAX_BARS = 20;

const interval = (estimate, asPercent) => {
  if (!estimate || estimate.value == null) return ["–", ""];
  const text = (value) => (asPercent ? percent(value) : value.toFixed(3));
  return [text(estimate.value), estimate.low == null ? "" : `${text(estimate.low)} to ${text(estimate.high)}`];
};

const sentence = (note) => `${note[0].toUpperCase()}${note.slice(1)}.`;

function showLabels() {
  const { labels } = data;
  byId("labels").hidden = !labels && !data.labels_note;
  for (const id of ["labels-box", "probabilities-box", "gold"]) byId(id).hidden = !labels;
  setText("labels-note", labels ? [
    `Column ${labels.label} of ${some(labels.rows, "row")}${labels.samples > 1 && !labels.is_of_row ? ", by the majority of the samples of each" : ""}.`,
    labels.missing ? `${some(labels.missing, "row")} without a label yet ${labels.missing === 1 ? "is" : "are"} not counted.` : "",
  ].filter(Boolean).join(" ") : data.labels_note ?? "");
  if (!labels) return;
  const sorted = Object.entries(labels.labels).sort((one, other) => other[1] - one[1]);
  const named = sorted.slice(0, MAX_BARS).map(([name, count]) => [shortened(name, 60), count]);
  const rest = sorted.slice(MAX_BARS).reduce((sum, [, count]) => sum + count, labels.others.rows);
  const numRest = Math.max(0, sorted.length - MAX_BARS) + labels.others.labels;
  if (numRest) named.push([`${some(numRest, "other label")}`, rest]);
  if (labels.without_label) named.push(["(none)", labels.without_label]);
  fillBars(byId("labels-table"), ["Label", ">Rows"], named, "label");
  const bins = labels.probabilities;
  byId("probabilities-box").hidden = !bins;
  if (bins) {
    const edge = (idx) => (idx / bins.length).toFixed(2);
    setText("probabilities-caption", labels.is_vote ? "How many samples of a row agree with its label" : "How sure the model is: the probability of the label");
    drawColumns("probabilities-chart", bins.map((_, idx) => edge(idx)), bins,
      { xTitle: labels.is_vote ? "share of the samples" : "probability", noun: "rows", fill: series(4), title: (idx) => `${edge(idx)} to ${edge(idx + 1)}` });
  }
  byId("gold").hidden = !labels.gold;
  if (labels.gold) showGold(labels.gold, labels.confidence_level);
  byId("label-next-box").hidden = !data.label_next;
  if (data.label_next) showNext(data.label_next);
}

function showGold(gold, level) {
  fillTiles(byId("scores"), [
    ["accuracy", "Accuracy", ...interval(gold.accuracy, true)],
    ["kappa", "Cohen's kappa", ...interval(gold.kappa)],
    ["macro_f1", "Macro F1", ...interval(gold.macro_f1)],
    ["gold_rows", "Rows with gold", whole(gold.rows), `column ${gold.column}`],
  ]);
  setText("gold-note", [
    `Gold is the right label, as a person has given it. Small numbers are intervals of ${percent(level, 0)}.`,
    gold.rows_without_gold ? `${some(gold.rows_without_gold, "row")} without gold ${gold.rows_without_gold === 1 ? "is" : "are"} not counted here.` : "",
    gold.rows_chosen_as_uncertain ? `${some(gold.rows_chosen_as_uncertain, "row")} with gold, chosen as uncertain, ${gold.rows_chosen_as_uncertain === 1 ? "is" : "are"} left out.` : "",
    ...gold.notes.map(sentence),
  ].filter(Boolean).join(" "));
  const { calibration } = gold;
  byId("calibration-box").hidden = !calibration;
  if (calibration) {
    const bins = calibration.bins;
    setText("calibration-caption", `Are probabilities right? Calibration error ${interval(calibration.ece)[0]}`);
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
        { label: "labels", data: points, borderColor: series(0), backgroundColor: series(0), borderWidth: 1.6, pointRadius: 4, clip: 6 },
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
    }, bins);
  }
  showConfusion(gold.confusion);
  const { shares } = gold;
  byId("shares").hidden = byId("shares-note").hidden = !shares;
  if (shares) {
    fillTable(byId("shares"), ["Share of a class", `>Labels (${whole(shares.rows)})`, `>Gold (${whole(shares.gold)})`, "", ">Corrected", ""],
      shares.classes.map((each) => [cell(each.name), number(percent(each.labels)), ...interval(each.gold, true).map(number), ...interval(each.corrected, true).map(number)]));
    setText("shares-note", [
      "Corrected shares use all labels and all gold, and are right on average however bad the labels are, if the rows with gold are a random sample.",
      ...shares.notes.map(sentence),
    ].join(" "));
  }
}

function showNext({ num_rows: count, random, uncertain, rows }) {
  setText("label-next-note", [
    `${some(count, "row")} for a person to label: ${whole(random)} at random, ${whole(uncertain)} of which the model is least certain.`,
    rows.length < count ? `The first ${whole(rows.length)} are shown; --label-next-to writes all to a file.` : "",
  ].filter(Boolean).join(" "));
  fillTable(byId("label-next"), ["Row", "Chosen as", "Label", ">Probability", "Text"], rows.map((each) => [
    cell(each.name), cell(each.stratum), cell(each.label == null ? "(none)" : shortened(each.label, 60)),
    number(each.confidence == null ? "–" : each.confidence.toFixed(2)), cell(each.text, "wide")]));
}

function showConfusion({ gold, labels, counts: cells }) {
  const isShown = cells.length > 0 && gold.length <= 20;
  byId("confusion-box").hidden = !isShown;
  if (!isShown) return;
  const used = labels.map((_, column) => column).filter((column) => labels[column] != null || cells.some((row) => row[column]));
  const head = make("tr", "", make("th", ""), ...used.map((column) => make("th", "", labels[column] ?? "(none)")));
  const rows = cells.map((row, idx) => {
    const total = row.reduce((sum, count) => sum + count, 0);
    const title = make("th", "", gold[idx]);
    title.scope = "row";
    return make("tr", "", title, ...used.map((column) => {
      const share = total ? row[column] / total : 0, entry = cell(whole(row[column]));
      entry.style.backgroundColor = `rgb(var(--heat) / ${(0.06 + 0.4 * share).toFixed(3)})`;
      entry.title = `${percent(share)} of the gold ${gold[idx]}`;
      return entry;
    }));
  });
  byId("confusion").replaceChildren(make("thead", "", head), make("tbody", "", ...rows));
}
