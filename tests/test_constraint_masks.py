"""Masks of bits against plain booleans, for vocabularies of all relations to the tokenizer's."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from job.engine.logits.masks import Masks, allow_alike, allow_only, empty_words
from job.engine.logits.pipeline import TokenChoice, choose
from job.engine.logits.reductions import largest
from job.engine.logits.sampling import SamplingBatch
from job.engine.transfers import Parcel
from job.tasks import SamplingParams
from tests.test_token_choice import occurred

NUM_ROWS = 5
SIZES = [(49152, 49152), (260, 258), (100, 64), (70, 200), (1000, 999)]
"""Tokens that the model knows, and the tokenizer."""


def random_masks(vocab_size: int, num_tokens: int, share: float = 0.3) -> tuple[Masks, npt.NDArray[np.bool_]]:
    """Return masks, and as booleans [B, V] what they allow."""
    bits = np.random.default_rng(num_tokens).random((NUM_ROWS, num_tokens)) < share
    bits[:, 3] = True
    words = empty_words(NUM_ROWS, num_tokens)
    for row, token in zip(*np.nonzero(bits), strict=True):
        words[row, token // 32] |= np.uint32(1 << int(token % 32))
    allowed = np.zeros((NUM_ROWS, vocab_size), bool)
    common = min(vocab_size, num_tokens)
    allowed[:, :common] = bits[:, :common]
    return Masks(words, np.arange(NUM_ROWS)), allowed


def choose_with(params: SamplingParams, logits: torch.Tensor, masks: Masks) -> TokenChoice:
    """Choose for rows with the same parameters, which have seen token 1."""
    keys = [(row_idx, 0) for row_idx in range(NUM_ROWS)]
    seen = torch.arange(logits.shape[1]).expand(NUM_ROWS, -1) == 1
    return choose(logits, SamplingBatch([params] * NUM_ROWS, keys, [0] * NUM_ROWS), occurred(seen), masks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("vocab_size", "num_tokens"), SIZES)
def test_logits_of_tokens_that_are_not_allowed_become_minus_infinity(
    vocab_size: int, num_tokens: int, dtype: torch.dtype
) -> None:
    masks, allowed = random_masks(vocab_size, num_tokens)
    logits = torch.randn(NUM_ROWS, vocab_size).to(dtype)
    applied = masks.send(Parcel(logits.device)).apply(logits)
    assert torch.equal(applied, torch.where(torch.from_numpy(allowed), logits, -torch.inf))


@pytest.mark.parametrize(("vocab_size", "num_tokens"), SIZES)
def test_a_token_is_looked_up(vocab_size: int, num_tokens: int) -> None:
    masks, allowed = random_masks(vocab_size, num_tokens)
    for token in range(0, vocab_size, 1 + vocab_size // 300):
        assert masks.allow(np.full(NUM_ROWS, token)).tolist() == allowed[:, token].tolist()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_best_allowed_token_is_found_whether_or_not_it_is_the_best_of_all(share: float) -> None:
    masks, allowed = random_masks(260, 258, share)
    logits = torch.randn(NUM_ROWS, 260, generator=torch.Generator().manual_seed(0))
    expected = torch.where(torch.from_numpy(allowed), logits, -torch.inf).argmax(dim=-1)
    best = largest(logits)[1]
    assert masks.best(logits, best).tolist() == expected.tolist()
    assert best.tolist() == logits.argmax(dim=-1).tolist(), "the argument stays"


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 5.0, "top_k": 20},
        {"temperature": 2.0, "top_p": 0.9},
        {"temperature": 2.0, "min_p": 0.01},
        {"repetition_penalty": 1.5},
        {"logprobs": True},
    ],
)
def test_no_way_of_choosing_takes_a_token_that_is_not_allowed(params: dict[str, float]) -> None:
    """Also where fewer are allowed than top-k would leave; log probabilities are those without the mask."""
    masks, allowed = random_masks(260, 258, share=0.02)
    logits = 3 * torch.randn(NUM_ROWS, 260, generator=torch.Generator().manual_seed(0)).bfloat16()
    choice = choose_with(SamplingParams(**params), logits, masks)
    assert all(allowed[row, token] for row, token in enumerate(choice.tokens)) and all(choice.is_finite)
    if "logprobs" in params:
        expected = logits.float().log_softmax(dim=-1)[range(NUM_ROWS), choice.tokens].tolist()
        assert choice.logprobs == pytest.approx(expected, abs=1e-5)


def test_a_row_that_is_not_finite_is_told_whatever_its_mask() -> None:
    masks, allowed = random_masks(260, 258)
    logits = torch.randn(NUM_ROWS, 260, generator=torch.Generator().manual_seed(0))
    logits[1, int(np.flatnonzero(~allowed[1])[0])] = torch.nan
    assert choose_with(SamplingParams(), logits, masks).is_finite == [True, False, True, True, True]


def test_all_ends_are_allowed_where_the_grammars_own_is_and_nowhere_else() -> None:
    """A model may have several; one of them may be a token that occurs in texts."""
    words = empty_words(3, 64)
    allow_only(words, 0, 31)
    allow_only(words, 1, 5)
    words[2] = 2**32 - 1
    allow_alike(words, [0, 1, 2], 31, [5, 63, 99])
    assert words.tolist() == [[1 << 31 | 1 << 5, 1 << 31], [0, 0], [2**32 - 1, 2**32 - 1]]
