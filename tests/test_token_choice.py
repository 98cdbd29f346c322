"""Choosing tokens on the leader: which rows may be trusted, and what each slot has seen."""

from typing import Any

import pytest
import torch

from job.config import SamplingParams
from job.engine.logits.sampling import choose_tokens, penalize_repetition, token_logprobs
from job.engine.paged.schedule.sequences import Sequence
from job.engine.paged.tasks.token_choice import Choosing
from job.records import Request

VOCAB = 20


def running(row_idx: int, prompt_ids: list[int], slot: int) -> Sequence:
    sequence = Sequence.of(Request(row_idx=row_idx, sample_idx=0, prompt_ids=prompt_ids))
    sequence.slot = slot
    return sequence


def random_logits(num_rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"logprobs": True}, {"repetition_penalty": 1.5}])
def test_rows_whose_logits_are_not_finite_are_told_and_the_others_are_chosen(params: dict[str, Any]) -> None:
    choosing = Choosing(SamplingParams(**params), num_slots=4)
    logits = random_logits(4)
    clean = Choosing(SamplingParams(**params), num_slots=4).choose(logits, [running(i, [1], i) for i in range(4)])
    logits[1, 7], logits[2, 3] = torch.nan, torch.inf
    tokens, logprobs, is_finite = choosing.choose(logits, [running(idx, [1], idx) for idx in range(4)])
    assert is_finite == [True, False, False, True]
    assert (tokens[0], tokens[3]) == (clean[0][0], clean[0][3])
    if params.get("logprobs"):
        assert logprobs is not None and clean[1] is not None and logprobs[::3] == clean[1][::3]
    else:
        assert logprobs is None


def test_a_logit_of_minus_infinity_is_no_overflow() -> None:
    """Models mask tokens of their vocabulary so."""
    logits = random_logits(2)
    logits[:, 5:] = -torch.inf
    for params in (SamplingParams(), SamplingParams(temperature=1.0), SamplingParams(logprobs=True)):
        tokens, _, is_finite = Choosing(params, num_slots=2).choose(logits, [running(i, [1], i) for i in range(2)])
        assert is_finite == [True, True] and max(tokens) < 5


def test_log_probabilities_are_the_models_own() -> None:
    """Before temperature and penalty."""
    params = SamplingParams(temperature=0.5, repetition_penalty=2.0, logprobs=True, seed=3)
    logits = random_logits(3).bfloat16()
    tokens, logprobs, _ = Choosing(params, num_slots=3).choose(logits, [running(i, [i, 5], i) for i in range(3)])
    assert logprobs == token_logprobs(logits, torch.tensor(tokens)).tolist()


def test_draws_go_by_row_and_position() -> None:
    params = SamplingParams(temperature=1.0)
    rows = [running(3, [1, 2], 0), running(9, [1], 1)]
    rows[1].token_ids += [4, 5]
    logits = random_logits(2)
    tokens, _, _ = Choosing(params, num_slots=2).choose(logits, rows)
    assert tokens == choose_tokens(logits, params, [(3, 0), (9, 0)], [0, 2]).tolist()


class Penalized:
    """Chooses greedily with a penalty, from the same logits again and again, and compares with the plainest way."""

    def __init__(self, num_slots: int) -> None:
        """Begin with empty slots."""
        self.choosing = Choosing(SamplingParams(repetition_penalty=1.7), num_slots=num_slots)

    def step(self, *rows: Sequence) -> None:
        """Choose a token for rows and append it."""
        logits = torch.cat([random_logits(1, row.request.row_idx) for row in rows]) + 3.0
        seen = torch.zeros(len(rows), VOCAB, dtype=torch.bool)
        for idx, row in enumerate(rows):
            seen[idx, row.token_ids] = True
        tokens, _, _ = self.choosing.choose(logits, rows)
        assert tokens == penalize_repetition(logits, seen, 1.7).argmax(dim=-1).tolist()
        for row, token in zip(rows, tokens, strict=True):
            assert row.token_ids.count(token) < 2, "the penalty does not tell in this test"
            row.token_ids.append(token)


def test_a_slot_remembers_the_prompt_and_what_was_generated() -> None:
    bench = Penalized(3)
    rows = [running(0, [1, 2, 3], 2), running(1, [4], 0)]
    for _ in range(6):
        bench.step(*rows)
    bench.step(rows[1])
    bench.step(*rows[::-1])


def test_a_slot_forgets_the_row_that_had_it_before() -> None:
    bench = Penalized(1)
    first = running(0, list(range(15)), 0)
    for _ in range(3):
        bench.step(first)
    second = running(1, [17], 0)
    for _ in range(5):
        bench.step(second)


def test_a_row_that_comes_back_in_another_slot_has_seen_the_same() -> None:
    """After a preemption: its own tokens come along, and the slot's former row does not."""
    bench = Penalized(2)
    rows = [running(0, [1, 2, 3], 0), running(1, [9, 10, 11], 1)]
    for _ in range(4):
        bench.step(*rows)
    rows[0].slot, rows[1].slot = 1, 0
    for row in rows:
        row.is_new_in_slot = True
    for _ in range(4):
        bench.step(*rows)


def test_tokens_that_came_without_being_chosen_are_seen() -> None:
    """Those that a grammar forces are appended several at once."""
    bench = Penalized(2)
    row = running(0, [1, 2, 3], 1)
    for forced in ([], [7, 8], [12], []):
        bench.step(row)
        row.token_ids += forced
