"""Attention over the paged cache against the plainest attention there is: one token and one head at a time, in fp32.

Everything that nobody has written is NaN, so that whatever is read by mistake is seen.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from job.engine.paged.attention import plain
from job.engine.paged.attention.backends import COMPILED, TORCH, TRITON, Backend
from job.engine.paged.attention.cache import KVCache, LayerShape
from job.engine.paged.attention.interface import AttentionArgs
from job.engine.paged.attention.layout import MAX_PADDING, BlockTables, Layout
from job.engine.paged.schedule.step import Step, rows
from tests import plain_launches

P = 8
"""Tokens per page."""

CPU = torch.device("cpu")

BACKENDS = {"torch": TORCH, "compiled": COMPILED, "triton": TRITON}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Whoever attends. Plain operations compute what the kernels for CUDA do."""
    if request.param == "triton":
        plain_launches.replace(monkeypatch)
    return BACKENDS[request.param]


@dataclass(frozen=True)
class Shape:
    """A layer: H key-value heads, G queries each, sizes of keys and of values."""

    heads: int = 2
    group: int = 1
    key_size: int = 16
    value_size: int = 16

    def random(self, num_tokens: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries [T, H * G, D], keys [T, H, D] and values [T, H, D of value]."""
        return (
            torch.randn(num_tokens, self.heads * self.group, self.key_size, generator=rng),
            torch.randn(num_tokens, self.heads, self.key_size, generator=rng),
            torch.randn(num_tokens, self.heads, self.value_size, generator=rng),
        )


SHAPES = {
    "plain": Shape(),
    "grouped": Shape(heads=2, group=3),
    "one_head": Shape(heads=1, group=4, key_size=8, value_size=8),
    "sizes": Shape(heads=3, group=1, key_size=24, value_size=8),
    "grouped_sizes": Shape(heads=2, group=3, key_size=8, value_size=32),
}


def dense(query: Any, keys: Any, values: Any, args: AttentionArgs) -> torch.Tensor:
    """Return [H * G, D of value]: what the last token of keys and values [T, H, .] answers."""
    group = len(query) // keys.shape[1]
    first = 0 if args.window is None else max(0, len(keys) - args.window)
    output = []
    for head, one in enumerate(query):
        scores = keys[first:, head // group] @ one * args.scale
        if args.softcap is not None:
            scores = args.softcap * torch.tanh(scores / args.softcap)
        if args.sinks is not None:
            scores = torch.cat([scores, args.sinks[head : head + 1]])
        weights = scores.softmax(dim=0)[: len(keys) - first]
        output.append(weights @ values[first:, head // group])
    return torch.stack(output)


class Bench:
    """A cache with the sequences in it, fed step by step; layers may differ in shape."""

    def __init__(
        self,
        shapes: list[Shape],
        seed: int,
        *,
        backend: Backend = TORCH,
        num_pages: int = 64,
    ) -> None:
        """Begin with NaN everywhere."""
        self.backend = backend
        self.rng, self.torch_rng = random.Random(seed), torch.Generator().manual_seed(seed)
        self.shapes = shapes
        layers = {
            idx: LayerShape(shape.heads, shape.key_size, shape.value_size, torch.float32, shape.group)
            for idx, shape in enumerate(shapes)
        }
        self.cache = KVCache(layers, num_pages=num_pages, page_tokens=P, device=CPU)
        for pool in (*self.cache.keys.values(), *self.cache.values.values()):
            pool.fill_(torch.nan)
        self.tables = BlockTables(200)
        self.free = list(range(num_pages))
        self.pages: dict[int, list[int]] = {}
        """Slot to pages."""
        self.memory: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        """(layer, slot) to the keys and values [T, H, .] of its tokens so far."""
        self.origins: dict[int, tuple[int, int]] = {}
        """Slot to the one that it begins like, and for how many tokens."""
        self.args_of_layers: dict[int, AttentionArgs] = {}
        """Where they are not those of the step."""
        self.new_pages: list[tuple[int, int, int]] = []
        self.pages_to_clear: list[tuple[int]] = []
        self.copies: list[tuple[int, int, int]] = []

    def scatter(self) -> None:
        """Give out pages in random order from now on."""
        self.rng.shuffle(self.free)

    def num_tokens(self, slot: int) -> int:
        """Return how many tokens of a sequence are in the cache, or will be before its next ones."""
        return len(self.memory[0, slot][0]) if (0, slot) in self.memory else self.origins.get(slot, (0, 0))[1]

    def fork(self, slot: int, new_slot: int, num_tokens: int) -> None:
        """Begin a sequence with another's first tokens: whole pages are shared, the rest is copied.

        Some of them may be tokens that the other one computes in the next step.
        """
        self._reserve(slot, num_tokens)
        self.origins[new_slot] = (slot, num_tokens)
        num_pages, num_copied = divmod(num_tokens, P)
        self.pages[new_slot] = []
        for page in self.pages[slot][:num_pages]:
            self._add_page(new_slot, page)
        if num_copied:
            self._reserve(new_slot, num_tokens)
            self.copies.append((self.pages[slot][num_pages], self.pages[new_slot][-1], num_copied))

    def _add_page(self, slot: int, page: int) -> None:
        self.new_pages.append((slot, len(self.pages[slot]), page))
        self.pages[slot].append(page)

    def _reserve(self, slot: int, num_tokens: int) -> None:
        self.pages.setdefault(slot, [])
        while len(self.pages[slot]) * P < num_tokens:
            self.pages_to_clear.append((self.free[0],))
            self._add_page(slot, self.free.pop(0))

    def step(self, counts: dict[int, int], args: AttentionArgs, *, spoil: int | None = None) -> Layout:
        """Compute so many tokens of each slot's sequence in all layers, and compare with the dense answers.

        Args:
            spoil: slot whose keys and values are NaN, as after an overflow; its answers are not looked at.
        """
        items = sorted(counts.items(), key=lambda item: item[1] > 1)
        starts = [self.num_tokens(slot) for slot, _ in items]
        for (slot, count), start in zip(items, starts, strict=True):
            self._reserve(slot, start + count)
        step = Step(
            token_ids=np.zeros(sum(counts.values()), np.int32),
            sequences=rows([(slot, start, n, 1) for (slot, n), start in zip(items, starts, strict=True)], 4),
            new_pages=rows(self.new_pages, 3),
            pages_to_clear=rows(self.pages_to_clear, 1),
            copies=rows(self.copies, 3),
        )
        self.new_pages, self.pages_to_clear, self.copies = [], [], []
        self.tables.add(step.new_pages)
        layout = Layout(step, self.tables, P)
        if self.backend.reads_hidden:
            self.cache.clear(step.pages_to_clear)
        self._compute(layout, items, args, spoil)
        return layout

    def _compute(self, layout: Layout, items: list[tuple[int, int]], args: AttentionArgs, spoil: int | None) -> None:
        """Let all layers write and attend, and compare their answers."""
        attention = self.backend.attend(self.cache, layout, CPU)
        for layer_idx in range(len(self.shapes)):
            args = self.args_of_layers.get(layer_idx, args)
            query, key, value = self._new_tokens(layer_idx, items, spoil)
            output = attention(layer_idx, query, key, value, args)
            counts = [count for _, count in items]
            for (slot, count), found, asked in zip(items, output.split(counts), query.split(counts), strict=True):
                if slot == spoil:
                    continue
                keys, values = self.memory[layer_idx, slot]
                ends = range(len(keys) - count + 1, len(keys) + 1)
                expected = [dense(one, keys[:end], values[:end], args) for one, end in zip(asked, ends, strict=True)]
                torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)

    def _new_tokens(self, layer_idx: int, items: list[tuple[int, int]], spoil: int | None) -> tuple[torch.Tensor, ...]:
        """Draw queries, keys and values of a step's tokens, and remember the latter two."""
        counts = [count for _, count in items]
        query, key, value = self.shapes[layer_idx].random(sum(counts), self.torch_rng)
        drawn = zip(items, key.split(counts), value.split(counts), strict=True)
        for (slot, _), new_keys, new_values in sorted(drawn, key=lambda item: item[0][0]):  # origins are older
            if slot == spoil:
                new_keys.fill_(torch.nan)
                new_values.fill_(torch.nan)
            origin, num_tokens = self.origins.get(slot, (slot, 0))
            beginning = [tensor[:num_tokens] for tensor in self.memory.get((layer_idx, origin), (new_keys, new_values))]
            keys, values = self.memory.get((layer_idx, slot), beginning)
            self.memory[layer_idx, slot] = (torch.cat([keys, new_keys]), torch.cat([values, new_values]))
        return query, key, value


def random_args(rng: random.Random, shape: Shape) -> AttentionArgs:
    """Return arguments of which each may be there or not."""
    sinks = torch.tensor([rng.gauss(0, 1) for _ in range(shape.heads * shape.group)])
    return AttentionArgs(
        scale=rng.choice([shape.key_size**-0.5, 1.0]),
        window=rng.choice([None, None, 1, 3, P, P + 1, 20]),
        softcap=rng.choice([None, 5.0]),
        sinks=rng.choice([None, sinks]),
    )


def random_steps(bench: Bench, args: AttentionArgs, num_steps: int) -> list[Layout]:
    """Mix decode and prefill of old and new sequences, some of which begin as others do."""
    layouts, rng = [], bench.rng
    for _ in range(num_steps):
        old = [*bench.pages]
        counts = {slot: rng.choice([1, 1, 1, rng.randint(2, 12)]) for slot in old if rng.random() < 0.8}
        for new_slot in range(len(old), len(old) + rng.randint(not counts, 2)):
            if old and rng.random() < 0.6:
                slot = rng.choice(old)
                bench.fork(slot, new_slot, rng.randint(1, bench.num_tokens(slot) + counts.get(slot, 0)))
            counts[new_slot] = rng.randint(1, 25)
        layouts.append(bench.step(counts, args))
    return layouts


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("seed", range(8))
def test_random_steps_attend_as_dense_attention_does(name: str, seed: int, backend: Backend) -> None:
    bench = Bench([SHAPES[name]], seed, backend=backend, num_pages=200)
    if seed % 2:
        bench.scatter()
    layouts = random_steps(bench, random_args(bench.rng, SHAPES[name]), 6)
    assert any(layout.counts.min() == 1 < layout.counts.max() for layout in layouts)


NO_FRILLS = AttentionArgs(scale=0.25)


@pytest.mark.parametrize("window", [None, 1, P, 2 * P + 3, 1000])
@pytest.mark.parametrize("name", SHAPES)
def test_pages_that_many_rows_share(name: str, window: int | None, backend: Backend) -> None:
    bench = Bench([SHAPES[name]], 1, backend=backend, num_pages=100)
    args = AttentionArgs(scale=0.25, window=window)
    bench.step({0: 3 * P + 5, 100: 7, 101: 1, 102: P}, args)
    for slot in range(1, 40):
        bench.fork(0, slot, 3 * P + slot % 5)
    bench.step({slot: 1 + slot % 2 for slot in range(40)}, args)
    bench.step(dict.fromkeys([*range(40), 100, 101, 102], 1), args)


def test_layers_of_one_model_may_differ_in_heads_and_sizes(backend: Backend) -> None:
    """As they do in Gemma 3n or after an uneven cut by AutoTP."""
    shapes = [SHAPES["plain"], SHAPES["sizes"], SHAPES["grouped"], SHAPES["one_head"], SHAPES["plain"]]
    bench = Bench(shapes, 4, backend=backend)
    random_steps(bench, NO_FRILLS, 5)


def test_the_layers_of_a_step_may_differ_in_window_and_sinks(backend: Backend) -> None:
    """As in Gemma 2 and gpt-oss, where every other layer has a window."""
    bench = Bench([SHAPES["grouped"]] * 4, 5, backend=backend, num_pages=200)
    bench.args_of_layers = {
        0: AttentionArgs(scale=0.25),
        1: AttentionArgs(scale=0.25, window=5),
        2: AttentionArgs(scale=0.25, sinks=torch.linspace(-1, 1, 6)),
        3: AttentionArgs(scale=0.25, window=5, sinks=torch.linspace(1, -1, 6)),
    }
    random_steps(bench, NO_FRILLS, 6)


@pytest.mark.parametrize("name", ["plain", "grouped_sizes"])
@pytest.mark.parametrize("window", [None, 6])
def test_scores_that_take_too_much_memory_are_left_to_torch(
    name: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    attend = plain.F.scaled_dot_product_attention

    def counted(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        return attend(*args, **options)

    monkeypatch.setattr(plain, "MAX_SCORES", 0)
    monkeypatch.setattr(plain.F, "scaled_dot_product_attention", counted)
    random_steps(Bench([SHAPES[name]], 6, num_pages=200), AttentionArgs(scale=0.25, window=window), 5)
    assert calls


@pytest.mark.parametrize("lengths", [(40, 30), (30, 40), (1, 1), (1, 30), (40, 1)])
@pytest.mark.parametrize("spoilt", [0, 1])
def test_nan_in_one_sequence_leaves_its_neighbors_alone(
    lengths: tuple[int, int], spoilt: int, backend: Backend
) -> None:
    """A regression: shorter prompts of a group were padded with page 0 of the cache. It was hidden, but NaN plus minus
    infinity is NaN: a row that overflowed there took the prompts beside it along, and all became error rows.
    """
    bench = Bench([SHAPES["grouped"]], 7, backend=backend)
    bench.step({2: 12, 3: 3}, NO_FRILLS)
    bench.step({0: lengths[0], 1: lengths[1], 2: 1, 3: 2}, NO_FRILLS, spoil=spoilt)
    bench.step({0: 1, 1: 1, 2: 1, 3: 1}, NO_FRILLS, spoil=spoilt)


def test_block_tables_grow_with_the_longest_sequence() -> None:
    bench = Bench([SHAPES["plain"]], 9, num_pages=60)
    bench.step({0: 16 * P, 1: 3}, NO_FRILLS)
    bench.step({0: 1, 1: 1}, NO_FRILLS)
    bench.step({0: 17 * P, 1: 1}, NO_FRILLS)
    bench.step({0: 1, 1: 1}, NO_FRILLS)
    assert len(bench.pages[0]) == 34


def layout_of(sequences: list[tuple[int, int]]) -> Layout:
    """Return the layout of sequences, given their tokens before and now."""
    items = [(slot, start, count, slot % 2) for slot, (start, count) in enumerate(sequences)]
    step = Step(token_ids=np.arange(sum(count for _, count in sequences), dtype=np.int32), sequences=rows(items, 4))
    tables = BlockTables(len(sequences))
    new_pages = [
        (slot, idx, 50 * slot + idx)
        for slot, (start, count) in enumerate(sequences)
        for idx in range((start + count - 1) // P + 1)
    ]
    tables.add(rows(new_pages, 3))
    return Layout(step, tables, P)


def test_tokens_are_numbered_and_placed_by_their_position() -> None:
    layout = layout_of([(9, 1), (0, 1), (6, 4)])
    assert layout.positions.tolist() == [9, 0, 6, 7, 8, 9]
    assert layout.token_pages.tolist() == [1, 50, 100, 100, 101, 101]
    assert layout.token_places.tolist() == [1, 0, 6, 7, 0, 1]
    assert layout.token_sequences.tolist() == [0, 1, 2, 2, 2, 2] and layout.wanted_tokens.tolist() == [1]


@pytest.mark.parametrize("seed", range(10))
def test_sequences_are_grouped_so_that_padding_stays_small(seed: int) -> None:
    """Each is in one group, whose rectangle is little more than its contents."""
    rng = random.Random(seed)
    sequences = [(rng.choice([0, 0, rng.randrange(300)]), rng.choice([1, rng.randint(2, 200)])) for _ in range(60)]
    layout = layout_of(sequences)
    answered: list[int] = []
    for group in layout.rectangles:
        answered += group.tokens[group.is_real].tolist()
        counts, ends = group.is_real.sum(axis=1), group.positions[:, -1] + 1
        assert len(counts) * counts.max() * ends.max() <= MAX_PADDING * (counts * ends).sum()
        assert group.num_keys == ends.max() and group.pages.shape[1] == -(-group.num_keys // P)
    assert sorted(answered) == list(range(len(layout.token_ids)))
    assert len(layout.rectangles) < 40
