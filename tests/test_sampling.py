"""Sampling: the generator's known answers, the exact distribution, and draws that depend on the row alone."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from job.config import SamplingParams
from job.engine.sampling import choose_tokens, gumbel_noise, penalize_repetition, philox4x32, row_bits

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
ONES = 0xFFFFFFFF

FILTERS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top_k": {"temperature": 1.3, "top_k": 5},
    "top_p": {"temperature": 1.0, "top_p": 0.8},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
    "all": {"temperature": 1.5, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    "top_k_above_vocabulary": {"temperature": 1.0, "top_k": 1000},
    "narrow": {"temperature": 1.0, "top_p": 1e-6},
}


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (*PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    counters = np.array([[word, 1] for word in counter], np.uint64)
    assert tuple(int(word) for word in philox4x32(counters, key)[:, 0]) == words


def test_row_bits_take_the_seed_as_key_and_the_row_as_counter() -> None:
    row_idx, seed = (7 << 32) + 5, (3 << 32) + 2
    words = philox4x32(np.array([[5], [7], [4], [9]], np.uint64), (2, 3))[:, 0]
    expected = (int(words[0]) << 32) | int(words[1])
    assert row_bits(seed, [(row_idx, 4)], 9).view(np.uint64).tolist() == [expected]


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_every_seed_and_row_that_is_allowed_can_be_drawn_for(seed: int) -> None:
    assert row_bits(seed, [(2**40, 2**31 - 1)], 2**31).shape == (1,)


def test_draws_differ_between_rows_samples_positions_and_seeds() -> None:
    draws = [
        int(row_bits(seed, [(row_idx, sample_idx)], position)[0])
        for seed in (0, 1, 2**32)
        for row_idx in (0, 1, 2**32)
        for sample_idx in (0, 1)
        for position in (0, 1)
    ]
    assert len(set(draws)) == len(draws) == 36


def test_noise_comes_from_splitmix64() -> None:
    """Token i gets the i-th number of the generator whose seed is the row's bits (known answers, Rosetta Code)."""
    numbers = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    expected = [-np.log(-np.log1p(-((number >> 11) + 0.5) * 2.0**-53)) for number in numbers]
    noise = gumbel_noise(torch.tensor([1234567]), torch.tensor([1, 2, 3, 4]))
    assert noise[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_noise_is_gumbel_and_independent_between_tokens_and_rows() -> None:
    """Mean 0.5772 and variance pi squared over 6; no correlation between neighbours (4 standard errors)."""
    bits = torch.from_numpy(row_bits(1, [(row_idx, 0) for row_idx in range(500)], 0))
    noise = gumbel_noise(bits, torch.arange(1000)).double()
    assert noise.isfinite().all()
    assert abs(noise.mean() - 0.57722) < 4 * 1.2825 / 500_000**0.5
    assert noise.var() == pytest.approx(np.pi**2 / 6, rel=0.01)
    centred = noise - noise.mean()
    for one, other in ((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1])):
        assert abs((one * other).mean() / noise.var()) < 4 / 500_000**0.5


def test_rounding_of_the_logits_does_not_change_draws() -> None:
    """A regression: with one uniform number and the cumulative distribution, errors of 1e-7 moved all its borders, and
    in float32 1 row of 6 changed with the size of its batch.
    """
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(64, 50_000, generator=generator) * 3
    disturbed = logits + torch.randn(logits.shape, generator=generator) * 1e-6
    keys = [(row_idx, 0) for row_idx in range(64)]
    params = SamplingParams(temperature=1.0)
    for position in range(4):
        assert torch.equal(
            choose_tokens(logits, params, keys, position), choose_tokens(disturbed, params, keys, position)
        )


def chi_squared(observed: Any, expected: Any) -> float:
    used = expected > 0
    assert not observed[~used].any(), "a token of probability 0 was drawn"
    return float((((observed - expected) ** 2)[used] / expected[used]).sum())


def oracle(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Return the probabilities that transformers would sample from."""
    logits = TemperatureLogitsWarper(params.temperature)(None, logits)
    if params.top_k:
        logits = TopKLogitsWarper(params.top_k)(None, logits)
    if params.top_p < 1:
        logits = TopPLogitsWarper(params.top_p)(None, logits)
    if params.min_p:
        logits = MinPLogitsWarper(params.min_p)(None, logits)
    return logits.double().softmax(dim=-1)


@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_the_distribution_of_transformers_warpers(name: str) -> None:
    """Pearson's test on 20,000 draws. The seed is fixed, so it always passes or always fails."""
    params = SamplingParams(seed=11, **FILTERS[name])
    logits = torch.randn(1, 24, generator=torch.Generator().manual_seed(3)) * 2
    expected = oracle(logits, params)[0].numpy() * 20_000
    tokens = choose_tokens(logits.expand(20_000, -1), params, [(row_idx, 0) for row_idx in range(20_000)], 0)
    observed = np.bincount(tokens.numpy(), minlength=24)
    assert chi_squared(observed, expected) < 60  # 23 degrees of freedom at most: beyond 1e-4


@pytest.mark.parametrize("name", FILTERS)
def test_only_tokens_that_transformers_would_keep_are_drawn(name: str) -> None:
    """All of them and no other, for many rows of logits at once."""
    params = SamplingParams(seed=5, **FILTERS[name])
    logits = torch.randn(20, 16, generator=torch.Generator().manual_seed(4)) * 1.5
    expected = oracle(logits, params)
    tokens = choose_tokens(logits.repeat_interleave(1000, 0), params, [(row_idx, 0) for row_idx in range(20_000)], 3)
    drawn = torch.zeros(20, 16, dtype=torch.bool).scatter_(1, tokens.reshape(20, 1000), True)
    assert not drawn[expected == 0].any()
    assert drawn[expected > 0.02].all()  # 1000 draws miss such a token once in 6e8


def test_a_draw_depends_on_neither_batch_nor_order() -> None:
    params = SamplingParams(temperature=1.0, top_p=0.95, top_k=40, seed=1)
    logits = torch.randn(33, 300, generator=torch.Generator().manual_seed(0))
    keys = [(1000 + idx, idx % 3) for idx in range(33)]
    together = choose_tokens(logits, params, keys, 4).tolist()
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = choose_tokens(logits[order], params, [keys[idx] for idx in order], 4).tolist()
    assert [together[idx] for idx in order] == shuffled
    alone = [int(choose_tokens(logits[idx : idx + 1], params, keys[idx : idx + 1], 4)) for idx in range(33)]
    assert alone == together
    assert len(set(together)) > 5


def test_temperature_zero_takes_the_most_likely_token() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [9.0, -1.0, 2.0]])
    assert choose_tokens(logits, SamplingParams(), [(0, 0), (1, 0)], 0).tolist() == [1, 0]


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.3])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 30, generator=generator)
    ids = torch.randint(0, 30, (4, 12), generator=generator)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    penalized = penalize_repetition(logits, ids, torch.ones_like(ids, dtype=torch.bool), penalty)
    torch.testing.assert_close(penalized, expected, rtol=0, atol=0)


def test_the_repetition_penalty_leaves_padding_alone() -> None:
    """Transformers' processor penalizes the padding id of every shorter row of a batch."""
    logits = torch.ones(2, 4)
    ids = torch.tensor([[0, 0, 2], [1, 2, 3]])
    mask = torch.tensor([[False, False, True], [True, True, True]])
    assert penalize_repetition(logits, ids, mask, 2.0).tolist() == [[1, 1, 0.5, 1], [1, 0.5, 0.5, 0.5]]
