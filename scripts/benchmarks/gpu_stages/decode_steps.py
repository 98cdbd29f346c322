"""The ms of a decode step of the job's engine, with and without what makes it fast."""

import gc
from typing import Any

import torch
from _model_shapes import SHAPES
from step_model import StepModel

from job.engine.model.layers_in_8_bits import quantize

from . import engines, figures
from .device import DEVICE, HALF, ON_CUDA
from .models import make_model, make_prompts

VARIANTS: dict[str, dict[str, Any]] = {
    "not fused": {"fused": False},  # first: what is fused stays so
    "all": {},
    "KV cache in fp8": {"kv_cache_dtype": "fp8"},
    "without overlap": {"overlap": False},
    "launched kernel by kernel": {"cuda_graphs": False},
}
"""Options of ``engines.build`` that differ from the default."""


def main(
    *,
    shape: str,
    rows: int,
    context: int,
    num_steps: int,
    options: dict[str, Any] | None = None,
    quantized: str | None = None,
    variants: list[str] | None = None,
) -> None:
    """Measure each variant with ``rows`` rows that have three quarters to all of ``context`` tokens.

    Args:
        options: fields of ``EngineConfig``.
        quantized: the scheme of ``--quantize``.
        variants: their names; all by default.
    """
    model = make_model(shape)
    if quantized is not None:
        print(quantize(model, quantized, DEVICE, HALF))
    prompts = make_prompts(rows, context, SHAPES[shape].vocab)
    mean = sum(map(len, prompts)) / rows + num_steps / 2
    for name in variants or VARIANTS:
        variant = VARIANTS[name]
        engine, notes = engines.build(model, {"max_batch_rows": rows, **(options or {}), **variant})
        engines.submit(engine, prompts, 2 * num_steps + 64)
        engines.reach_decoding(engine, rows)
        ms = engines.step_ms(engine, num_steps)
        kv_itemsize = 1 if variant.get("kv_cache_dtype") == "fp8" else 2
        is_fused, card = variant.get("fused", True), figures.card()
        step = StepModel.decode(SHAPES[shape], rows, mean, is_fused=is_fused, kv_itemsize=kv_itemsize)
        expected = {"ms": step.expected(card, is_recorded=variant.get("cuda_graphs", True)) * 1e3}
        figures.save(
            f"{shape}, {rows} x {round(mean)}, {name}{'' if quantized is None else f', {quantized}'}",
            expected,
            ms=ms,
            tokens_per_s=rows / ms * 1e3,
            share_of_floor=step.floor(card) * 1e3 / ms,
            notes=notes,
        )
        del engine
        gc.collect()
        if ON_CUDA:
            torch.cuda.empty_cache()
