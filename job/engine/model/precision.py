"""In which numbers the weights of a model are stored and computed: all that decides what a loaded model is.

``job.engine.model.loading`` applies it, one step after the other. It is part of what identifies a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from job.engine.model.adapters.adapter import Adapter
from job.engine.model.kv_size import stored_dtype
from job.engine.model.quantized import GROUP


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What is made of the weights of a checkpoint."""

    dtype: str
    """The dtype of a run: float16, bfloat16 or float32."""
    kv_cache_dtype: str = "auto"
    """Of stored keys and values; one of ``config.KV_CACHE_DTYPES``."""
    quantization: str | None = None
    """Of the linear layers; one of ``config.QUANTIZATIONS``."""

    adapters: tuple[Adapter, ...] = ()
    """Merged into the weights before anything else is done with them."""

    @property
    def stored_dtype(self) -> str:
        """The name of the dtype in which keys and values are stored."""
        return stored_dtype(self.kv_cache_dtype, self.dtype)

    @property
    def itemsize(self) -> int:
        """The bytes of a number that is not quantized."""
        return int(getattr(torch, self.dtype).itemsize)

    @property
    def quantized_itemsize(self) -> float:
        """The bytes of a number in a layer that may be quantized, with its share of the scales."""
        shares = {None: float(self.itemsize), "fp8": 1.0, "int8": 1 + self.itemsize / GROUP}
        return shares[self.quantization]

    @property
    def adapter_digests(self) -> Sequence[str]:
        """What identifies the adapters, in their order."""
        return [adapter.digest for adapter in self.adapters]

    def identity(self) -> dict[str, Any]:
        """Return what a run's identity says of it."""
        return {
            "dtype": self.dtype,
            "kv_cache_dtype": self.kv_cache_dtype,
            "quantize": self.quantization,
            "adapter": self.adapter_digests,
        }
