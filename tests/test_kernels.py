"""The attention kernels against a plain loop in float64: interpreted on a CPU, compiled on a GPU.

JOB_TEST_CASES=300 tries that many random cases instead of a few.
"""

import os
import random
from typing import Any

import numpy as np
import pytest
import torch

from job.engine.paged import engine as paged_engine
from job.engine.paged.attention.backends import TRITON
from job.engine.paged.attention.cache import FP8, to_stored
from job.engine.paged.attention.interface import AttentionArgs
from job.engine.paged.cuda.launches import (
    Blocks,
    Pool,
    attend_launches,
    blocks_for,
    store_launch,
    tiles_of,
)
from tests.interpreting import DEVICE
from tests.plain_launches import attend_by_loop
from tests.serving import complete, expected_tokens, generate, make_engine, serve, tokens

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = [dtype for dtype in TOLERANCES if DEVICE == "cuda" or dtype != torch.bfloat16]
NUM_CASES = int(os.environ.get("JOB_TEST_CASES", "6"))


class Case:
    """Sequences with random keys and values on scattered pages; every place that nobody may read holds NaN."""

    def __init__(
        self,
        lengths: list[tuple[int, int]],
        *,
        heads: int = 1,
        group: int = 2,
        key_size: int = 64,
        value_size: int | None = None,
        page: int = 16,
        dtype: torch.dtype = torch.float32,
        stored: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        """Take (tokens before, tokens now) of each sequence, and the dtype of pages, if it is another."""
        self.generator = torch.Generator().manual_seed(seed)
        self.group, self.dtype = group, dtype
        value_size = value_size or key_size
        self.positions = np.array([before for before, _ in lengths])
        self.counts = np.array([now for _, now in lengths])
        self.offsets = np.cumsum(self.counts) - self.counts
        self.ends = self.positions + self.counts
        self.query = self.numbers(int(self.counts.sum()), heads * group, key_size)
        self.key = [self.numbers(int(end), heads, key_size) for end in self.ends]
        self.value = [self.numbers(int(end), heads, value_size) for end in self.ends]
        if stored is not None:  # the interpreter takes the smallest of its numbers for 0
            self.key, self.value = (
                [to_stored(x + x.sign() * 2**-6, stored).to(dtype) for x in side] for side in (self.key, self.value)
            )

        num_pages = [-(-int(end) // page) for end in self.ends]
        order = self.shuffled(sum(num_pages) + 1)
        self.slots = np.array(self.shuffled(len(lengths) + 1)[: len(lengths)])
        unused = order.pop()
        tables = torch.full((len(lengths) + 1, max(num_pages) + 1), unused, dtype=torch.int32)
        keys, values = (
            torch.full((sum(num_pages) + 1, heads, page, size), torch.nan, device=DEVICE).to(stored or dtype)
            for size in (key_size, value_size)
        )
        self.pool = Pool(keys, values)
        for slot, end, num, key, value in zip(self.slots, self.ends, num_pages, self.key, self.value, strict=True):
            pages = torch.tensor([order.pop() for _ in range(num)], dtype=torch.int32)
            tables[slot, :num] = pages
            at = torch.arange(int(end))
            places = pages[at // page] * page + at % page
            store_launch(self.pool, key.to(DEVICE), value.to(DEVICE), places.to(DEVICE, torch.int32)).run()
        self.tables = tables.to(DEVICE)

    def numbers(self, *shape: int) -> torch.Tensor:
        """Return random numbers of the case's dtype."""
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def shuffled(self, num: int) -> list[int]:
        """Return the numbers below ``num`` in random order."""
        order: list[int] = torch.randperm(num, generator=self.generator).tolist()
        return order

    def attend(
        self, blocks: Blocks, args: AttentionArgs, rows: list[int] | None = None, **options: Any
    ) -> torch.Tensor:
        """Return [T, H * G, V]; what no tile of these rows writes is NaN. One tile is padding."""
        chosen = list(range(len(self.counts))) if rows is None else rows
        numbers = (array[chosen] for array in (self.slots, self.positions, self.counts, self.offsets))
        tiles = tiles_of(*numbers, blocks.queries(self.group))
        padded = torch.from_numpy(np.concatenate([tiles, [[0, 0, 0, 0]]]).astype(np.int32)).to(DEVICE)
        shape = (*self.query.shape[:2], self.value[0].shape[-1])
        output = torch.full(shape, torch.nan, dtype=self.dtype, device=DEVICE)
        for launch in attend_launches(
            output, self.query.to(DEVICE), self.pool, padded, self.tables, args, blocks=blocks, **options
        ):
            launch.run()
        return output.cpu()

    def check(self, blocks: Blocks, args: AttentionArgs | None = None, **options: Any) -> float:
        """Compare the kernel with the loop; return the largest error."""
        args = args or AttentionArgs(self.query.shape[-1] ** -0.5)
        output = self.attend(blocks, args, **options)
        errors = []
        for idx, (begin, count) in enumerate(zip(self.offsets, self.counts, strict=True)):
            part = slice(int(begin), int(begin + count))
            expected = attend_by_loop(self.query[part], self.key[idx], self.value[idx], int(self.positions[idx]), args)
            if count:
                errors.append(float((output[part].double() - expected).abs().max()))
        assert max(errors) <= TOLERANCES[self.dtype], errors
        return max(errors)


RAGGED = [(0, 1), (64, 1), (0, 17), (30, 9)]
DECODE = [(15, 1), (64, 1), (150, 1)]
BLOCKS = Blocks(16, 32, 4, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 3, 8])
def test_ragged_steps(dtype: torch.dtype, group: int) -> None:
    Case(RAGGED, group=group, dtype=dtype).check(BLOCKS)


@pytest.mark.parametrize(("page", "keys"), [(16, 64), (48, 32), (64, 64), (256, 32)])
def test_pages_of_any_size(page: int, keys: int) -> None:
    """Those that hold the keys of an iteration, and those that do not."""
    Case(RAGGED, page=page).check(Blocks(16, keys, 4, 2))


@pytest.mark.parametrize("sizes", [(80, 80), (128, 128), (256, 256), (192, 128), (72, 40)])
def test_head_sizes(sizes: tuple[int, int]) -> None:
    Case(RAGGED[1:], key_size=sizes[0], value_size=sizes[1]).check(BLOCKS)


@pytest.mark.parametrize(("window", "rows"), [(1, 16), (5, 64), (33, 16), (1000, 16)])
def test_windows(window: int, rows: int) -> None:
    Case(RAGGED).check(Blocks(rows, 32, 4, 2), AttentionArgs(0.125, window))


@pytest.mark.parametrize(
    ("window", "softcap", "with_sinks", "max_splits"),
    [(None, 5.0, True, 1), (None, None, False, 3), (20, None, True, 3), (20, 5.0, True, 3), (None, 5.0, False, 3)],
)
def test_caps_and_sinks_and_splits(
    window: int | None, softcap: float | None, with_sinks: bool, max_splits: int
) -> None:
    case = Case(DECODE)
    sinks = torch.randn(2, generator=case.generator).to(DEVICE) if with_sinks else None
    args = AttentionArgs(0.125, window, softcap, sinks)
    case.check(BLOCKS, args, max_splits=max_splits, split_tokens=64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pages_of_8_bit_floats(dtype: torch.dtype) -> None:
    """They are read exactly; rounding is all that differs."""
    case = Case(RAGGED, dtype=dtype, stored=FP8)
    case.check(BLOCKS)
    case = Case(DECODE, dtype=dtype, stored=FP8)
    case.check(BLOCKS, max_splits=3, split_tokens=64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_8_bit_floats_are_stored_as_plain_operations_store_them(dtype: torch.dtype) -> None:
    """Large numbers become the largest, and infinity NaN: no overflow is hidden."""
    new = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0)).to(dtype) * 30
    if DEVICE == "cpu":  # the interpreter rounds some of them, and NaN, in other ways than any device
        new = to_stored(new, FP8).to(dtype)
    new[0, 0, :4] = torch.tensor([448.0, 464.0, 480.0, -6e4])
    if DEVICE == "cuda":
        new[0, 0, 4:8] = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e-3])
    pool = Pool(*(torch.zeros(1, 1, 16, 64, device=DEVICE).to(FP8) for _ in range(2)))
    places = torch.tensor([3], dtype=torch.int32, device=DEVICE)
    store_launch(pool, new.to(DEVICE), new.to(DEVICE), places).run()
    for stored in (pool.keys, pool.values):
        found, expected = stored[0, 0, 3].float().cpu(), to_stored(new, FP8)[0, 0].float()
        assert torch.equal(found.nan_to_num(-1.5), expected.nan_to_num(-1.5))
    assert expected[:4].tolist() == [448, 448, 448, -448]


def test_a_row_does_not_depend_on_its_batch() -> None:
    """Bit for bit: alone, in a batch, and with more splits than it needs."""
    case, args = Case(DECODE), AttentionArgs(0.125)
    at = int(case.offsets[2])
    outputs = [
        case.attend(BLOCKS, args, rows, max_splits=max_splits, split_tokens=64)[at]
        for rows, max_splits in ((None, 3), ([2], 3), ([2], 9))
    ]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(("heads", "group", "size"), [(2, 4, 128), (1, 3, 64)], ids=["llama 8B", "smollm2 135M"])
def test_the_blocks_that_are_meant_for_the_device(heads: int, group: int, size: int) -> None:
    case = Case([(70, 1)], heads=heads, group=group, key_size=size, dtype=torch.float16, page=64)
    case.check(blocks_for(group, size, size, 2, decode=True))
    case = Case([(40, 50)], heads=heads, group=group, key_size=size, dtype=torch.float16, page=64)
    case.check(blocks_for(group, size, size, 2, decode=False))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_the_engine_with_the_kernels_gives_the_tokens_of_transformers(
    name: str, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of two pages in chunks beside single tokens."""
    prompts = [[5 + at * 7 % 200 for at in range(length)] for length in (70, 3)]
    monkeypatch.setattr(
        paged_engine, "choose_backend", lambda shapes, replica, _: (TRITON, TRITON.problem(shapes, replica.device))
    )
    engine = make_engine(serve(tiny_model(name)), config={"max_batch_tokens": 48, "cuda_graphs": False})
    assert engine.no_kernel is None
    found = tokens(complete(engine, prompts, generate(max_new_tokens=3)))
    assert found == expected_tokens(tiny_model(name), prompts, 3)


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_random_cases(seed: int) -> None:
    rng = random.Random(seed)
    dtype, group, page = rng.choice(DTYPES), rng.choice([1, 2, 3, 4, 5, 7, 8]), 16 * rng.choice([1, 2, 3, 4, 8, 16])
    key_size = rng.choice([64, 72, 80, 96, 112, 128, 192, 256])
    value_size = rng.choice([key_size, key_size, 64, 128])
    is_decode = rng.random() < 0.5
    lengths = [
        (
            rng.choice([0, rng.randrange(20), rng.randrange(200)]),
            1 if is_decode or rng.random() < 0.3 else rng.randrange(30),
        )
        for _ in range(rng.randrange(1, 4))
    ]
    if not sum(count for _, count in lengths):
        lengths.append((3, 2))
    case = Case(
        lengths,
        heads=rng.choice([1, 2]),
        group=group,
        key_size=key_size,
        value_size=value_size,
        page=page,
        dtype=dtype,
        seed=seed,
    )
    sinks = torch.randn(case.query.shape[1], generator=case.generator).to(DEVICE) if rng.random() < 0.3 else None
    window = rng.choice([None, None, rng.randrange(1, 100)])
    args = AttentionArgs(key_size**-0.5, window, rng.choice([None, None, 8.0]), sinks)
    blocks = blocks_for(group, key_size, value_size, dtype.itemsize, decode=is_decode)
    splits = {"max_splits": 4, "split_tokens": 64} if is_decode and rng.random() < 0.6 else {}
    case.check(blocks, args, **splits)
