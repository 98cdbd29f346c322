"""Decoding: a step's logits become the next token of each row, until it ends."""

from collections import abc

import torch

from job.config import SamplingParams
from job.engine.failures import failed
from job.engine.logits.constraint import Constraint, Matcher
from job.engine.paged.schedule.scheduler import Work
from job.engine.paged.schedule.sequences import Sequence
from job.engine.paged.tasks.logits_task import Outcome
from job.engine.paged.tasks.token_choice import Choosing
from job.engine.protocol import EndsText
from job.records import Generation, Request


class Decoding:
    """Implements ``LogitsTask``."""

    def __init__(
        self,
        params: SamplingParams,
        eos_token_ids: frozenset[int],
        ends_text: EndsText | None,
        constraint: Constraint | None = None,
        *,
        num_slots: int,
    ) -> None:
        """Decode with these parameters.

        Args:
            eos_token_ids: tokens that end a completion.
            ends_text: finds the stop strings.
            constraint: what every completion must be.
        """
        self._params, self._eos_token_ids, self._ends_text = params, eos_token_ids, ends_text
        self._constraint = constraint
        self._matchers: dict[Sequence, Matcher] = {}
        self._choosing = Choosing(params, num_slots=num_slots)

    def begin(self, request: Request) -> list[Sequence]:
        """See ``LogitsTask``."""
        return [Sequence.of(request)]

    def expect(self, work: abc.Sequence[Work]) -> None:
        """See ``LogitsTask``."""
        rows = _wanted(work)
        if self._constraint is not None and rows:
            for row in rows:
                if row not in self._matchers:
                    self._matchers[row] = self._constraint.begin()
            self._constraint.expect([self._matchers[row] for row in rows])

    def take(self, work: abc.Sequence[Work], logits: torch.Tensor) -> Outcome:
        """See ``LogitsTask``."""
        rows = _wanted(work)
        if not rows:
            return Outcome()
        masks = None if self._constraint is None else self._constraint.masks()
        tokens, logprobs, is_finite = self._choosing.choose(logits, rows, masks)
        good: list[Sequence] = []
        for idx, row in enumerate(rows):
            if is_finite[idx]:
                good.append(row)
                row.token_ids.append(tokens[idx])
                if logprobs is not None:
                    row.logprobs.append(logprobs[idx])
        generations = self._advance(good)
        generations |= self._finished([row for row in good if row not in generations])
        for row in generations:
            self._matchers.pop(row, None)
        return Outcome(
            ended=list(generations),
            non_finite=[row for idx, row in enumerate(rows) if not is_finite[idx]],
            generations=list(generations.values()),
        )

    def fail(self, sequence: Sequence, failure: Generation) -> list[Generation]:
        """See ``LogitsTask``."""
        self._matchers.pop(sequence, None)
        return [failure]

    def _advance(self, rows: abc.Sequence[Sequence]) -> dict[Sequence, Generation]:
        """Lead rows' matchers behind their last token; return those that have ended by it, or failed."""
        ended: dict[Sequence, Generation] = {}
        for row in rows if self._constraint is not None else ():
            matcher = self._matchers[row]
            if matcher.failure is None and row.token_ids[-1] not in self._eos_token_ids:
                matcher.accept(row.token_ids[-1])
                if not self._params.logprobs:  # which need a step for each token
                    row.token_ids += matcher.take_forced(self._params.max_new_tokens - row.num_generated)
            if matcher.failure is not None:
                ended[row] = failed(row.request, "constraint_failed", matcher.failure)
            elif matcher.has_ended:
                ended[row] = self._generation(row, "stop")
        return ended

    def _finished(self, rows: abc.Sequence[Sequence]) -> dict[Sequence, Generation]:
        """Return the rows that have come to an end of their own, to the most tokens or to a stop string."""
        reasons: dict[Sequence, str] = {}
        for row in rows:
            if row.token_ids[-1] in self._eos_token_ids:
                reasons[row] = "stop"
            elif row.num_generated >= self._params.max_new_tokens:
                reasons[row] = "length"
        if self._ends_text is not None:
            texts = [row.token_ids[row.num_prompt :] for row in rows]
            stopped = zip(rows, self._ends_text(texts), strict=True)
            reasons |= {row: "stop" for row, has_stopped in stopped if has_stopped}
        return {row: self._generation(row, reason) for row, reason in reasons.items()}

    def _generation(self, row: Sequence, reason: str) -> Generation:
        return Generation(
            request=row.request,
            token_ids=row.token_ids[row.num_prompt :],
            finish_reason=reason,
            logprobs=row.logprobs if self._params.logprobs else None,
        )


def _wanted(work: abc.Sequence[Work]) -> list[Sequence]:
    """Return the sequences whose next token a step chooses."""
    return [item.sequence for item in work if item.num_wanted]
