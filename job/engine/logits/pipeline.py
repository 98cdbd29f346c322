"""From a step's logits to tokens: one pipeline for all engines, on the leader only.

finite? -> masks -> penalties: repetition, then frequency and presence -> temperature, filters, draw (``sampling``)
-> log probabilities, which are those of the logits before all of this

The rows of a batch may differ in everything; what a row gets does not depend on the other rows (law 5).

A choice is started and waited for separately, so that a device can go on with the tokens before the host knows them.
To start it, one copy goes to the device, and nothing that the host does depends on what the tensors there hold.

Letters: B rows, V vocabulary.
"""

from collections.abc import Callable, Sequence
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
    is_penalized = _penalizes_repetition(params) or _penalizes_occurrence(params)
    return params.temperature == 0 and not params.logprobs and not is_penalized


def _penalizes_repetition(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1


def _penalizes_occurrence(params: SamplingParams) -> bool:
    return params.frequency_penalty != 0 or params.presence_penalty != 0


def _penalize_occurrence(
    logits: torch.Tensor, counts: torch.Tensor, frequency: torch.Tensor, presence: torch.Tensor
) -> torch.Tensor:
    """Make tokens that were generated less likely, as OpenAI's API documents it.

    Args:
        logits: [B, V] float32.
        counts: [B, V] int32: how often each token was generated.
        frequency: [B, 1] float32, taken off once for each time.
        presence: [B, 1] float32, taken off once.
    """
    return logits - frequency * counts - presence * (counts > 0)


class _Penalties:
    """The penalties of a batch for tokens that have occurred."""

    def __init__(self, batch: SamplingBatch, occurred: Occurrences, vocab_size: int, parcel: Parcel) -> None:
        self._vocab_size, self._parcel = vocab_size, parcel
        self._steps = [
            *self._step(batch, _penalizes_repetition, ["repetition_penalty"], occurred.seen, penalize_repetition),
            *self._step(
                batch,
                _penalizes_occurrence,
                ["frequency_penalty", "presence_penalty"],
                occurred.counts,
                _penalize_occurrence,
            ),
        ]

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Return scores [B, V] float32 with the penalties."""
        for step in self._steps:
            scores = step(scores)
        return scores

    def _step(
        self,
        batch: SamplingBatch,
        condition: Callable[[SamplingParams], bool],
        names: Sequence[str],
        look_up: Callable[[Sequence[int], int, Parcel], Callable[[], torch.Tensor]],
        penalize: Callable[..., torch.Tensor],
    ) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """Return what applies one kind of penalty to the rows that have it; nothing if none has.

        Args:
            condition: whether a row has it.
            names: the parameters that it takes.
            look_up: finds what has occurred in some rows.
        """
        rows = batch.rows_where(condition)
        if not rows:
            return []
        penalized = batch if len(rows) == len(batch) else batch.select(rows)
        numbers = [self._parcel.add(penalized.numbers(name)) for name in names]
        occurred, index = look_up(rows, self._vocab_size, self._parcel), self._parcel.add(np.array(rows, np.int64))

        def apply(scores: torch.Tensor) -> torch.Tensor:
            if len(rows) == len(batch):
                return penalize(scores, occurred(), *(number() for number in numbers))
            some = penalize(scores.index_select(0, index()), occurred(), *(number() for number in numbers))
            return scores.index_copy(0, index(), some)

        return [apply]
