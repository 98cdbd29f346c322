"""Compares a recomputed row with the one in a part: equal, near a tie, different, or unclear.

Where the part has the run's tokens, the model reads them in one pass, and each of them is compared with the one that
would be chosen now. Otherwise, tokens that have the text in the part are looked for, see ``job.run.splits``.
"""

from collections.abc import Sequence
from dataclasses import replace

from job.modes.reasoning import REASONING
from job.records import Completion, Generation
from job.report.audit import DIFFERENT, EQUAL, FAILED, NEAR_TIE, UNCLEAR, Verdict
from job.report.row_distance import distance
from job.run.computer import Computer, generates, generating
from job.run.recompute import AskedAgain
from job.run.row_texts import RowTexts
from job.run.splits import Splits, Tie, gap_at
from job.tasks import Generate, Score

MANY_WAYS = "more ways to split its text into tokens than were tried"
OTHER_SPLIT = "its text comes out in {1} tokens instead of {0}"


class Retracing:
    """One row."""

    def __init__(self, computer: Computer, asked: AskedAgain, tie_gap: float) -> None:
        """Compare with a row of a part.

        Args:
            tie_gap: at most this gap, in logits, is a tie.
        """
        self._computer, self._asked, self._tie_gap = computer, asked, tie_gap
        self._stored = asked.row.completion
        self._texts = RowTexts(computer, asked)

    def verdict(self, generation: Generation | None) -> Verdict:
        """Return what came out, given what the row's request gives now; None: there is no request."""
        stored, asked = self._stored, self._asked
        if generation is None or generation.error is not None:
            return self._found(FAILED, detail=str(asked.error if generation is None else generation.error))
        if stored.prompt is not None and stored.prompt != asked.prompt.text:
            return self._found(DIFFERENT, detail="its prompt")
        if stored.num_prompt_tokens != len(generation.request.prompt_ids):
            return self._found(DIFFERENT, detail="the number of its prompt tokens")
        found = self._computer.complete(generation, asked.prompt)
        if generates(generation.request) is None:
            return self._judge_numbers(generation, found, ())
        known = None if self._texts.is_scored else stored.values.get("token_ids")
        if self._texts.is_same(found) and (known is None or list(known) == list(generation.token_ids)):
            return self._judge_numbers(generation, found, ())
        forced = None if known is None else self._compare(generation, list(known))
        return self._search(generation, found) if forced is None else forced

    def _compare(self, generation: Generation, known: list[int]) -> Verdict | None:
        """Compare the tokens of the part, one by one, with those chosen now; None: there are no logits."""
        request, as_known = generating(generation.request), replace(generation, token_ids=known)
        pairs = zip(known, generation.token_ids, strict=False)
        parted = next((place for place, (old, new) in enumerate(pairs) if old != new), None)
        ties: list[Tie] = []
        behind = 0  # the next place with a choice
        logprobs: list[float] = []
        for place, margin in enumerate(self._computer.margins(request, known, range(len(known)))):
            if margin is None:
                return None
            token = known[place]
            logprobs.append(margin.logprob(token))
            if place < behind or (token == margin.winner and place != parted):
                continue
            then = gap_at(self._computer, self._texts, as_known, margin, place)
            gap, behind = then.gap, place + (len(self._texts.closing(as_known, known[:place])) if then.is_drawn else 1)
            if place == parted:  # the other one was chosen a moment ago, from logits that were rounded differently
                now = gap_at(self._computer, self._texts, generation, margin, place)
                gap = max(gap, min(now.gap, self._tie_gap))
            ties.append(Tie(place, gap, (token,)))
            if gap > self._tie_gap:
                return self._found(DIFFERENT, ties=ties[:-1], position=place, gap=gap)
        assert isinstance(request.task, Generate)
        scores = logprobs if request.task.params.scores_tokens else None
        forced = replace(
            generation,
            token_ids=known,
            finish_reason=self._computer.finish_reason(request, known),
            logprobs=scores,
            top_ids=None,
            top_logprobs=None,
        )
        found = self._computer.complete(forced, self._asked.prompt)
        if not self._texts.is_same(found):
            return self._found(DIFFERENT, ties=ties, detail="its tokens have another text, or do not end there")
        return self._judge_numbers(forced, found, ties)

    def _search(self, first: Generation, found: Completion) -> Verdict:
        """Look for tokens that lead from what comes out now to the text in the part, and return the verdict."""
        way = Splits(computer=self._computer, texts=self._texts, tie_gap=self._tie_gap).search(first)
        if way.generation is not None and way.has_failed:
            return self._found(FAILED, detail=str(way.generation.error))
        if way.generation is not None and way.is_exact:
            if isinstance(first.request.task, Score) and way.is_followed:
                found = self._computer.complete(way.generation, self._asked.prompt)
                return self._judge_numbers(way.generation, found, way.ties)
            return self._judge_numbers(first, found, way.ties, upto=way.ties[0].position)
        if way.generation is not None:
            found = self._computer.complete(way.generation, self._asked.prompt)
        if self._texts.has_same_text(found):
            old, new = self._stored.num_completion_tokens, found.num_completion_tokens
            return self._found(UNCLEAR, ties=way.ties, detail=OTHER_SPLIT.format(old, new))
        outcome, detail = (DIFFERENT, "") if way.is_known else (UNCLEAR, MANY_WAYS)
        *ties, tie = way.ties or (None,)
        if tie is None:
            return self._found(outcome, detail=detail or "its text, from an unknown token on")
        return self._found(outcome, ties=ties, position=tie.position, gap=tie.gap, detail=detail)

    def _judge_numbers(
        self, generation: Generation, found: Completion, ties: Sequence[Tie], *, upto: int | None = None
    ) -> Verdict:
        """Return the verdict on a row whose text is explained: the rest are numbers."""
        stored, modes = self._stored, self._computer.examined.config.active_modes
        # The score of a choice is a sum over its own tokens, not over those of the reasoning before it.
        num_tokens = stored.num_completion_tokens - (len(generation.token_ids) if self._texts.is_scored else 0)
        far, column = distance(modes, stored.values, found.values, num_tokens, upto=upto)
        if far > self._tie_gap:
            return self._found(DIFFERENT, ties=ties, gap=far, detail=f"{column} by {far:.2g}")
        if ties:
            return self._found(NEAR_TIE, ties=ties, gap=max(tie.gap for tie in ties))
        if stored.completion != found.completion or stored.finish_reason != found.finish_reason:
            same = stored.values.get(REASONING) == found.values.get(REASONING) and column is not None
            return self._found(NEAR_TIE if same else DIFFERENT, gap=far, detail=_change(stored, found))
        return self._found(EQUAL)

    def _found(
        self,
        outcome: str,
        *,
        ties: Sequence[Tie] = (),
        position: int | None = None,
        gap: float | None = None,
        detail: str = "",
    ) -> Verdict:
        row = self._asked.row
        return Verdict(
            row_idx=row.completion.row_idx,
            sample_idx=row.completion.sample_idx,
            worker=row.worker,
            host=row.host,
            outcome=outcome,
            position=ties[0].position if position is None and ties else position,
            gap=gap,
            num_ties=len(ties),
            detail=detail,
        )


def _change(stored: Completion, found: Completion) -> str:
    return f"{stored.completion!r} became {found.completion!r}"
