"""GPTQ and AWQ: integers with a scale and a zero point for each group of inputs.

The layouts are those that AutoGPTQ, GPTQModel and AutoAWQ write and read.
"""

import torch

from job.engine.model.checkpoints.format import Format, Parts, Settings, Unreadable
from job.engine.model.checkpoints.packing import unpacked

PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of AWQ the columns are."""


def gptq(settings: Settings) -> Format:
    """Return the format ``gptq``: words along the inputs. Its first version stores zero points minus one."""
    num_bits, version = settings.get("bits"), settings.get("checkpoint_format") or "gptq"
    if num_bits not in (2, 4, 8):
        raise Unreadable(f"{num_bits} bits, where 2, 4 and 8 are known")
    if version not in ("gptq", "gptq_v2"):
        raise Unreadable(f"the layout {version!r}, where 'gptq' and 'gptq_v2' are known")
    offset = 1 if version == "gptq" else 0
    quantizer = (settings.get("meta") or {}).get("quantizer") or ""
    borrows = "gptqmodel" in str(quantizer)

    def dense(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        words, zero_words, groups = parts[".qweight"], _part(parts, ".qzeros"), parts.get(".g_idx")
        scales = _part(parts, ".scales").float()
        width = num_bits if groups is None else _width(words, len(groups))
        zeros = _zeros(zero_words, width, offset, borrows=borrows)[:, : scales.shape[1]].float()
        weights = unpacked(words, width, dim=0)
        if groups is None:
            groups = torch.arange(len(weights)) // (len(weights) // len(scales))
        groups = groups.long()
        made: torch.Tensor = ((weights[: len(groups)].float() - zeros[groups]) * scales[groups]).to(dtype)
        return made.T.contiguous()

    return Format(
        phrase="GPTQ",
        num_bits=num_bits,
        markers=(".qweight",),
        parts=PARTS,
        becomes=".weight",
        dense=dense,
    )


def awq(settings: Settings) -> Format:
    """Return the format ``awq``: words along the outputs, with the columns in an order of their own."""
    num_bits, version = settings.get("bits", 4), str(settings.get("version", settings.get("format", "gemm"))).lower()
    if num_bits != 4:
        raise Unreadable(f"{num_bits} bits, where 4 are known")
    if version not in ("gemm", "exllama"):  # the latter is stored as the former, and changed when it is loaded
        raise Unreadable(f"the layout {version!r}, where 'gemm' is known")

    def columns(words: torch.Tensor) -> torch.Tensor:
        return unpacked(words, 4).view(len(words), -1, 8)[:, :, AWQ_ORDER].flatten(1).float()

    def dense(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        scales, weights = _part(parts, ".scales").float(), columns(parts[".qweight"])
        size = len(weights) // len(scales)
        zeros = columns(_part(parts, ".qzeros")).repeat_interleave(size, 0)
        return ((weights - zeros) * scales.repeat_interleave(size, 0)).to(dtype).T.contiguous()

    return Format(
        phrase="AWQ",
        num_bits=4,
        markers=(".qweight",),
        parts=PARTS,
        becomes=".weight",
        dense=dense,
    )


def _width(words: torch.Tensor, num_inputs: int) -> int:
    """Return the bits of a layer's integers. ``dynamic`` settings of GPTQModel give some layers others."""
    per_word = words.element_size() * 8
    for width in (2, 4, 8):
        if -(-num_inputs * width // per_word) == len(words):
            return width
    raise Unreadable(f"{len(words)} words for {num_inputs} inputs are not 2, 4 or 8 bits each")


def _zeros(words: torch.Tensor, width: int, offset: int, *, borrows: bool) -> torch.Tensor:
    """Return zero points.

    Args:
        borrows: whether they were lowered a word at a time, as GPTQModel does, so that a zero point of 0 took 1 from
            its neighbour; AutoGPTQ lowered one after the other.
    """
    if not (offset and borrows):
        zeros: torch.Tensor = (unpacked(words, width) + offset) & (2**width - 1)
        return zeros
    ones = sum(1 << place for place in range(0, words.element_size() * 8, width))
    return unpacked(words + ones, width)


def _part(parts: Parts, name: str) -> torch.Tensor:
    if name not in parts:
        raise Unreadable(f"there is no {name.removeprefix('.')}")
    return parts[name]
