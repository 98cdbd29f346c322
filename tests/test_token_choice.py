"""The pipeline from logits to tokens: which rows may be trusted, rows that differ, and what each slot has seen."""

from collections.abc import Sequence as Many
from typing import Any

import numpy as np
import pytest
import torch

from job.engine.logits import masks as masks_module
from job.engine.logits import sampling
from job.engine.logits.history import Occurrences, TokenHistory
from job.engine.logits.masks import Masks, empty_words
from job.engine.logits.penalties import penalize_repetition
from job.engine.logits.pipeline import TokenChoice, choose, start_choice
from job.engine.logits.reductions import token_logprobs
from job.engine.logits.sampling import Sampler, SamplingBatch
from job.engine.paged.schedule.sequences import Sequence
from job.engine.transfers import Parcel
from job.tasks import SamplingParams
from tests.serving import ask

VOCAB = 20


def running(row_idx: int, prompt_ids: list[int], slot: int) -> Sequence:
    sequence = Sequence.of(ask(prompt_ids, row_idx=row_idx))
    sequence.slot = slot
    return sequence


def occurred(seen: torch.Tensor) -> Occurrences:
    """Return the history of rows in which these tokens [B, V] have occurred."""
    rows = [running(row, tokens.nonzero()[:, 0].tolist(), row) for row, tokens in enumerate(seen)]
    return TokenHistory(len(rows)).of(rows)


def random_logits(num_rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def batch_of(params: SamplingParams | Many[SamplingParams], num_rows: int) -> SamplingBatch:
    all_params = [params] * num_rows if isinstance(params, SamplingParams) else params
    return SamplingBatch(all_params, [(row_idx, 0) for row_idx in range(num_rows)], [0] * num_rows)


def draw(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    return Sampler(batch, Parcel(logits.device))(logits).tokens


def choose_alike(logits: torch.Tensor, params: SamplingParams) -> TokenChoice:
    """Choose for rows with the same parameters, which have seen token 1."""
    seen = torch.arange(logits.shape[1]).expand(len(logits), -1) == 1
    return choose(logits, batch_of(params, len(logits)), occurred(seen))


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}, {"logprobs": True}, {"repetition_penalty": 1.5}])
def test_rows_whose_logits_are_not_finite_are_told_and_the_others_are_chosen(params: dict[str, Any]) -> None:
    logits = random_logits(4)
    clean = choose_alike(logits.clone(), SamplingParams(**params))
    logits[1, 7], logits[2, 3] = torch.nan, torch.inf
    choice = choose_alike(logits, SamplingParams(**params))
    assert choice.is_finite == [True, False, False, True]
    assert (choice.tokens[0], choice.tokens[3]) == (clean.tokens[0], clean.tokens[3])
    assert choice.logprobs[::3] == clean.logprobs[::3]
    assert (choice.logprobs[0] is not None) == bool(params.get("logprobs"))


def test_a_logit_of_minus_infinity_is_not_an_overflow() -> None:
    """Models mask tokens of their vocabulary so."""
    logits = random_logits(2)
    logits[:, 5:] = -torch.inf
    for params in (SamplingParams(), SamplingParams(temperature=1.0), SamplingParams(logprobs=True)):
        choice = choose_alike(logits, params)
        assert choice.is_finite == [True, True] and max(choice.tokens) < 5


def test_log_probabilities_are_the_models_own() -> None:
    """Before temperature and penalty."""
    logits = random_logits(3).bfloat16()
    choice = choose_alike(logits, SamplingParams(temperature=0.5, repetition_penalty=2.0, logprobs=True, seed=3))
    assert choice.logprobs == token_logprobs(logits, torch.tensor(choice.tokens)).tolist()


def test_draws_go_by_row_and_position() -> None:
    params, logits = SamplingParams(temperature=1.0), random_logits(2)
    batch = SamplingBatch([params, params], [(3, 0), (9, 0)], [0, 2])
    alone = [SamplingBatch([params], [(3, 0)], [0]), SamplingBatch([params], [(9, 0)], [2])]
    expected = [int(draw(logits[[idx]], one)) for idx, one in enumerate(alone)]
    assert draw(logits, batch).tolist() == expected


MIXED = (
    {},
    {"temperature": 0.7, "seed": 2},
    {"temperature": 1.3, "seed": 5, "min_p": 0.05},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "seed": 2**63 - 1},
    {"temperature": 2.0, "top_k": 40, "min_p": 0.1},
    {"temperature": 1.0, "top_p": 0.5, "seed": 3},
    {"temperature": 3.0, "top_p": 0.95, "min_p": 0.02},
    {"repetition_penalty": 1.9},
    {"repetition_penalty": 0.6, "temperature": 1.0, "logprobs": True},
    {"logprobs": True},
    {"presence_penalty": 1.5},
    {"biases": ((5, 3.0), (600, -3.0)), "bad_token_ids": ((9,), (11,)), "top_p": 0.9, "temperature": 1.0},
    {"biases": ((20, 1.0),), "logprobs": True, "min_new_tokens": 3, "stop_token_ids": (4, 5)},
    {"frequency_penalty": -2.0, "repetition_penalty": 1.2, "temperature": 1.0, "logprobs": True},
)
"""Parameters of rows that meet in one batch: every algorithm, with and without its neighbors' options."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_masks", [False, True])
def test_each_row_of_a_mixed_batch_gets_the_token_that_it_gets_alone(with_masks: bool, dtype: torch.dtype) -> None:
    """Law 5, whatever the parameters, masks and log probabilities of the rows beside it. In bfloat16 many logits are
    equal: which of them a filter keeps must not depend on the batch either.
    """
    num_rows, vocab_size = 10 * len(MIXED), 700
    generator = torch.Generator().manual_seed(4)
    scale = torch.tensor([0.05, 1.0, 4.0]).repeat(num_rows)[:num_rows, None]
    logits = (torch.randn(num_rows, vocab_size, generator=generator) * scale).to(dtype)
    logits[7, 3] = torch.nan
    seen = torch.rand(num_rows, vocab_size, generator=generator) < 0.3
    order = torch.randperm(num_rows, generator=generator).tolist()
    params = [SamplingParams(**MIXED[idx % len(MIXED)]) for idx in order]
    keys, positions = [(1000 + idx, idx % 3) for idx in range(num_rows)], [idx % 5 for idx in range(num_rows)]
    words = empty_words(num_rows, vocab_size)
    words[:] = np.random.default_rng(1).integers(0, 2**32, words.shape, np.uint32)
    rows = np.arange(0, num_rows, 3)
    masks = Masks(words[rows], rows) if with_masks else None

    def alone(row: int) -> TokenChoice:
        own = Masks(words[[row]], np.arange(1)) if with_masks and row in rows else None
        batch = SamplingBatch([params[row]], [keys[row]], [positions[row]])
        return choose(logits[[row]], batch, occurred(seen[[row]]), own)

    together = choose(logits, SamplingBatch(params, keys, positions), occurred(seen), masks)
    singles = [alone(row) for row in range(num_rows)]
    assert together.is_finite == [row != 7 for row in range(num_rows)] == [single.is_finite[0] for single in singles]
    finite = [row for row in range(num_rows) if row != 7]
    assert [together.tokens[row] for row in finite] == [singles[row].tokens[0] for row in finite]
    for row in finite:
        assert together.logprobs[row] == pytest.approx(singles[row].logprobs[0], abs=1e-5)
        assert (together.logprobs[row] is not None) == params[row].logprobs
        if masks is not None and row in rows:
            token = together.tokens[row]
            assert words[row, token // 32] >> token % 32 & 1


@pytest.mark.parametrize("num_candidates", [8, 100])
@pytest.mark.parametrize("with_masks", [False, True])
def test_a_host_that_may_not_look_chooses_the_same_tokens(
    num_candidates: int, with_masks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, looking means waiting: nuclei that are too wide are found out later, and masks are always applied."""
    num_rows, vocab_size = 8 * len(MIXED), 700
    generator = torch.Generator().manual_seed(5)
    scale = torch.tensor([0.05, 1.0, 4.0]).repeat(num_rows)[:num_rows, None]
    logits = (torch.randn(num_rows, vocab_size, generator=generator) * scale).bfloat16()
    logits[7, 3] = logits[6, 9] = torch.nan
    seen = torch.rand(num_rows, vocab_size, generator=generator) < 0.3
    params = [SamplingParams(**MIXED[idx % len(MIXED)]) for idx in range(num_rows)]
    words = np.random.default_rng(1).integers(0, 2**32, (num_rows, 22), np.uint32)
    rows = np.arange(0, num_rows, 3)
    masks = Masks(words[rows], rows) if with_masks else None
    monkeypatch.setattr(sampling, "NUM_CANDIDATES", num_candidates)
    for batch in (batch_of(params, num_rows), batch_of(params[0], num_rows), batch_of(params[6], num_rows)):
        with monkeypatch.context() as patch:
            expected = choose(logits, batch, occurred(seen), masks)
            patch.setattr(sampling, "may_read", lambda device: False)
            patch.setattr(masks_module, "may_read", lambda device: False)
            started = start_choice(logits, batch, occurred(seen), masks)
            choice = started.result()
            again = choose(logits, batch, occurred(seen), masks)
        assert started.tokens.tolist() == choice.tokens and choice.is_finite == again.is_finite == expected.is_finite
        assert all(choice.is_exact[row] for row in range(num_rows) if not has_nucleus(batch, row) or row in (6, 7))
        for row, is_finite in enumerate(expected.is_finite):
            for found in [again] + [choice] * choice.is_exact[row] if is_finite else []:
                assert (found.tokens[row], found.logprobs[row]) == (expected.tokens[row], expected.logprobs[row])
        if batch.params[0].top_p < 1:
            assert not all(choice.is_exact) and any(choice.is_exact), "nuclei of both kinds"


def has_nucleus(batch: SamplingBatch, row: int) -> bool:
    """Return whether a row's token comes from a nucleus of the whole vocabulary."""
    params = batch.params[row]
    return params.temperature > 0 and params.top_p < 1 and not params.top_k


def test_a_mixed_batch_is_chosen_in_a_handful_of_groups() -> None:
    params = [SamplingParams(**MIXED[idx % len(MIXED)], max_new_tokens=idx + 1) for idx in range(200)]
    groups = batch_of(params, 200).groups()
    assert len(groups) == 5, "greedy, the whole vocabulary, top-p, and two K"
    assert sorted(row for rows in groups for row in rows) == list(range(200))


class Penalized:
    """Chooses greedily with a penalty, from the same logits again and again, and compares with the plainest way."""

    def __init__(self, num_slots: int) -> None:
        """Begin with empty slots."""
        self.params, self.history = SamplingParams(repetition_penalty=1.7), TokenHistory(num_slots)

    def step(self, *rows: Sequence) -> None:
        """Choose a token for rows and append it."""
        logits = torch.cat([random_logits(1, row.request.row_idx) for row in rows]) + 3.0
        seen = torch.zeros(len(rows), VOCAB, dtype=torch.bool)
        for idx, row in enumerate(rows):
            seen[idx, row.token_ids] = True
        batch = batch_of(self.params, len(rows))
        tokens = choose(logits, batch, self.history.of(rows)).tokens
        assert tokens == penalize_repetition(logits, seen, torch.tensor(1.7)).argmax(dim=-1).tolist()
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
    for _ in range(4):
        bench.step(*rows)


def test_tokens_that_came_without_being_chosen_are_seen() -> None:
    """Those that a grammar forces are appended several at once."""
    bench = Penalized(2)
    row = running(0, [1, 2, 3], 1)
    for forced in ([], [7, 8], [12], []):
        bench.step(row)
        row.token_ids += forced


@pytest.mark.parametrize("failing", ["index_fill_", "index_select"])
def test_a_slot_whose_update_failed_is_collected_again(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may run out while the tokens of its new row are entered; the former row may even come back to it."""
    for comes_next in (0, 1):
        bench = Penalized(1)
        rows = [running(0, list(range(10)), 0), running(1, [17, 18], 0)]
        bench.step(rows[0])
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, failing, lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                bench.history.all.of([rows[1]], VOCAB, Parcel(torch.device("cpu")))()
        for _ in range(3):
            bench.step(rows[comes_next])


def test_a_choice_that_is_thrown_away_leaves_no_trace() -> None:
    """The row's token is chosen again, from other logits: the first one has not occurred."""
    bench, row = Penalized(1), running(0, [1, 2, 3], 0)
    bench.step(row)
    for token in (4, 11):
        logits = torch.full((1, VOCAB), -1.0)
        logits[0, token] = 9.0
        assert choose(logits, batch_of(bench.params, 1), bench.history.of([row])).tokens == [token]
    seen = bench.history.all.of([row], VOCAB, Parcel(torch.device("cpu")))()
    assert seen.nonzero()[:, 1].tolist() == sorted(row.token_ids)


def test_nothing_is_kept_of_rows_without_a_penalty() -> None:
    history, row = TokenHistory(1), running(0, [1, 2], 0)
    choose(random_logits(1), batch_of(SamplingParams(temperature=1.0), 1), history.of([row]))
    assert history.all._memory is None and history.generated._memory is None
