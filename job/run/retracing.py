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
from job.run.row_texts import RowTexts
from job.tasks import BeamSearch, Generate, Score

MAX_BRANCHES = 100
"""A row that needs more ties, or more attempts, than this is different."""

NUM_RANKED = 64
"""How many of the tokens with the largest logits may be the one that the run chose, beside those that a tokenizer finds
at the beginning of the rest of the text."""

MOST_BACK = 4
"""How many tokens before the one that cannot be the run's may differ from it already."""


@dataclass(frozen=True, slots=True)
class Tie:
    """A place where the run chose another token."""

    position: int
    gap: float
    token: int


@dataclass(frozen=True, slots=True)
class Branch:
    """A way from what comes out now towards the text in the part."""

    generation: Generation
    ties: tuple[Tie, ...]
    """The last of them is a place in ``generation``, the others have led to it."""
    has_ended: bool
    """Whether the text in the part ends with the last one."""


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
        if _task_of(generation.request) is None or self._texts.is_same(found):
            return self._judge_numbers(found, ())
        return self._follow(generation, found)

    def _follow(self, first: Generation, found: Completion) -> Verdict:
        """Look for ties that lead from what comes out now to the text in the part, and return the verdict.

        Several tokens may be the beginning of the same text: if one leads nowhere, the others are tried.
        """
        waiting = self._branches(first, ())
        farthest: Branch | None = None
        for _ in range(MAX_BRANCHES):
            if not waiting:
                break
            branch = waiting.pop()
            if branch.ties[-1].gap > self._tie_gap:
                farthest = max(
                    branch, farthest or branch, key=lambda each: (each.ties[-1].position, -each.ties[-1].gap)
                )
                continue
            again = None if branch.has_ended else self._go_on(branch.generation, branch.ties[-1])
            if again is None:  # the run's text ends there, or the engine cannot go on from given tokens
                return self._judge_numbers(found, branch.ties, upto=branch.ties[0].position)
            if again.error is not None:
                return self._found(FAILED, detail=str(again.error))
            text = self._computer.complete(again, self._asked.prompt)
            if self._texts.is_same(text):
                if isinstance(first.request.task, Score):
                    return self._judge_numbers(text, branch.ties)
                return self._judge_numbers(found, branch.ties, upto=branch.ties[0].position)
            waiting += self._branches(again, branch.ties)
        if farthest is None:
            return self._found(DIFFERENT, detail="its text, from an unknown token on")
        *ties, tie = farthest.ties
        return self._found(DIFFERENT, ties=ties, position=tie.position, gap=tie.gap)

    def _judge_numbers(self, found: Completion, ties: Sequence[Tie], *, upto: int | None = None) -> Verdict:
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

    def _branches(self, generation: Generation, ties: tuple[Tie, ...]) -> list["Branch"]:
        """Return where the part's text may leave a completion and with which token, the smallest gap last.

        Args:
            ties: those that have led to this completion.
        """
        ids = list(generation.token_ids)
        if len(generation.text_ids) < len(ids) or (generation.finish_reason == "stop" and ids):
            ids = ids[:-1]  # the end of this completion is a choice, too
        low, high = 0, len(ids)
        while low < high:  # the first tokens agree, all others do not
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high) if self._texts.agree(self._texts.after(generation, ids[:middle])) else (low, middle - 1)
            )
        # The last of these tokens may be the beginning of the one that the run chose, as a line end is of two of them.
        begun = generation.request.begun
        first = max(low - MOST_BACK, 0 if begun is None else begun.end)
        found: list[Tie] = []
        for position in range(low, first - 1, -1):
            found += self._ties_at(generation, ids[:position])
            if any(tie.gap <= self._tie_gap for tie in found):
                break
        ends = self._ends(generation.request)
        found.sort(key=lambda tie: -tie.gap)
        return [Branch(generation, (*ties, tie), tie.token in ends) for tie in found]

    def _ties_at(self, generation: Generation, ids: list[int]) -> list[Tie]:
        """Return the choices with which the text in the part could go on."""
        logits = self._computer.next_logits(generation.request, ids)
        if logits is None:
            return []
        request, position = _generating(generation.request), len(ids)
        before, eos_token_ids = self._computer.before(request), self._computer.eos_token_ids
        margin = Margin(logits, request, before, ids, eos_token_ids)
        now = generation.token_ids[position] if position < len(generation.token_ids) else None
        # These logits are those of one step for all tokens, which may be rounded like the run's, and not like the ones
        # that have just been computed token by token: then it is the token of now that misses being chosen.
        ends = self._ends(request)
        least = 0.0 if now is None else margin.gap(now)
        if _closes_reasoning(generation, position):
            least = min([least, *map(margin.gap, ends)])
        tokens = self._candidates(generation, ids, margin, ends)
        return [Tie(position, max(least, margin.gap(token)), token) for token in tokens if token != now]

    def _ends(self, request: Request) -> frozenset[int]:
        """Return the tokens that end a completion."""
        task = _generating(request).task
        assert isinstance(task, Generate)
        return task.params.eos_of(self._computer.eos_token_ids).union(task.params.stop_token_ids)

    def _candidates(self, generation: Generation, ids: list[int], margin: Margin, ends: frozenset[int]) -> list[int]:
        """Return the tokens that the run may have chosen after some: those with which its text can go on."""
        now = self._texts.after(generation, ids)
        rest = self._texts.rest(now)
        if not rest and self._stored.finish_reason == "stop" and ends and not self._texts.is_scored:
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
        return [token for token in tokens if token not in ends and self._texts.grows(generation, ids, token, now)]

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


def _task_of(request: Request) -> Generate | None:
    """Return how tokens of a request are generated; None if none are."""
    task = request.task
    if isinstance(task, Score):
        return task.reason
    return task if isinstance(task, Generate) and not isinstance(task, BeamSearch) else None


def _generating(request: Request) -> Request:
    task = _task_of(request)
    assert task is not None
    return replace(request, task=task)


def _closes_reasoning(generation: Generation, position: int) -> bool:
    """Return whether reasoning ends at a token: the engine puts the marker there if an end was drawn."""
    task = _task_of(generation.request)
    marker = () if task is None or task.reasoning is None else tuple(task.reasoning.closing_ids)
    return bool(marker) and tuple(generation.token_ids[position : position + len(marker)]) == marker


def _without_scores(task: Generate | None) -> Generate:
    assert task is not None
    return replace(task, params=replace(task.params, logprobs=False, num_top_logprobs=0))


def _change(stored: Completion, found: Completion) -> str:
    return f"{stored.completion!r} became {found.completion!r}"
