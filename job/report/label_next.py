"""Which rows a person should label next: some at random, and those of which the model is least certain.

The random ones come first, drawn from all rows without gold, so that they and earlier random gold together are a random
sample of the run: what is estimated from it stays unbiased. Uncertain rows are where labels are most often wrong: they
show what the prompt lacks and make good examples, but say nothing about the others, so a report leaves them out of its
numbers. The column ``stratum`` keeps the two apart.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from job.report.intervals import Floats
from job.report.rows import LabeledRows

UNCERTAIN, RANDOM = "uncertain", "random"

MAX_TEXT = 300
"""Characters of a row's text on a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelNext:
    """Rows to label."""

    table: pa.Table
    """``row_idx``, ``stratum``, ``label``, ``confidence``, the gold column to be filled in, and other columns of the
    run, in random order: whoever labels only the first of them has a random sample of each stratum."""
    num_uncertain: int
    num_random: int

    @property
    def blind(self) -> pa.Table:
        """The same without what the model says, which would influence who labels."""
        return self.table.drop_columns([name for name in self.table.column_names if name in ("label", "confidence")])

    def to_page(self, id_column: str | None, max_rows: int) -> dict[str, Any]:
        """Return the first rows as JSON values: what names them, what the model says, and the text to be labeled."""
        return {
            "num_rows": len(self.table),
            "random": self.num_random,
            "uncertain": self.num_uncertain,
            "rows": [
                {
                    "name": str(row["row_idx"] if row.get(id_column) is None else row[id_column]),
                    "stratum": row["stratum"],
                    "label": row["label"],
                    "confidence": row.get("confidence"),
                    "text": _text_of(row, id_column)[:MAX_TEXT],
                }
                for row in self.table.slice(0, max_rows).to_pylist()
            ],
        }


def _text_of(row: dict[str, Any], id_column: str | None) -> str:
    """Return what a person labels: the prompt, or else the longest text."""
    others = {name: value for name, value in row.items() if name not in ("stratum", "label", id_column)}
    texts = (value for value in others.values() if isinstance(value, str))
    return others.get("prompt") or max(texts, key=len, default="")


def choose_next(
    rows: LabeledRows, has_gold: npt.NDArray[np.bool_], number: int, gold_column: str, *, seed: int
) -> LabelNext:
    """Choose rows to label: half of them at random, the others by their uncertainty, without one all at random.

    Uncertain is a small lead of the most likely class over the next; without probabilities of all classes, a low
    probability or a small share of the votes. A row without a label is the most uncertain. Ties go to the first rows.

    Args:
        has_gold: [rows] bool.
        number: how many; fewer if there are no more without gold.
        seed: of the random rows.
    """
    free = np.flatnonzero(~has_gold)
    margin = _margin(rows)
    num_uncertain = 0 if margin is None else min(number, len(free)) // 2
    num_random = min(number, len(free)) - num_uncertain
    random = np.random.default_rng(seed)
    chosen = random.choice(free, num_random, replace=False)
    strata = np.full(len(has_gold), "", object)
    strata[chosen] = RANDOM
    if margin is not None:
        left = free[strata[free] == ""]
        strata[left[np.argsort(margin[left], kind="stable")[:num_uncertain]]] = UNCERTAIN
    at = random.permutation(np.flatnonzero(strata != ""))
    return LabelNext(
        table=_table(rows, at, strata[at].tolist(), gold_column), num_uncertain=num_uncertain, num_random=num_random
    )


def _margin(rows: LabeledRows) -> Floats | None:
    """Return the lead of each row's label, -1 without a label: [rows] float64. None: nothing says how certain it is."""
    if rows.probs is not None and rows.probs.shape[1] > 1:
        largest = np.sort(np.nan_to_num(rows.probs), axis=1)
        margin = largest[:, -1] - largest[:, -2]
    elif rows.confidence is not None:
        margin = np.nan_to_num(rows.confidence)
    else:
        return None
    margin[np.asarray(rows.labels.is_null())] = -1
    return margin


def _table(rows: LabeledRows, at: Any, strata: list[str], gold_column: str) -> pa.Table:
    confidence = None if rows.confidence is None else pa.array(rows.confidence[at], from_pandas=True)
    columns = {
        "row_idx": pa.array(rows.row_idx[at]),
        "stratum": pa.array(strata),
        "label": rows.labels.take(at),
        **({} if confidence is None else {"confidence": confidence}),
        gold_column: pa.nulls(len(at), pa.string()),
    }
    others = rows.table.take(at)
    columns |= {name: others[name] for name in others.column_names if name not in columns}
    return pa.table(columns)
