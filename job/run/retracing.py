"""Compares a recomputed row with the one in a part: equal, near a tie, or different.

Where tokens are generated, the completion that comes out now is followed up to the first token from which the text in
the part cannot follow. Which tokens could have been there instead, and by how much they have missed being chosen now,
says whether that was a tie. If it was, the row is generated again with that token in its place, and so on to its end: a
fault behind a tie is found, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from job.engine.logits.margin import Margin
from job.modes.reasoning import REASONING
from job.records import Completion, Generation, Partial, Request
from job.report.audit import DIFFERENT, EQUAL, FAILED, NEAR_TIE, Verdict
from job.report.row_distance import distance
from job.run.recompute import AskedAgain, Computer
from job.tasks import BeamSearch, Generate, Score

MAX_TIES = 100
"""A row with more ties than this is different."""

NUM_RANKED = 64
"""How many of the tokens with the largest logits may be the one that the run chose, beside those that a tokenizer finds
at the beginning of the rest of the text."""

MOST_BACK = 4
"""How many tokens before the one that cannot be the run's may differ from it already."""

TORN = "\N{REPLACEMENT CHARACTER}"
"""What an incomplete character at the end of tokens becomes."""


@dataclass(frozen=True, slots=True)
class Tie:
    """A place where the run chose another token."""

    position: int
    gap: float
    token: int


class Retracing:
    """One row."""

    def __init__(self, computer: Computer, asked: AskedAgain, tie_gap: float) -> None:
        """Compare with a row of a part.

        Args:
            tie_gap: at most this gap, in logits, is a tie.
        """
        self._computer, self._asked, self._tie_gap = computer, asked, tie_gap
        self._stored = asked.row.completion
        self._stops = computer.examined.config.sampling.stop

    def verdict(self, generation: Generation | None) -> Verdict:
        """Return what came out, given what the row's request gives now; None: there is no request."""
        stored, asked = self._stored, self._asked
        if generation is None or generation.error is not None:
            return self._found(FAILED, detail=str(asked.error if generation is None else generation.error))
        if stored.prompt is not None and stored.prompt != asked.prompt.text:
            return self._found(DIFFERENT, detail="its prompt")
        if stored.num_prompt_tokens != len(generation.request.prompt_ids):
            return self._found(DIFFERENT, detail="the number of its prompt tokens")
        first = found = self._computer.complete(generation, asked.prompt)
        ties: list[Tie] = []
        while _task_of(generation.request) is not None and not self._is_same(found):
            tie, has_ended = self._divergence(generation)
            if tie is None or tie.gap > self._tie_gap or len(ties) == MAX_TIES:
                return self._different(generation, tie, ties)
            ties.append(tie)
            again = None if has_ended else self._go_on(generation, tie)
            if again is None:  # the run's text ends there, or the engine cannot go on from given tokens
                return self._judge_numbers(first, ties, upto=ties[0].position)
            if again.error is not None:
                return self._found(FAILED, detail=str(again.error))
            generation, found = again, self._computer.complete(again, asked.prompt)
        is_whole = not ties or _task_of(generation.request, generated=True) is None
        return self._judge_numbers(found if is_whole else first, ties, upto=None if is_whole else ties[0].position)

    def _judge_numbers(self, found: Completion, ties: Sequence[Tie], *, upto: int | None) -> Verdict:
        """Return the verdict on a row whose text is explained: the rest are numbers."""
        stored, modes = self._stored, self._computer.examined.config.active_modes
        num_tokens = stored.num_completion_tokens
        far, column = distance(modes, stored.values, found.values, num_tokens, upto=upto)
        if far > self._tie_gap:
            return self._found(DIFFERENT, ties=ties, gap=far, detail=f"{column} by {far:.2g}")
        if ties:
            return self._found(NEAR_TIE, ties=ties, gap=max(tie.gap for tie in ties))
        if stored.completion != found.completion or stored.finish_reason != found.finish_reason:
            same = stored.values.get(REASONING) == found.values.get(REASONING) and column is not None
            return self._found(NEAR_TIE if same else DIFFERENT, gap=far, detail=_change(stored, found))
        return self._found(EQUAL)

    def _different(self, generation: Generation, tie: Tie | None, ties: Sequence[Tie]) -> Verdict:
        """Return the verdict on a row that no tie explains."""
        if tie is None:
            return self._found(DIFFERENT, ties=ties, detail="its text, from an unknown token on")
        return self._found(DIFFERENT, ties=ties, position=tie.position, gap=tie.gap)

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

    def _is_same(self, found: Completion) -> bool:
        """Whether the generated texts are those in the part."""
        ends_alike = self._is_scored or found.finish_reason == self._stored.finish_reason
        return ends_alike and self._texts(found) == self._texts(self._stored)

    @property
    def _is_scored(self) -> bool:
        request = self._asked.request
        return request is not None and isinstance(request.task, Score)

    def _texts(self, completion: Completion) -> tuple[str, str]:
        """Return what was generated: the reasoning, and the answer if that was not scored."""
        return completion.values.get(REASONING) or "", "" if self._is_scored else completion.completion or ""

    def _texts_of(self, generation: Generation, token_ids: Sequence[int]) -> tuple[str, str]:
        """Return what the first tokens of a completion say."""
        cut = replace(
            generation, token_ids=token_ids, finish_reason="length", logprobs=None, top_ids=None, top_logprobs=None
        )
        return self._texts(self._computer.complete(cut, self._asked.prompt))

    def _agrees(self, generation: Generation, token_ids: Sequence[int]) -> bool:
        """Whether the text in the part may go on after these tokens."""
        reasoning, answer = self._texts_of(generation, token_ids)
        old_reasoning, old_answer = self._texts(self._stored)
        if answer.rstrip(TORN).strip():
            return reasoning == old_reasoning and self._begins(answer, old_answer)
        return self._begins(reasoning, old_reasoning)

    def _begins(self, text: str, stored: str) -> bool:
        text = text.rstrip(TORN)
        if stored.startswith((text, text.rstrip())):
            return True
        rest = text[len(stored) :] if text.startswith(stored) else None
        return bool(rest) and any(stop.startswith(str(rest)) for stop in self._stops)  # the stop text was cut off

    def _divergence(self, generation: Generation) -> tuple[Tie | None, bool]:
        """Return where the part's text leaves a completion and with which token, and whether it ends with that.

        None: no token is known with which it could.
        """
        ids = list(generation.token_ids)
        if len(generation.text_ids) < len(ids) or (generation.finish_reason == "stop" and ids):
            ids = ids[:-1]  # the end of this completion is a choice, too
        low, high = 0, len(ids)
        while low < high:  # the first tokens agree, all others do not
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._agrees(generation, ids[:middle]) else (low, middle - 1)
        # The last of these tokens may be the beginning of the one that the run chose, as a line end is of two of them.
        begun = generation.request.begun
        first = max(low - MOST_BACK, 0 if begun is None else begun.end)
        ties = []
        for position in range(low, first - 1, -1):
            ties += self._ties_at(generation, ids[:position])
            if ties and min(ties)[0] <= self._tie_gap:
                break
        if not ties:
            return None, False
        gap, position, token = min(ties)
        return Tie(position, gap, token), token in self._ends(generation.request)

    def _ties_at(self, generation: Generation, ids: list[int]) -> list[tuple[float, int, int]]:
        """Return the gap, the position and the token of each choice with which the text in the part could go on."""
        logits = self._computer.next_logits(generation.request, ids)
        if logits is None:
            return []
        request, position = _generating(generation.request), len(ids)
        before, eos_token_ids = self._computer.before(request), self._computer.eos_token_ids
        margin = Margin(logits, request, before, ids, eos_token_ids)
        now = generation.token_ids[position] if position < len(generation.token_ids) else None
        # These logits are those of one step for all tokens, which may be rounded like the run's, and not like the ones
        # that have just been computed token by token: then it is the token of now that misses being chosen.
        least = 0.0 if now is None else margin.gap(now)
        tokens = self._candidates(generation, ids, margin, self._ends(request))
        return [(max(least, margin.gap(token)), position, token) for token in tokens if token != now]

    def _ends(self, request: Request) -> frozenset[int]:
        """Return the tokens that end a completion."""
        task = _generating(request).task
        assert isinstance(task, Generate)
        return task.params.eos_of(self._computer.eos_token_ids).union(task.params.stop_token_ids)

    def _candidates(self, generation: Generation, ids: list[int], margin: Margin, ends: frozenset[int]) -> list[int]:
        """Return the tokens that the run may have chosen after some: those with which its text can go on."""
        now, stored = self._texts_of(generation, ids), self._texts(self._stored)
        rest = next((old[len(new) :] for new, old in zip(now, stored, strict=True) if len(old) > len(new)), "")
        if not rest and self._stored.finish_reason == "stop" and ends and not self._is_scored:
            return [*ends, *self._growing(generation, ids, margin.ranked(NUM_RANKED), now, ends)]
        whole = self._computer.examined.tokenizer.encode(rest)[:1]
        return self._growing(generation, ids, dict.fromkeys([*whole, *margin.ranked(NUM_RANKED)]), now, ends)

    def _growing(
        self,
        generation: Generation,
        ids: list[int],
        tokens: "Sequence[int] | dict[int, None]",
        now: tuple[str, str],
        ends: frozenset[int],
    ) -> list[int]:
        """Return the tokens with which there is more text, as the part has it."""
        return [
            token
            for token in tokens
            if token not in ends
            and self._texts_of(generation, [*ids, token]) != now
            and self._agrees(generation, [*ids, token])
        ]

    def _go_on(self, generation: Generation, tie: Tie) -> Generation | None:
        """Generate the row with another token at one place; None if the engine begins again instead."""
        request = generation.request
        ids = [*generation.token_ids[: tie.position], tie.token]
        task = _without_scores(_task_of(request))
        begun = Partial(row_idx=request.row_idx, sample_idx=request.sample_idx, attempt=request.attempt, token_ids=ids)
        if len(ids) >= task.params.max_new_tokens:
            return None
        asked = replace(request.task, reason=task) if isinstance(request.task, Score) else task
        again = self._computer.again(replace(request, task=asked, begun=begun))
        has_gone_on = again.error is not None or list(again.token_ids[: len(ids)]) == ids
        return again if has_gone_on else None


def _task_of(request: Request, *, generated: bool = False) -> Generate | None:
    """Return how tokens of a request are generated; None if none are.

    Args:
        generated: whether the answer itself must be.
    """
    task = request.task
    if isinstance(task, Score) and not generated:
        return task.reason
    return task if isinstance(task, Generate) and not isinstance(task, BeamSearch) else None


def _generating(request: Request) -> Request:
    task = _task_of(request)
    assert task is not None
    return replace(request, task=task)


def _without_scores(task: Generate | None) -> Generate:
    assert task is not None
    return replace(task, params=replace(task.params, logprobs=False, num_top_logprobs=0))


def _change(stored: Completion, found: Completion) -> str:
    return f"{stored.completion!r} became {found.completion!r}"
