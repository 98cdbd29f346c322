"""What a step of the paged engine should take on a GPU, on paper: bytes, operations and launches of each part.

Usage: scripts/bench step-model [SHAPE] [--rows N] [--context N] [--tokens N] [--bandwidth TB/s] [--rate TFLOP/s]

With ``--tokens``, a step of that many prompt tokens instead of a decode step. Bytes over bandwidth and operations over
rate, each divided by the share of that ceiling that such kernels are expected to reach, are the two legs of a right
triangle, whose longest side is what a part takes: a kernel near one ceiling alone reaches it, one near both reaches
neither. A gap for each launch is added. The constants are the assumptions; none of them has been measured by this
project. ``scripts/bench gpu`` prints what it measures beside what this expects.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass

from _model_shapes import SHAPES, ModelShape

HALF = 2
"""Bytes of a number in half precision."""

PRODUCTS_SHARE = 0.95
"""What products reach of a ceiling when they are far from the other one."""

ATTENTION_SHARE = 0.85
"""What attention to the cache reaches of the bandwidth in decode; half of that of the rate in prompts."""

GAP_SECS = 2e-6
"""Between two kernels of a recorded step."""

LAUNCH_SECS, LAYER_SECS = 4e-6, 0.21e-3
"""What the host needs for each launch of a step that is not recorded, and for the Python of each layer."""

ROUND_SECS = 40e-6
"""Between two steps whose host work is hidden: the copy of the step's numbers and the start of the next recording."""

NORM_BYTES = {False: 36, True: 4}
"""Per number of a norm's input. transformers' own, not fused: cast (reads 2, writes 4), square (4, 4), mean (4),
scale (4, 4), cast (4, 2), weigh (2, 2). Fused: read once, written once; the same holds for the two below."""
ROTATION_BYTES = {False: 20, True: 4}
"""Per number of the queries and keys: negate half, concatenate, two products, a sum. Fused: of the queries alone, and
without a launch, since keys are rotated as they are stored, and queries by the same kernel."""
GATE_BYTES = {False: 10, True: 6}
"""Per number of an MLP's inner width."""
RESIDUAL_BYTES = {False: 12, True: 10}
"""Per number of the hidden states, in both sums of a layer. Fused: one of them with the norm that follows."""

NORM_LAUNCHES, ROTATION_LAUNCHES, GATE_LAUNCHES, RESIDUAL_LAUNCHES, PRODUCT_LAUNCHES = (
    {False: many, True: few} for many, few in ((8, 1), (10, 0), (2, 1), (2, 1), (7, 4))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The two ceilings of a GPU."""

    bandwidth: float = 3.0e12
    """Bytes per second of a large copy, counting those read and those written. That of an H100."""
    rate: float = 8.0e14
    """Operations per second of large products in half precision."""


H100 = Card()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One kind of work in a step."""

    name: str
    num_bytes: float
    operations: float = 0.0
    launches: int
    byte_share: float = 1.0
    rate_share: float = 1.0

    def floor(self, card: Card) -> float:
        """Return the seconds that no kernel can beat."""
        return max(self.num_bytes / card.bandwidth, self.operations / card.rate)

    def expected(self, card: Card) -> float:
        """Return the seconds that are expected of it on the device, gaps included."""
        by_bytes = self.num_bytes / (card.bandwidth * self.byte_share)
        by_operations = self.operations / (card.rate * self.rate_share)
        return math.hypot(by_bytes, by_operations) + self.launches * GAP_SECS


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """A step of one model."""

    shape: ModelShape
    tokens: int
    """Tokens that pass through the layers."""
    wanted: int
    """Rows whose next token is chosen."""
    keys_read: float
    """Tokens whose keys and values are read."""
    pairs: float
    """Pairs of a query and a key that it sees."""
    is_fused: bool = True
    kv_itemsize: int = HALF
    """Bytes of a number in the KV cache."""

    @classmethod
    def decode(
        cls, shape: ModelShape, rows: int, context: float, *, is_fused: bool = True, kv_itemsize: int = HALF
    ) -> "StepModel":
        """One token for each of ``rows`` rows that have ``context`` tokens on average."""
        keys = rows * context
        return cls(
            shape=shape,
            tokens=rows,
            wanted=rows,
            keys_read=keys,
            pairs=keys,
            is_fused=is_fused,
            kv_itemsize=kv_itemsize,
        )

    @classmethod
    def prompts(cls, shape: ModelShape, tokens: int, length: float, *, is_fused: bool = True) -> "StepModel":
        """``tokens`` tokens of prompts of a length."""
        # A tile of 128 (query, head) pairs reads the keys before it once.
        tiles = tokens / (128 / (shape.heads // shape.kv_heads))
        return cls(
            shape=shape,
            tokens=tokens,
            wanted=max(1, round(tokens / length)),
            keys_read=tiles * length / 2,
            pairs=tokens * length / 2,
            is_fused=is_fused,
        )

    @property
    def parts(self) -> list[Part]:
        """What the step consists of."""
        shape, fused = self.shape, self.is_fused
        heads = (shape.heads + shape.kv_heads) * shape.head_size
        norms_heads = shape.model_type == "qwen3"  # it normalizes each head of the queries and keys, too
        norm_numbers = shape.layers * (2 * shape.hidden + norms_heads * heads) + shape.hidden
        num_norms = shape.layers * (4 if norms_heads else 2) + 1
        per_layer = self.tokens * shape.layers
        layer_weights, head_weights = shape.layers * shape.layer_weights, shape.hidden * shape.vocab
        return [
            Part(
                name="products of the layers",
                num_bytes=layer_weights * HALF,
                operations=2 * self.tokens * layer_weights,
                launches=PRODUCT_LAUNCHES[fused] * shape.layers,
                byte_share=PRODUCTS_SHARE,
                rate_share=PRODUCTS_SHARE,
            ),
            Part(
                name="output layer",
                num_bytes=(head_weights + self.wanted * shape.vocab) * HALF,
                operations=2 * self.wanted * head_weights,
                launches=1,
                byte_share=PRODUCTS_SHARE,
                rate_share=PRODUCTS_SHARE,
            ),
            Part(
                name="attention",
                num_bytes=self.keys_read * shape.kv_bytes(self.kv_itemsize),
                operations=4 * self.pairs * shape.heads * shape.head_size * shape.layers,
                launches=shape.layers * (2 if self.keys_read > 1024 * self.tokens else 1),  # a second one joins splits
                byte_share=ATTENTION_SHARE,
                rate_share=ATTENTION_SHARE / 2,
            ),
            Part(name="storing keys and values", num_bytes=2 * self.tokens * shape.kv_bytes(), launches=shape.layers),
            Part(
                name="norms",
                num_bytes=NORM_BYTES[fused] * self.tokens * norm_numbers,
                launches=NORM_LAUNCHES[fused] * num_norms,
            ),
            Part(
                name="rotation",
                num_bytes=ROTATION_BYTES[fused] * per_layer * (shape.heads * shape.head_size if fused else heads),
                launches=ROTATION_LAUNCHES[fused] * shape.layers,
            ),
            Part(
                name="gates",
                num_bytes=GATE_BYTES[fused] * per_layer * shape.inner,
                launches=GATE_LAUNCHES[fused] * shape.layers,
            ),
            Part(
                name="residual sums",
                num_bytes=RESIDUAL_BYTES[fused] * per_layer * shape.hidden,
                launches=RESIDUAL_LAUNCHES[fused] * shape.layers,
            ),
            Part(name="choice of the tokens", num_bytes=self.wanted * shape.vocab * HALF, launches=8),
        ]

    def floor(self, card: Card) -> float:
        """Return the seconds of weights, cache and products alone: no step can beat it."""
        return sum(part.floor(card) for part in self.parts[:3])

    def expected(self, card: Card, *, is_recorded: bool = True) -> float:
        """Return the seconds that a step is expected to take while its host work is hidden."""
        on_device = sum(part.expected(card) for part in self.parts)
        if is_recorded:
            return on_device + ROUND_SECS
        on_host = LAYER_SECS * self.shape.layers + LAUNCH_SECS * sum(part.launches for part in self.parts)
        return max(on_device, on_host) + ROUND_SECS


def run_secs(
    shape: ModelShape, card: Card, prompt_lengths: list[int], num_new: int, max_rows: int, max_tokens: int
) -> float:
    """Return the expected seconds of a whole run: prompts in full steps, then decode in full batches."""
    length = sum(prompt_lengths) / len(prompt_lengths)
    chunk = StepModel.prompts(shape, max_tokens, length).expected(card)
    rounds = len(prompt_lengths) / min(max_rows, len(prompt_lengths))
    decode = StepModel.decode(shape, min(max_rows, len(prompt_lengths)), length + num_new / 2).expected(card)
    return sum(prompt_lengths) / max_tokens * chunk + rounds * num_new * decode


def table(step: StepModel, card: Card) -> str:
    """Return the parts of a step as Markdown."""
    lines = ["| part | GB | TFLOP | launches | floor, ms | expected, ms |", "|---|---|---|---|---|---|"]
    parts = step.parts
    rows = [(p.name, p.num_bytes, p.operations, p.launches, p.floor(card), p.expected(card)) for p in parts]
    rows.append(("between two steps", 0, 0, 0, 0, ROUND_SECS))
    total = [sum(row[column] for row in rows) for column in range(1, 6)]
    for name, num_bytes, operations, launches, floor, expected in [*rows, ("sum", *total)]:
        shown = (
            f"{num_bytes / 1e9:.2f}",
            f"{operations / 1e12:.2f}",
            launches,
            f"{floor * 1e3:.2f}",
            f"{expected * 1e3:.2f}",
        )
        lines.append(f"| {name} | " + " | ".join(map(str, shown)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and a JSON line of the sums for each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", nargs="?", default="llama-3.1-8b", choices=list(SHAPES))
    parser.add_argument("--rows", type=int, default=256, help="rows that decode")
    parser.add_argument("--context", type=float, default=1152, help="tokens of each row, or of each prompt")
    parser.add_argument("--tokens", type=int, help="tokens of a step of prompts")
    parser.add_argument("--bandwidth", type=float, default=H100.bandwidth / 1e12, help="TB/s of a copy")
    parser.add_argument("--rate", type=float, default=H100.rate / 1e12, help="TFLOP/s of products in half precision")
    args = parser.parse_args()
    card, shape = Card(bandwidth=args.bandwidth * 1e12, rate=args.rate * 1e12), SHAPES[args.shape]
    variants = {}
    for is_fused in (True, False):
        if args.tokens:
            step = StepModel.prompts(shape, args.tokens, args.context, is_fused=is_fused)
        else:
            step = StepModel.decode(shape, args.rows, args.context, is_fused=is_fused)
        print(f"{args.shape}, {'fused' if is_fused else 'not fused'}:\n\n{table(step, card)}\n")
        for is_recorded in (True, False):
            name = f"{'fused' if is_fused else 'not fused'}, {'recorded' if is_recorded else 'launched'}"
            variants[name] = round(step.expected(card, is_recorded=is_recorded) * 1e3, 2)
    print(
        json.dumps(
            {
                "shape": args.shape,
                "card": asdict(card),
                "floor_ms": round(step.floor(card) * 1e3, 2),
                "expected_ms": variants,
            }
        )
    )


if __name__ == "__main__":
    main()
