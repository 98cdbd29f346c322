"""What a format of quantized weights is to the code that converts them."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
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
    marker: str
    """The end of the name of a tensor that every quantized layer has, and no other."""
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
            if name.endswith(self.marker):
                base = name.removesuffix(self.marker)
                found[base + self.becomes] = {part: base + part for part in self.parts if base + part in names}
        return found
