"""From a step's logits to tokens: one pipeline for all engines, on the leader only.

finite? -> masks -> repetition penalty -> temperature, filters, draw (``sampling``) -> log probabilities

The rows of a batch may differ in everything; what a row gets does not depend on the other rows (law 5).

A choice is started and waited for separately, so that a device can go on with the tokens before the host knows them.
To start it, one copy goes to the device, and nothing that the host does depends on what the tensors there hold.

Letters: B rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from job.engine.logits.history import Occurrences
from job.engine.logits.masks import Masks
from job.engine.logits.reductions import largest, token_logprobs
from job.engine.logits.sampling import Sampler, SamplingBatch, penalize_repetition
from job.engine.transfers import Download, Parcel
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
    is_exact: list[bool]
    """Whether each token is the right one. If not, the row must be chosen for again, in the batch's ``wide`` rows."""


class PendingChoice:
    """A choice that the device may still be computing."""

    tokens: torch.Tensor
    """[B] int64, on the device: what will be chosen. Within the vocabulary even where it is meaningless."""

    def __init__(
        self,
        tokens: torch.Tensor,
        is_finite: torch.Tensor,
        is_exact: torch.Tensor | None = None,
        logprobs: torch.Tensor | None = None,
        logprob_rows: Sequence[int] = (),
    ) -> None:
        """Start to copy a choice to the host: [B] each, and [R] float32 log probabilities of some rows."""
        self.tokens, self._logprob_rows, self._has_exact = tokens, logprob_rows, is_exact is not None
        parts = [tokens.int(), is_finite.int()]
        if is_exact is not None:
            parts.append((is_exact | ~is_finite).int())
        if logprobs is not None:
            parts.append(logprobs.view(torch.int32))
        self._copied = Download(torch.cat(parts))

    def result(self) -> TokenChoice:
        """Wait for the choice, and return it."""
        num_rows, numbers = len(self.tokens), self._copied.result()
        tokens, is_finite, *is_exact = numbers[: (2 + self._has_exact) * num_rows].reshape(-1, num_rows)
        logprobs: list[float | None] = [None] * num_rows
        if self._logprob_rows:
            values = numbers[-len(self._logprob_rows) :].view(np.float32).tolist()
            for row, value in zip(self._logprob_rows, values, strict=True):
                logprobs[row] = value
        return TokenChoice(
            tokens=tokens.tolist(),
            logprobs=logprobs,
            is_finite=(is_finite == 1).tolist(),
            is_exact=(is_exact[0] == 1).tolist() if is_exact else [True] * num_rows,
        )


def choose(
    logits: torch.Tensor, batch: SamplingBatch, occurred: Occurrences, masks: Masks | None = None
) -> TokenChoice:
    """Choose the next token of each row, and wait for it; see ``start_choice``. All tokens are exact."""
    choice = start_choice(logits, batch, occurred, masks).result()
    if all(choice.is_exact):
        return choice
    wide = {*batch.wide, *(row for row, is_exact in enumerate(choice.is_exact) if not is_exact)}
    return choose(logits, replace(batch, wide=wide), occurred, masks)


def start_choice(
    logits: torch.Tensor, batch: SamplingBatch, occurred: Occurrences, masks: Masks | None = None
) -> PendingChoice:
    """Start to choose the next token of each row.

    Args:
        logits: [B, V] in the model's dtype; not modified.
        occurred: what has occurred in the rows; asked only if one of them has a penalty.
        masks: the tokens that some rows may take; the others may take any.
    """
    top, best = largest(logits)
    is_finite = top.isfinite()  # if one logit is NaN, the largest is NaN
    if all(_is_plain(params) for params in batch.distinct_params):
        # Greedy decoding, the usual case, needs neither a copy of the logits nor a conversion to float32.
        return PendingChoice(best if masks is None else masks.best(logits, best), is_finite)
    parcel = Parcel(logits.device)
    sent_masks = None if masks is None else masks.send(parcel)
    penalties, sampler = _Penalties(batch, occurred, logits.shape[1], parcel), Sampler(batch, parcel)
    rows = batch.rows_where(lambda params: params.logprobs)
    index = parcel.add(np.array(rows, np.int64))

    raw = torch.where(is_finite[:, None], logits, 0.0)
    scores = (raw if sent_masks is None else sent_masks.apply(raw)).float()
    drawn = sampler(penalties(scores))
    logprobs = None
    if rows:
        some = slice(None) if len(rows) == len(batch) else index()
        logprobs = token_logprobs(raw[some], drawn.tokens[some])
    return PendingChoice(drawn.tokens, is_finite, drawn.is_exact, logprobs, rows)


def _is_plain(params: SamplingParams) -> bool:
    return params.temperature == 0 and params.repetition_penalty == 1 and not params.logprobs


class _Penalties:
    """The repetition penalties of a batch."""

    def __init__(self, batch: SamplingBatch, occurred: Occurrences, vocab_size: int, parcel: Parcel) -> None:
        self._rows = batch.rows_where(lambda params: params.repetition_penalty != 1)
        self._is_for_all = len(self._rows) == len(batch)
        if self._rows:
            penalized = batch if self._is_for_all else batch.select(self._rows)
            self._penalty = parcel.add(penalized.numbers("repetition_penalty"))
            self._seen = occurred.seen(self._rows, vocab_size, parcel)
            self._index = parcel.add(np.array(self._rows, np.int64))

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Return scores [B, V] float32 with the penalties."""
        if not self._rows:
            return scores
        if self._is_for_all:
            return penalize_repetition(scores, self._seen(), self._penalty())
        some = penalize_repetition(scores.index_select(0, self._index()), self._seen(), self._penalty())
        return scores.index_copy(0, self._index(), some)
