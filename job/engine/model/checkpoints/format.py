"""What a format of quantized weights is to the code that converts them."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

Parts = Mapping[str, torch.Tensor]
"""The tensors that a layer's weights are stored as, by the ends of their names."""

Settings = Mapping[str, Any]
"""A model's ``quantization_config``."""


class Unreadable(Exception):
    """Weights are not stored as the format says, or in a variant that is not known. The message says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How the weights of a layer are stored as several tensors, whose names have a beginning in common."""

    phrase: str
    """Its name for people."""
    num_bits: int
    """Of a weight, about."""
    markers: tuple[str, ...]
    """Ends of names. Each quantized layer has a tensor with one of them beside others of its parts; no other has."""
    parts: tuple[str, ...]
    """The ends of the names of all tensors that a layer may have."""
    becomes: str
    """The end of the name of the dense weights."""
    dense: Callable[[Parts, torch.dtype], torch.Tensor]
    """Returns the dense weights of a layer in a dtype, or raises ``Unreadable``."""

    def layers(self, names: Collection[str]) -> dict[str, dict[str, str]]:
        """Return the names of dense weights, with those of the tensors that they are made of by their ends."""
        found = {}
        for name in names:
            marker = next((marker for marker in self.markers if name.endswith(marker)), None)
            if marker is None:
                continue
            base = name.removesuffix(marker)
            parts = {part: base + part for part in self.parts if base + part in names}
            if len(parts) > 1:  # "input_scale" ends like "weight_scale", but there is no "input"
                found[base + self.becomes] = parts
        return found


def transposed(format: Format) -> Format:
    """Return the same format for layers that hold their weights the other way round."""
    return replace(format, dense=lambda parts, dtype: format.dense(parts, dtype).T.contiguous())
