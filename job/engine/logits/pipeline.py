"""From a step's logits to tokens: one pipeline for all engines, on the leader only.

finite? -> masks -> biases, bad words, minimum length (``additions``) -> penalties: repetition, then frequency and
presence -> temperature, filters, draw (``sampling``) -> log probabilities, which are those of the logits before all of
this. vLLM has the same order.

The rows of a batch may differ in everything; what a row gets does not depend on the other rows (law 5).

A choice is started and waited for separately, so that a device can go on with the tokens before the host knows them.
To start it, one copy goes to the device, and nothing that the host does depends on what the tensors there hold.

Letters: B rows, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from job.engine.logits.additions import additions_of
from job.engine.logits.history import Occurrences
from job.engine.logits.masks import Masks
from job.engine.logits.penalties import Penalties, penalizes
from job.engine.logits.reductions import largest
from job.engine.logits.sampling import Sampler, SamplingBatch
from job.engine.logits.token_scores import PendingScores, TokenScores
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
    is_possible: list[bool]
    """Whether each row had a token to choose: its mask and its additions may rule out all of them."""
    is_exact: list[bool]
    """Whether each token is the right one. If not, the row must be chosen for again, in the batch's ``wide`` rows."""
    tops: Sequence[bytes] = ()
    """The most likely tokens of each row, see ``PendingScores.read``; empty if no row asks for any."""


class PendingChoice:
    """A choice that the device may still be computing."""

    tokens: torch.Tensor
    """[B] int64, on the device: what will be chosen. Within the vocabulary even where it is meaningless."""

    def __init__(
        self,
        tokens: torch.Tensor,
        flags: Mapping[str, torch.Tensor | None],
        scores: PendingScores | None = None,
    ) -> None:
        """Start to copy a choice to the host.

        Args:
            flags: [B] bool, by their names in ``TokenChoice``; None: true for each row.
            scores: of some rows.
        """
        given = {name: flag for name, flag in flags.items() if flag is not None}
        self.tokens, self._scores, self._flags = tokens, scores, tuple(given)
        parts = [tokens.int(), *(flag.int() for flag in given.values())]
        if scores is not None:
            parts += scores.parts
        self._copied = Download(torch.cat(parts))

    def result(self) -> TokenChoice:
        """Wait for the choice, and return it."""
        num_rows, numbers = len(self.tokens), self._copied.result()
        tokens, *values = numbers[: (1 + len(self._flags)) * num_rows].reshape(-1, num_rows)
        flags = {name: (value == 1).tolist() for name, value in zip(self._flags, values, strict=True)}
        logprobs: list[float | None] = [None] * num_rows
        tops: Sequence[bytes] = ()
        if self._scores is not None:
            logprobs, tops = self._scores.read(numbers[(1 + len(self._flags)) * num_rows :], num_rows)
        return TokenChoice(
            tokens=tokens.tolist(),
            logprobs=logprobs,
            tops=tops,
            **{name: flags.get(name, [True] * num_rows) for name in ("is_finite", "is_possible", "is_exact")},
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
        occurred: the rows, and what has occurred in them; the latter is asked only if one of them has a penalty.
        masks: the tokens that some rows may take; the others may take any.
    """
    top, best = largest(logits)
    is_finite = top.isfinite()  # if one logit is NaN, the largest is NaN
    additions = additions_of(batch, occurred.rows, logits.shape[1])
    parcel = Parcel(logits.device)
    if additions is None and all(_is_plain(params) for params in batch.distinct_params):
        # Greedy decoding, the usual case, needs neither a copy of the logits nor a conversion to float32.
        tokens = best if masks is None else masks.best(logits, best)
        return PendingChoice(tokens, {"is_finite": is_finite}, TokenScores(batch, parcel)(logits, tokens, top))
    sent_masks = None if masks is None else masks.send(parcel)
    sent_additions = None if additions is None else additions.send(parcel)
    penalties, sampler = Penalties(batch, occurred, logits.shape[1], parcel), Sampler(batch, parcel)
    token_scores = TokenScores(batch, parcel)

    raw = torch.where(is_finite[:, None], logits, 0.0)
    scores = (raw if sent_masks is None else sent_masks.apply(raw)).float()
    is_possible = None
    if sent_additions is not None:
        scores, is_possible = sent_additions.apply(scores)
    drawn = sampler(penalties(scores))
    is_exact = drawn.is_exact
    if is_exact is not None:  # what was chosen for a row that cannot be chosen for is as good as anything
        is_exact = is_exact | ~is_finite if is_possible is None else is_exact | ~is_finite | ~is_possible
    flags = {"is_finite": is_finite, "is_possible": is_possible, "is_exact": is_exact}
    return PendingChoice(drawn.tokens, flags, token_scores(raw, drawn.tokens, top))


def _is_plain(params: SamplingParams) -> bool:
    return params.temperature == 0 and not penalizes(params)
