"""An audit without the run's tokens: which tokens have the text in the part, and which of them may be the run's.

A toy in place of a model: its logits are a function of the tokens so far, so a run can be made that has chosen another
token at any place.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch

from job.engine.logits.margin import margins
from job.modes.mode import Answer
from job.modes.reasoning import BoundReasoning
from job.output.looking.sampled_rows import FinishedRow
from job.records import Completion, Generation, Prompt, Request
from job.report.audit import DIFFERENT, EQUAL, NEAR_TIE, UNCLEAR, Audit, Verdict
from job.report.describe_audit import describe_audit
from job.run import splits
from job.run.computer import Computer, generating
from job.run.recompute import AskedAgain
from job.run.retracing import Retracing
from job.tasks import Generate, Reasoning, SamplingParams, Score

PIECES = ["<end>", "a", "b", "ab", "c", "d", "\n", "</", "x>", "e"]
END, A, B, AB, C, D, LINE, OPEN, CLOSE, E = range(len(PIECES))
MARKER = Reasoning(start_ids=(E,), end_ids=(OPEN, CLOSE), closing_ids=(OPEN, CLOSE))

Scores = Callable[[tuple[int, ...]], dict[int, float]]
"""From the tokens so far to the logits of the next ones; those of others are 0."""


def decode(all_ids: Sequence[Sequence[int]]) -> list[str]:
    return ["".join(PIECES[token] for token in ids if token != END) for ids in all_ids]


class Toy(Computer):
    """Greedy, or a reasoned choice of one answer."""

    def __init__(self, scores: Scores) -> None:
        self.scores, self.model = scores, None
        special = {PIECES[END]: END}
        fields = [pa.field("choice_logprobs", pa.list_(pa.float64()))]
        mode = SimpleNamespace(measured=lambda: fields, follow=frozenset())
        self.examined: Any = SimpleNamespace(
            tokenizer=SimpleNamespace(
                decode=decode,
                vocab_size=len(PIECES),
                special_tokens=special,
                token_bytes=lambda: lambda token: PIECES[token].encode(),
            ),
            config=SimpleNamespace(active_modes=(mode,)),
        )

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return frozenset([END])

    def before(self, request: Request) -> Sequence[int]:
        return request.prompt_ids

    def _logits(self, request: Request, ids: Sequence[int], places: range) -> Iterator[tuple[int, torch.Tensor]]:
        logits = torch.zeros(len(places), len(PIECES))
        for row, place in enumerate(places):
            for token, score in self.scores(tuple(ids[:place])).items():
                logits[row, token] = score
        yield places.start, logits

    def again(self, request: Request) -> Generation:
        asked = generating(request)
        ids = [] if request.begun is None else list(request.begun.token_ids)
        while True:
            [(_, logits)] = self._logits(asked, ids, range(len(ids), len(ids) + 1))
            [margin] = margins(logits, asked, [], ids, self.eos_token_ids, len(ids))
            ends_early = asked.task.ends_at_answer and margin.winner == END  # type: ignore[union-attr]
            closing = MARKER.closing_ids if ends_early else ()
            ids += closing or [margin.winner]
            if (reason := self.finish_reason(asked, ids)) is not None:
                if isinstance(request.task, Score):
                    return self.score_after(request, ids)
                return Generation(request=request, token_ids=ids, finish_reason=reason)

    def score_after(self, request: Request, thought_ids: Sequence[int]) -> Generation:
        numbers = [self.scores(tuple(thought_ids)).get(A, 0.0)]
        return Generation(request=request, token_ids=thought_ids, finish_reason="stop", numbers=numbers)

    def complete(self, generation: Generation, prompt: Prompt) -> Completion:
        ids, [text] = generation.token_ids, decode([generation.token_ids])
        answer = Answer(
            completion=text, finish_reason=generation.finish_reason, num_completion_tokens=len(ids), token_ids=ids
        )
        if generating(generation.request).task.reasoning is not None:  # type: ignore[union-attr]
            tokens: Any = self.examined.tokenizer
            answer = BoundReasoning(tokens, MARKER, "").complete(answer, generation)
        return Completion(
            row_idx=0,
            sample_idx=0,
            prompt=None,
            completion=answer.completion,
            finish_reason=answer.finish_reason,
            num_prompt_tokens=len(generation.request.prompt_ids),
            num_completion_tokens=answer.num_completion_tokens,
            error=None,
            values={**answer.values, "choice_logprobs": generation.numbers},
        )


def request_of(kind: str) -> Request:
    """Greedy text; the same after reasoning that the prompt begins; that reasoning alone; or a choice after it."""
    params = SamplingParams(max_new_tokens=14)
    if kind == "text":
        return Request(row_idx=0, sample_idx=0, prompt_ids=[C], task=Generate(params=params))
    reason = Generate(params=params, reasoning=MARKER, ends_at_answer=kind in ("choice", "thought"))
    task = Score(choice_ids=((A,),), reason=reason) if kind == "choice" else reason
    return Request(row_idx=0, sample_idx=0, prompt_ids=[E], task=task)


def verdict_of(kind: str, now: Scores, run: Scores, *, known: bool = False) -> Verdict:
    """Audit a row of a model whose logits were ``run``'s with one whose logits are ``now``'s."""
    request, prompt, toy = request_of(kind), Prompt(row_idx=0, text=None), Toy(run)
    then = toy.again(request)
    stored = toy.complete(then, prompt)
    if known:
        stored = replace(stored, values={**stored.values, "token_ids": list(then.token_ids)})
    row = FinishedRow(completion=stored, worker="1-a", host="node", options="")
    toy = Toy(now)
    asked = AskedAgain(row=row, prompt=prompt, request=request)
    return Retracing(toy, asked, 0.5).verdict(toy.again(request))


def two_splits(gap: float) -> Scores:
    """``ab`` or ``a``, ``b`` at the beginning; what follows six tokens later depends on which."""

    def scores(ids: tuple[int, ...]) -> dict[int, float]:
        if not ids:
            return {AB: 5.0, A: 5.0 - gap}
        if ids == (A,):
            return {B: 5.0}
        if len(decode([ids])[0]) < 9:
            return {C: 5.0}
        return {D: 5.0} if ids[0] == A else {E: 5.0, D: 1.0}

    return scores


@pytest.mark.parametrize("known", [False, True])
def test_another_split_of_the_same_text_is_a_tie(known: bool) -> None:
    """The texts part seven tokens after the tie, where the run's token has a gap of 4 after the tokens of now."""
    near, far = two_splits(0.25), two_splits(0.8)
    run = two_splits(-1e-3)
    found = verdict_of("text", near, run, known=known)
    assert (found.outcome, found.position, found.num_ties) == (NEAR_TIE, 0, 1)
    assert found.gap == pytest.approx(0.25, rel=0.05)
    found = verdict_of("text", far, run, known=known)
    assert (found.outcome, found.position) == (DIFFERENT, 0 if known else 8)
    assert verdict_of("text", near, near, known=known).outcome == EQUAL

    def alike(ids: tuple[int, ...]) -> dict[int, float]:
        return (
            {B: 5.0}
            if ids == (A,)
            else {AB: 5.0, A: 4.9}
            if not ids
            else {(D if len(decode([ids])[0]) < 5 else END): 5.0}
        )

    found = verdict_of("text", alike, lambda ids: alike(ids) if ids else {A: 5.0}, known=known)
    assert (found.outcome, found.position, found.num_ties) == (NEAR_TIE, 0, 1), "their texts never part, but end"


def test_the_smallest_gap_is_found_and_a_fault_behind_a_tie_is_not_excused() -> None:
    def now(ids: tuple[int, ...], faulty: bool = False) -> dict[int, float]:
        if not ids:
            return {C: 5.0, AB: 4.7, A: 4.9}
        if len(ids) < 4:
            return {B: 5.0} if ids == (A,) else {D: 5.0}
        return {A: 5.0, C: 6.5} if faulty else {A: 5.0}

    def run(ids: tuple[int, ...], faulty: bool = False) -> dict[int, float]:
        return {AB: 5.0} if not ids else now(ids, faulty)

    found = verdict_of("text", now, run)
    assert (found.outcome, found.gap) == (NEAR_TIE, pytest.approx(0.3, rel=0.05)), (
        "its number of tokens excludes 'a', 'b'"
    )
    faulty = verdict_of("text", now, lambda ids: run(ids, faulty=True))
    assert (faulty.outcome, faulty.position, faulty.gap) == (DIFFERENT, 4, pytest.approx(5, rel=0.05))


def test_white_space_before_reasoning_is_not_in_the_text() -> None:
    """A line end that the run wrote first, and that nothing but what follows much later shows."""

    def now(ids: tuple[int, ...], gap: float = 0.2) -> dict[int, float]:
        if not ids:
            return {A: 5.0, LINE: 5.0 - gap}
        thought = [token for token in ids if token != LINE]
        if len(thought) < 8:
            return {A if not thought else C: 5.0}
        return {(OPEN, CLOSE, D, END)[min(3, len(thought) - 8)] if ids[0] == LINE else B: 5.0}

    def run(ids: tuple[int, ...]) -> dict[int, float]:
        return now(ids) if ids else {LINE: 5.0}

    found = verdict_of("reasoning", now, run)
    assert (found.outcome, found.position, found.gap) == (NEAR_TIE, 0, pytest.approx(0.2, rel=0.05))
    assert verdict_of("reasoning", lambda ids: now(ids, 0.9), run).outcome == DIFFERENT


@pytest.mark.parametrize(("gap", "outcome"), [(0.2, NEAR_TIE), (0.9, DIFFERENT)])
@pytest.mark.parametrize("known", [False, True])
def test_an_end_that_was_drawn_within_reasoning_is_compared_as_drawn(gap: float, outcome: str, known: bool) -> None:
    """The engine writes the marker, of two tokens here, in its place, which nobody has drawn: its own logits say
    nothing."""

    def ends(ids: tuple[int, ...], gap: float) -> dict[int, float]:
        if len(ids) < 6:
            return {A: 5.0}
        return {END: 5.0, D: 5.0 - gap} if len(ids) == 6 else {END: 5.0}

    kind = "thought" if known else "choice"
    found = verdict_of(kind, lambda ids: ends(ids, -gap), lambda ids: ends(ids, gap), known=known)
    assert (found.outcome, found.position, found.gap) == (outcome, 6, pytest.approx(gap, rel=0.05))
    found = verdict_of(kind, lambda ids: ends(ids, gap), lambda ids: ends(ids, -gap), known=known)
    assert (found.outcome, found.position, found.gap) == (outcome, 6, pytest.approx(gap, rel=0.05))

    def writes(ids: tuple[int, ...], gap: float) -> dict[int, float]:
        if ids and ids[-1] == OPEN:
            return {CLOSE: 5.0}
        return {OPEN: 5.0, D: 5.0 - gap} if len(ids) == 6 else ends(ids, 0) if len(ids) < 6 else {END: 5.0}

    for each in (gap, -gap):
        found = verdict_of(kind, partial(writes, gap=each), partial(writes, gap=-each), known=known)
        assert (found.outcome, found.position, found.gap) == (outcome, 6, pytest.approx(gap, rel=0.05)), "written"


@pytest.mark.parametrize(("gap", "outcome"), [(0.3, EQUAL), (0.7, DIFFERENT)])
def test_the_score_of_a_choice_is_not_that_of_the_reasoning_before_it(gap: float, outcome: str) -> None:
    """It is a sum over the choice's tokens, so nine tokens of reasoning do not make it less precise."""

    def scores(ids: tuple[int, ...], gap: float = 0.0) -> dict[int, float]:
        return {C: 5.0} if len(ids) < 7 else {A: -2.0 - gap, OPEN: 5.0} if ids[-1] != OPEN else {CLOSE: 5.0}

    assert verdict_of("choice", scores, partial(scores, gap=gap)).outcome == outcome


def test_what_was_not_tried_is_unclear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither different nor a tie: the report says what would tell, and there is nothing to be alarmed at."""
    monkeypatch.setattr(splits, "MOST_PLACES", 0)
    found = verdict_of("text", two_splits(0.25), two_splits(-1e-3))
    assert found.outcome == UNCLEAR and "more ways" in found.detail
    audit = Audit(verdicts=[found], num_finished=1, num_errors=0, tie_gap=0.5, how="")
    assert not audit.is_bad and audit.to_dict()["unclear"] == audit.to_dict()["workers"][0]["unclear"] == 1
    lines = describe_audit("out", audit).splitlines()
    assert any(line.startswith("  unclear    1 (a run with --logprobs") for line in lines)
    assert "row 0: unclear" in lines[-2] and lines[-1].startswith("No row is known to differ")
