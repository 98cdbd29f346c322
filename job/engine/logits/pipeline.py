"""From a step's logits to tokens: one pipeline for all engines, on the leader only.

finite? -> masks -> repetition penalty -> temperature, filters, draw (``sampling``) -> log probabilities

The rows of a batch may differ in everything; what a row gets does not depend on the other rows (law 5).

Letters: B rows, V vocabulary.
"""

from dataclasses import dataclass

import torch

from job.engine.logits.history import Occurrences
from job.engine.logits.masks import Masks
from job.engine.logits.sampling import SamplingBatch, choose_tokens, largest, penalize_repetition, token_logprobs
from job.tasks import SamplingParams


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """What was chosen for B rows."""

    tokens: list[int]
    """Meaningless for a row whose logits are not finite."""
    logprobs: list[float | None]
    """Natural logarithms of the tokens' probabilities in the model's own distribution; None where not requested."""
    is_finite: list[bool]
    """Whether the logits of each row are finite. Minus infinity counts as finite: models rule out tokens with it."""


def choose(
    logits: torch.Tensor, batch: SamplingBatch, occurred: Occurrences, masks: Masks | None = None
) -> TokenChoice:
    """Choose the next token of each row.

    Args:
        logits: [B, V] in the model's dtype; not modified.
        occurred: what has occurred in the rows; asked only if one of them has a penalty.
        masks: the tokens that some rows may take; the others may take any.
    """
    top, best = largest(logits)
    is_finite = top.isfinite()  # if one logit is NaN, the largest is NaN
    if all(_is_plain(params) for params in batch.distinct_params):
        # Greedy decoding, the usual case, needs neither a copy of the logits nor a conversion to float32.
        tokens = best if masks is None else masks.best(logits, best)
        return _to_host(tokens, is_finite, [None] * len(batch))
    raw = torch.where(is_finite[:, None], logits, 0.0)
    scores = (raw if masks is None else masks.apply(raw)).float()
    tokens = choose_tokens(_penalize(scores, batch, occurred), batch)
    return _to_host(tokens, is_finite, _logprobs(raw, tokens, batch))


def _to_host(tokens: torch.Tensor, is_finite: torch.Tensor, logprobs: list[float | None]) -> TokenChoice:
    """Copy [B] tokens and [B] flags to the host together, since each copy waits for the device."""
    token_ids, flags = torch.stack([tokens, is_finite.long()]).tolist()
    return TokenChoice(token_ids, logprobs, [flag == 1 for flag in flags])


def _is_plain(params: SamplingParams) -> bool:
    return params.temperature == 0 and params.repetition_penalty == 1 and not params.logprobs


def _penalize(scores: torch.Tensor, batch: SamplingBatch, occurred: Occurrences) -> torch.Tensor:
    rows = batch.rows_where(lambda params: params.repetition_penalty != 1)
    if not rows:
        return scores
    penalty = batch.select(rows).numbers("repetition_penalty", scores.device)
    seen = occurred.seen(rows, scores)
    if len(rows) == len(batch):
        return penalize_repetition(scores, seen, penalty)
    index = torch.tensor(rows, device=scores.device)
    return scores.index_copy(0, index, penalize_repetition(scores[index], seen, penalty))


def _logprobs(raw: torch.Tensor, tokens: torch.Tensor, batch: SamplingBatch) -> list[float | None]:
    rows = batch.rows_where(lambda params: params.logprobs)
    logprobs: list[float | None] = [None] * len(batch)
    if rows:
        index = slice(None) if len(rows) == len(batch) else torch.tensor(rows, device=raw.device)
        for row, value in zip(rows, token_logprobs(raw[index], tokens[index]).tolist(), strict=True):
            logprobs[row] = value
    return logprobs
