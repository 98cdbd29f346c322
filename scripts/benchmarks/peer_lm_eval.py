"""Peer: the scores of lm-evaluation-harness, compared with those of finished runs with ``--score-column``, in float32.

Usage: scripts/bench peer-lm-eval MODEL RUN [RUN ...]

Needs a Python that has lm_eval, too (JOB_PYTHON). The runs have ``--no-chat``. Runs without a prompt are compared with
``loglikelihood_rolling``, the others with ``loglikelihood``; their prompts must not end in white space.
"""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM


def main(model: str, run: Path) -> None:
    """Ask for the same scores, and print the largest difference."""
    options = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["identity"]["modes"]["scores"]
    rows = [row for row in pq.read_table(run / "data").to_pylist() if row["error"] is None]
    peer = HFLM(
        pretrained=model, dtype=torch.float32, device="cpu", max_length=options["score_window"], add_bos_token=False
    )
    is_alone = all(row["prompt"] == row["completion"] for row in rows)
    kind = "loglikelihood_rolling" if is_alone else "loglikelihood"
    texts = [(row["completion"],) if is_alone else (row["prompt"], row["completion"]) for row in rows]
    requests = [Instance(request_type=kind, doc={}, arguments=text, idx=idx) for idx, text in enumerate(texts)]
    found = getattr(peer, kind)(requests, disable_tqdm=True)
    scores = found if is_alone else [score for score, _ in found]
    differences = [abs(score - row["logprob"]) for score, row in zip(scores, rows, strict=True)]
    worst = max(range(len(rows)), key=differences.__getitem__)
    result = {
        "kind": kind,
        "num_rows": len(rows),
        "num_tokens": sum(row["num_scored_tokens"] for row in rows),
        "largest_difference": max(differences),
        "of_log_likelihood": rows[worst]["logprob"],
        "largest_difference_per_token": max(
            difference / row["num_scored_tokens"] for difference, row in zip(differences, rows, strict=True)
        ),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    for path in sys.argv[2:]:
        main(sys.argv[1], Path(path))
