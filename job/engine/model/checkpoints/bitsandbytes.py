"""bitsandbytes: 8-bit integers with a scale a row, and 4-bit floats (nf4, fp4) in blocks of the flattened weights.

The 4-bit scales may be quantized in turn ("double quantization"). All of it is stored beside the weights, the table of
the 4-bit floats included; what is not a tensor is JSON in one of bytes.
"""

import json
from typing import Any

import torch

from job.engine.model.checkpoints.format import Format, Parts, Settings, Unreadable
from job.engine.model.checkpoints.packing import unpacked

STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")

PER_INT8 = 7.874015718698502e-3
"""1 / 127, as bitsandbytes rounds it."""


def bitsandbytes(settings: Settings) -> Format:
    """Return the format ``bitsandbytes``, in 8 or in 4 bits."""
    if settings.get("load_in_4bit"):
        parts = ("", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", *STATES)
        return Format(
            phrase="bitsandbytes, 4 bits",
            num_bits=4,
            markers=(".absmax",),
            parts=parts,
            becomes="",
            dense=_dense_of_4_bits,
        )
    return Format(
        phrase="bitsandbytes, 8 bits",
        num_bits=8,
        markers=(".SCB",),
        parts=(".weight", ".SCB", ".weight_format"),
        becomes=".weight",
        dense=_dense_of_8_bits,
    )


def _dense_of_8_bits(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    weights, order = parts[".weight"], parts.get(".weight_format")
    if weights.dtype != torch.int8 or (order is not None and int(order) != 0):
        raise Unreadable(f"it is {weights.dtype}, or in an order of a GPU, not rows of 8-bit integers")
    made: torch.Tensor = (weights.float() * parts[".SCB"].float().view(-1, 1) * PER_INT8).to(dtype)
    return made


def _dense_of_4_bits(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    state = next((parts[name] for name in STATES if name in parts), None)
    if state is None:
        raise Unreadable("it has no quant_state")
    facts: dict[str, Any] = json.loads(bytes(state.tolist()))
    scales = parts[".absmax"]
    if ".nested_absmax" in parts:
        nested = _scaled(parts[".nested_quant_map"][scales.long()], parts[".nested_absmax"], facts["nested_blocksize"])
        scales = nested + facts["nested_offset"]
    octets = parts[""].contiguous().view(torch.uint8).flatten()
    numbers = unpacked(octets, 4).view(-1, 2).flip(1).flatten()  # the first of two is in the higher bits
    size = int(torch.tensor(facts["shape"]).prod())
    values = parts[".quant_map"].float()[numbers[:size].long()]
    made = _scaled(values, scales, facts["blocksize"]).view(facts["shape"])
    return made.to(getattr(torch, facts["dtype"])).to(dtype)  # as it is used, bitsandbytes rounds to the former


def _scaled(values: torch.Tensor, scales: torch.Tensor, size: int) -> torch.Tensor:
    """Multiply ``[N] float32`` by the scale of each block, of which the last may be shorter."""
    return values * scales.float().repeat_interleave(size)[: len(values)]
