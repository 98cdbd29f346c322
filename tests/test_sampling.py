"""Sampling: the generator's known answers, the exact distribution, and draws that depend on the row alone."""

from collections.abc import Sequence
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

from job.draws import philox4x32, row_bits
from job.engine.logits import noise, sampling
from job.engine.logits.history import TokenHistory
from job.engine.logits.noise import gumbel_noise
from job.engine.logits.penalties import penalize_repetition
from job.engine.logits.pipeline import choose
from job.engine.logits.reductions import largest, token_logprobs
from job.engine.logits.sampling import Sampler, SamplingBatch
from job.engine.static.token_choice import Row
from job.engine.transfers import Parcel
from job.records import SampleKey
from job.tasks import SamplingParams

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
ONES = 0xFFFFFFFF
ROWS = [(row_idx, 0) for row_idx in range(20_000)]

FILTERS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top_k": {"temperature": 1.3, "top_k": 5},
    "top_p": {"temperature": 1.0, "top_p": 0.8},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
    "all": {"temperature": 1.5, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    "top_k_above_vocabulary": {"temperature": 1.0, "top_k": 1000},
    "narrow": {"temperature": 1.0, "top_p": 1e-6},
}


def choose_tokens(
    logits: torch.Tensor, params: SamplingParams, keys: Sequence[SampleKey], positions: Sequence[int]
) -> torch.Tensor:
    """Choose for rows with the same parameters."""
    parcel = Parcel(logits.device)
    return Sampler(SamplingBatch([params] * len(keys), keys, positions), parcel)(logits).tokens


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
    assert row_bits(seed, [(row_idx, 4)], [9]).view(np.uint64).tolist() == [expected]


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_every_seed_and_row_that_is_allowed_can_be_drawn_for(seed: int) -> None:
    assert row_bits(seed, [(2**40, 2**31 - 1)], [2**31]).shape == (1,)


def test_draws_differ_between_rows_samples_positions_and_seeds() -> None:
    draws = [
        int(row_bits(seed, [(row_idx, sample_idx)], [position])[0])
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


def bits_that_give(number: int, token_id: int) -> int:
    """Return a row's bits with which a token gets a number of 64 bits: SplitMix64 backwards."""

    def unmix(value: int, num_bits: int, factor: int) -> int:
        result = value
        for _ in range(64 // num_bits):
            result = value ^ (result >> num_bits)
        return result * pow(factor % 2**64, -1, 2**64) % 2**64

    value = unmix(unmix(number, 31, noise._MIX_2), 27, noise._MIX_1)
    value = (unmix(value, 30, 1) - token_id * noise._GOLDEN) % 2**64
    return value - (value >> 63 << 64)


def test_the_worst_noise_still_lets_the_only_token_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """A regression: float32 rounded the largest numbers to 1, whose noise is minus infinity. A token that alone is left
    then tied with those that are ruled out, and the first of these was drawn: once in 30 million draws.
    """
    logits = torch.zeros(1, 300)
    logits[0, 200] = 1.0
    for token_id in (200, -1 - 200 // 64):
        bits = bits_that_give(2**64 - 1, token_id)
        assert float(gumbel_noise(torch.tensor([bits]), torch.tensor([token_id]))) == pytest.approx(-2.81, abs=0.01)
        monkeypatch.setattr(sampling, "row_bits", lambda *_, bits=bits: np.array([bits]))
        assert choose_tokens(logits, SamplingParams(temperature=1.0, min_p=1.0), [(0, 0)], [0]).tolist() == [200]


def test_noise_is_gumbel_and_independent_between_tokens_and_rows() -> None:
    """Mean 0.5772 and variance pi squared over 6; no correlation between neighbors (4 standard errors)."""
    bits = torch.from_numpy(row_bits(1, [(row_idx, 0) for row_idx in range(500)], [0] * 500))
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
        positions = [position] * 64
        tokens = choose_tokens(logits, params, keys, positions)
        assert torch.equal(tokens, choose_tokens(disturbed, params, keys, positions))


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
    tokens = choose_tokens(logits.expand(20_000, -1), params, ROWS, [0] * 20_000)
    observed = np.bincount(tokens.numpy(), minlength=24)
    assert chi_squared(observed, expected) < 60  # 23 degrees of freedom at most: beyond 1e-4


@pytest.mark.parametrize("name", FILTERS)
def test_only_tokens_that_transformers_would_keep_are_drawn(name: str) -> None:
    """All of them and no other, for many rows of logits at once."""
    params = SamplingParams(seed=5, **FILTERS[name])
    logits = torch.randn(20, 16, generator=torch.Generator().manual_seed(4)) * 1.5
    expected = oracle(logits, params)
    tokens = choose_tokens(logits.repeat_interleave(1000, 0), params, ROWS, [3] * 20_000)
    drawn = torch.zeros(20, 16, dtype=torch.bool).scatter_(1, tokens.reshape(20, 1000), True)
    assert not drawn[expected == 0].any()
    assert drawn[expected > 0.02].all()  # 1000 draws miss such a token once in 6e8


WIDE: dict[str, dict[str, Any]] = {
    "whole": {"temperature": 1.0},
    "hot": {"temperature": 1.7},
    "min_p": {"temperature": 0.9, "min_p": 0.05},
    "top_p": {"temperature": 1.0, "top_p": 0.9},
}
"""Ways to choose from a vocabulary of 300: four blocks of 64 and a shorter one."""


def merge_rare(counts: Any, expected: Any) -> Any:
    """Count tokens together that are expected fewer than 5 times: Pearson's test does not hold for them."""
    is_rare = expected < 5
    return np.append(counts[~is_rare], counts[is_rare].sum())


@pytest.mark.parametrize("name", WIDE)
def test_draws_from_a_vocabulary_of_several_blocks_are_exact(name: str) -> None:
    """Pearson's test on 20,000 draws, half of them of other rows, half of them at other positions."""
    params = SamplingParams(seed=7, **WIDE[name])
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(8)) * 2
    expected = oracle(logits, params)[0].numpy() * 20_000
    keys, positions = [*ROWS[:10_000], *[(1, 1)] * 10_000], [*[0] * 10_000, *range(10_000)]
    tokens = choose_tokens(logits.expand(20_000, -1), params, keys, positions)
    observed = np.bincount(tokens.numpy(), minlength=300)
    assert not observed[expected == 0].any()
    freedom = len(merge_rare(observed, expected)) - 1
    assert freedom > 15
    assert (
        chi_squared(merge_rare(observed, expected), merge_rare(expected, expected)) < freedom + 4 * (2 * freedom) ** 0.5
    )


def test_every_block_can_win() -> None:
    """The last token of the vocabulary is as likely as the first one, and none behind it is."""
    tokens = choose_tokens(torch.zeros(20_000, 130), SamplingParams(temperature=1.0), ROWS, [0] * 20_000)
    counts = np.bincount(tokens.numpy(), minlength=130)
    assert len(counts) == 130 and counts.min() > 90 and counts.max() < 220  # 154 expected, 12 is one deviation


@pytest.mark.parametrize("name", ["whole", "min_p"])
def test_a_race_in_blocks_depends_on_neither_batch_nor_rounding(name: str) -> None:
    params = SamplingParams(seed=3, **WIDE[name])
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(40, 300, generator=generator) * 2
    disturbed = logits + torch.randn(logits.shape, generator=generator) * 1e-6
    positions = list(range(40))
    together = choose_tokens(logits, params, ROWS[:40], positions)
    assert torch.equal(together, choose_tokens(disturbed, params, ROWS[:40], positions))
    alone = [
        choose_tokens(logits[idx : idx + 1], params, ROWS[idx : idx + 1], positions[idx : idx + 1]) for idx in range(40)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert len(set(together.tolist())) > 15


def test_rows_of_a_batch_may_stand_at_different_positions() -> None:
    """The paged engine refills slots, so each row has a position of its own."""
    params = SamplingParams(temperature=1.0)
    logits = torch.zeros(1, 300)
    together = choose_tokens(logits.expand(3, -1), params, [(5, 1)] * 3, [0, 7, 2])
    alone = [int(choose_tokens(logits, params, [(5, 1)], [position])) for position in (0, 7, 2)]
    assert together.tolist() == alone and len(set(alone)) == 3


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_a_nucleus_wider_than_the_candidates_is_searched_in_the_whole_vocabulary(
    top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of both kinds in one batch: a nucleus of one token, and of nearly all."""
    params = SamplingParams(temperature=1.0, top_p=top_p)
    scale = torch.tensor([0.01, 1.0, 3.0, 20.0]).repeat(50)[:, None]
    logits = torch.randn(200, 300, generator=torch.Generator().manual_seed(6)) * scale
    draw = (logits, params, ROWS[:200], [1] * 200)
    monkeypatch.setattr(sampling, "NUM_CANDIDATES", 300)
    expected = choose_tokens(*draw)
    for num_candidates in (4, 64):
        monkeypatch.setattr(sampling, "NUM_CANDIDATES", num_candidates)
        assert torch.equal(choose_tokens(*draw), expected)
    allowed = oracle(logits, params) > 0
    assert allowed.gather(1, expected[:, None]).all()
    assert allowed.sum(dim=1).max() > 64 and allowed.sum(dim=1).min() < 4


def test_a_nucleus_does_not_depend_on_how_wide_that_of_its_neighbor_is() -> None:
    """A regression: one wide nucleus had the logits of all rows sorted, which orders equal ones, of which bfloat16 has
    many, in another way than ``topk`` does; so other tokens were at the borders of the other rows' nuclei.
    """
    params = SamplingParams(temperature=1.0, top_p=0.5, seed=243)
    scale = torch.tensor([0.05, 1.0, 4.0]).repeat(100)[:, None]
    logits = (torch.randn(300, 5000, generator=torch.Generator().manual_seed(5)) * scale).bfloat16()
    keys, positions = [(row_idx * 7, row_idx % 3) for row_idx in range(300)], [row_idx % 50 for row_idx in range(300)]
    together = choose_tokens(logits, params, keys, positions)
    alone = [choose_tokens(logits[[row]], params, [keys[row]], [positions[row]]) for row in range(300)]
    assert together.tolist() == torch.cat(alone).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [1, 3, 64, 100, 128, 300, 768, 1000])
def test_the_largest_logit_is_found_whatever_the_width(vocab_size: int, dtype: torch.dtype) -> None:
    """In bfloat16 most rows have several largest ones: the first of them counts, as with ``argmax``."""
    logits = torch.randn(50, vocab_size, generator=torch.Generator().manual_seed(vocab_size)).to(dtype)
    logits[::5] = 2.0
    logits[1::5] = logits[1::5].round()
    value, index = largest(logits)
    assert torch.equal(value, logits.float().amax(dim=-1))
    assert torch.equal(index, logits.float().argmax(dim=-1))
    assert index[::5].tolist() == [0] * 10


def test_the_first_of_equal_logits_is_taken_across_blocks() -> None:
    logits = torch.zeros(3, 512)
    for row, tokens in enumerate([(300, 301, 511), (255, 256), (256, 255)]):
        logits[row, list(tokens)] = 1.0
    assert largest(logits)[1].tolist() == [300, 255, 255]
    assert choose_tokens(logits, SamplingParams(), ROWS[:3], [0, 1, 2]).tolist() == [300, 255, 255]


@pytest.mark.parametrize("vocab_size", [256, 300])
@pytest.mark.parametrize("place", [0, 100, 255])
def test_a_nan_anywhere_is_the_largest(vocab_size: int, place: int) -> None:
    """So that one look at the maximum finds rows that overflowed; and an infinity is seen, too."""
    logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(0))
    logits[0, place] = torch.nan
    logits[1, place] = torch.inf
    logits[2] = -torch.inf
    value, _ = largest(logits)
    assert value.isnan().tolist() == [True, False, False]
    assert value[1:].tolist() == [torch.inf, -torch.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_those_of_log_softmax(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(20, 300, generator=generator) * 5).to(dtype)
    tokens = torch.randint(0, 300, (20,), generator=generator)
    expected = logits.double().log_softmax(dim=-1).gather(-1, tokens[:, None]).squeeze(-1)
    found = token_logprobs(logits, tokens)
    assert found.dtype == torch.float32 and found.shape == (20,)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def test_a_draw_depends_on_neither_batch_nor_order() -> None:
    params = SamplingParams(temperature=1.0, top_p=0.95, top_k=40, seed=1)
    logits = torch.randn(33, 300, generator=torch.Generator().manual_seed(0))
    keys = [(1000 + idx, idx % 3) for idx in range(33)]
    positions = [4] * 33
    together = choose_tokens(logits, params, keys, positions).tolist()
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = choose_tokens(logits[order], params, [keys[idx] for idx in order], positions).tolist()
    assert [together[idx] for idx in order] == shuffled
    alone = [int(choose_tokens(logits[idx : idx + 1], params, keys[idx : idx + 1], [4])) for idx in range(33)]
    assert alone == together
    assert len(set(together)) > 5


def test_temperature_zero_takes_the_most_likely_token() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [9.0, -1.0, 2.0]])
    assert choose_tokens(logits, SamplingParams(), [(0, 0), (1, 0)], [0, 0]).tolist() == [1, 0]


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.3])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 30, generator=generator)
    ids = torch.randint(0, 30, (4, 12), generator=generator)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, ids, True)
    torch.testing.assert_close(penalize_repetition(logits, seen, torch.tensor([[penalty]])), expected, rtol=0, atol=0)


def test_the_repetition_penalty_leaves_unseen_tokens_alone() -> None:
    logits = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalize_repetition(logits, seen, torch.tensor([[2.0]])).tolist() == [[0.5, -2.0, 1.0, -1.0]]


EXTREMES: dict[str, dict[str, Any]] = {
    "denormal temperature": {"temperature": 1e-45},
    "temperature below float32": {"temperature": 1e-320},
    "temperature above float32": {"temperature": 1e300},
    "top-p below float32": {"temperature": 1.0, "top_p": 1e-320},
    "min-p 1": {"temperature": 1.0, "min_p": 1.0},
    "min-p below float32": {"temperature": 1.0, "min_p": 1e-320},
    "penalty below float32": {"repetition_penalty": 1e-320},
    "penalty above float32": {"repetition_penalty": 1e300},
    "both small": {"temperature": 1e-320, "repetition_penalty": 1e-320},
    "both large": {"temperature": 1e300, "repetition_penalty": 1e300, "top_p": 0.9, "min_p": 1e-9},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_parameters_choose_tokens_that_are_allowed(name: str, dtype: torch.dtype) -> None:
    """Logits divided by 1e-45 were infinite, and every completion empty: token 0 ended it."""
    params = SamplingParams(**EXTREMES[name])
    logits = (torch.randn(40, 130, generator=torch.Generator().manual_seed(1)) * 20).to(dtype)
    logits[:, :3] = -torch.inf  # as models rule out tokens
    rows = [Row(slot, [5, 6, 7], 2) for slot in range(40)]
    batch = SamplingBatch([params] * 40, [(slot, 0) for slot in range(40)], [1] * 40)
    choice = choose(logits, batch, TokenHistory(40).of(rows))
    assert all(choice.is_finite) and min(choice.tokens) >= 3
    if name in ("denormal temperature", "temperature below float32", "top-p below float32"):
        assert logits[range(40), choice.tokens].equal(logits.amax(dim=-1)), "the most likely token, or one equal to it"
    if name == "temperature above float32":
        assert len(set(choice.tokens)) > 20, "all tokens are about equally likely"
