"""How exact scores are: a finished run with ``--score-column``, compared with transformers in float64.

Usage: scripts/bench score-error MODEL RUN [FIRST END]

The run is in float32, with ``--token-logprobs`` and ``--no-chat``, and every text fits into one window. FIRST and END
are rows (default: all). Each text is read by itself, without batch and padding, by the same weights in float64 and, to
see what float32 itself costs, in float32. Prints one JSON object.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Norm(torch.nn.Module):
    """An RMSNorm in the dtype of its input: that of transformers computes in float32 whatever the model's dtype."""

    def __init__(self, norm: Any) -> None:
        """Take the place of a norm of transformers."""
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [..., H], like ``hidden``."""
        return hidden * torch.rsqrt(hidden.pow(2).mean(dim=-1, keepdim=True) + self.eps) * self.weight


def load(model: str, dtype: torch.dtype) -> Any:
    """Load a model that computes everything but the angles of its rotary embeddings in ``dtype``."""
    # The eager attention has a softmax in float32.
    module = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="sdpa").eval()
    norms = [(name, norm) for name, norm in module.named_modules() if type(norm).__name__.endswith("RMSNorm")]
    assert norms, "only models with RMSNorm"
    for name, norm in norms:
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, Norm(norm))
    return module


def scores(module: Any, ids: Sequence[int], num_scored: int) -> torch.Tensor:
    """Return the log probabilities of the last tokens, [num_scored] float64. The softmax is in float64, too."""
    with torch.inference_mode():
        logits = module(torch.tensor([ids[:-1]])).logits[0, -num_scored:]
    wanted = torch.tensor(ids[-num_scored:])
    return logits.double().log_softmax(dim=-1).gather(-1, wanted[:, None])[:, 0]


def read(model: str, run: Path) -> list[tuple[list[int], list[float], float]]:
    """Return of each row: what the model reads, the log probabilities of the last of these tokens, and their sum."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    rows = []
    for row in pq.read_table(run / "data").to_pylist():
        text_ids = row["token_ids"]
        is_alone = row["prompt"] == row["completion"]
        text = row["completion"] if is_alone else row["prompt"] + row["completion"]
        ids = tokenizer(text)["input_ids"]
        ids = [first, *ids] if len(ids) == len(text_ids) else ids
        assert ids[-len(text_ids) :] == text_ids and len(ids) - len(text_ids) == row["num_prompt_tokens"]
        rows.append((ids, row["token_logprobs"], row["logprob"]))
    return rows


def main(model: str, run: Path, first: int = 0, end: int | None = None) -> None:
    """Compare, and print the largest differences."""
    rows = read(model, run)[first:end]
    double = load(model, torch.float64)
    single = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    differences: dict[str, list[float]] = {"ours - float64": [], "float32 - float64": [], "ours - float32": []}
    of_tokens: dict[str, float] = dict.fromkeys(differences, 0.0)
    for ids, logprobs, logprob in rows:
        exact, plain = (scores(module, ids, len(logprobs)) for module in (double, single))
        ours = torch.tensor(logprobs, dtype=torch.float64)
        pairs = {"ours - float64": (ours, exact), "float32 - float64": (plain, exact), "ours - float32": (ours, plain)}
        for name, (left, right) in pairs.items():
            total = logprob if left is ours else float(left.sum())
            differences[name].append(total - float(right.sum()))
            of_tokens[name] = max(of_tokens[name], float((left - right).abs().max()))
    result: dict[str, Any] = {"rows": len(rows), "tokens": sum(len(logprobs) for _, logprobs, _ in rows)}
    for name, values in differences.items():
        result[name] = {
            "largest_of_a_sum": max(map(abs, values)),
            "rms_of_sums": statistics.fmean(value**2 for value in values) ** 0.5,
            "largest_of_a_token": of_tokens[name],
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
