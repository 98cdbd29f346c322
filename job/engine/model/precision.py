"""In which numbers the weights of a model are stored and computed: all that decides what a loaded model is.

``job.engine.model.loading`` applies it, one step after the other. It is part of what identifies a run.
"""

from dataclasses import dataclass
from typing import Any

from job.engine.model.kv_size import stored_dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What is made of the weights of a checkpoint."""

    dtype: str
    """The dtype of a run: float16, bfloat16 or float32."""
    kv_cache_dtype: str = "auto"
    """Of stored keys and values; one of ``config.KV_CACHE_DTYPES``."""

    @property
    def stored_dtype(self) -> str:
        """The name of the dtype in which keys and values are stored."""
        return stored_dtype(self.kv_cache_dtype, self.dtype)

    def identity(self) -> dict[str, Any]:
        """Return what a run's identity says of it."""
        return {"dtype": self.dtype, "kv_cache_dtype": self.kv_cache_dtype}
