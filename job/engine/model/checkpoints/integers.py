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

    def dense(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        scales = _part(parts, ".scales").float()
        zeros = (unpacked(_part(parts, ".qzeros"), num_bits) + offset) & (2**num_bits - 1)
        weights = unpacked(parts[".qweight"], num_bits, dim=0)
        groups = parts.get(".g_idx")
        if groups is None:
            groups = torch.arange(len(weights)) // (len(weights) // len(scales))
        groups = groups.long()
        weights = weights[: len(groups)].float() - zeros[:, : scales.shape[1]].float()[groups]
        made: torch.Tensor = (weights * scales[groups]).to(dtype).T.contiguous()
        return made

    return Format(
        phrase="GPTQ",
        num_bits=num_bits,
        marker=".qweight",
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
        marker=".qweight",
        parts=PARTS,
        becomes=".weight",
        dense=dense,
    )


def _part(parts: Parts, name: str) -> torch.Tensor:
    if name not in parts:
        raise Unreadable(f"there is no {name.removeprefix('.')}")
    return parts[name]
