"""What a quantized checkpoint becomes: which format it has, how large its dense weights are, and where they are made.

Quantized weights can be neither cut by AutoTP nor cast. So they are made dense once, tensor by tensor: in no process
does the whole model lie in memory. Everything after that is as with any other model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from job.engine.fit.shape import shape_of
from job.engine.model.checkpoints.bitsandbytes import bitsandbytes
from job.engine.model.checkpoints.compressed import compressed_tensors
from job.engine.model.checkpoints.converting import convert
from job.engine.model.checkpoints.floats import fp8, mxfp4
from job.engine.model.checkpoints.format import Format, Settings, Unreadable, transposed
from job.engine.model.checkpoints.integers import awq, gptq
from job.engine.model.checkpoints.others import OTHERS
from job.engine.model.dense import KIND, check_room, dense_directory, in_gb
from job.engine.model.weights import identify
from job.errors import UsageError
from job.remote.cache import cache_roots
from job.remote.model_files import ModelFiles
from job.wording import listed

FORMATS: Mapping[str, Callable[[Settings], Format]] = {
    "fp8": fp8,
    "mxfp8": fp8,
    "mxfp4": mxfp4,
    "compressed-tensors": compressed_tensors,
    "gptq": gptq,
    "awq": awq,
    "bitsandbytes": bitsandbytes,
}
"""By the ``quant_method`` of a configuration."""

VERSION = 2
"""Rises when the same checkpoint becomes other weights."""

CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Model types whose layers hold ``[in, out]`` weights. Quantized by these two formats, they are ``[out, in]``."""

OTHER_SETTINGS = "hf_quant_config.json"
"""Where ModelOpt says how weights are quantized. Without the scales that belong to them they would be read as noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A quantized checkpoint, and what is made of it."""

    format: Format
    dtype: str
    """Of the dense weights: the one that the configuration names."""
    stored_bytes: int
    dense_bytes: int
    """About."""

    def note(self, dtype: str) -> str:
        """Return what the user should know.

        Args:
            dtype: the run's.
        """
        num_bytes = self.dense_bytes // itemsize(self.dtype) * itemsize(dtype)
        stored = f" instead of {in_gb(self.stored_bytes)}" if self.stored_bytes else ""
        return (
            f"{self.format.phrase} weights are computed in {dtype}: {in_gb(num_bytes)}{stored}. They are converted "
            f"once, which takes {in_gb(self.dense_bytes)} of disk in {cache_roots(KIND)[0]}"
        )


def dense_weights_of(
    config: Any, files: ModelFiles, weights: Sequence[str], *, trust_remote_code: bool
) -> "DenseWeights | None":
    """Return where the dense weights of a model are made; None if its weights are used as they are stored.

    Args:
        weights: the names of the files with the weights.
        trust_remote_code: see ``conversion_of``, as for the others and for the errors.
    """
    conversion = conversion_of(config, files, trust_remote_code=trust_remote_code)
    if conversion is None:
        return None
    return DenseWeights(conversion=conversion, files=files, weights=tuple(weights), trust_remote_code=trust_remote_code)


def conversion_of(config: Any, files: ModelFiles, *, trust_remote_code: bool) -> Conversion | None:
    """Return what becomes of a model; None if its weights are used as they are stored.

    Args:
        config: transformers' configuration.
        trust_remote_code: whether the model's own code is run. It is here to count the parameters.

    Raises:
        UsageError: its weights are in a format that is not known.
    """
    settings = settings_of(config)
    if settings is None and not files.has(OTHER_SETTINGS):
        return None
    method = "modelopt" if settings is None else str(settings.get("quant_method", "without a quant_method"))
    advice = "Name the model that they were made from, or one in another format."
    if settings is None or method not in FORMATS:
        helps = f" ({OTHERS[method]})" if method in OTHERS else ""
        raise UsageError(
            f"--model {files.name} has quantized weights in the format {method!r}; those that are converted are "
            f"{listed(sorted(FORMATS))}. {advice[:-1]}{helps}."
        )
    try:
        format = FORMATS[method](settings)
    except Unreadable as error:
        raise UsageError(f"--model {files.name} has quantized weights ({method}) with {error}. {advice}") from None
    if config.model_type in CONV1D and method in ("gptq", "bitsandbytes"):
        format = transposed(format)
    dtype = dtype_of(config)
    num_bytes = itemsize(dtype)
    shape = shape_of(config, trust_remote_code=trust_remote_code)
    stored_bytes = files.num_bytes([name for name in files.names() if name.endswith(".safetensors")])
    dense_bytes = stored_bytes * 8 * num_bytes // format.num_bits if shape is None else shape.num_params * num_bytes
    return Conversion(format=format, dtype=dtype, stored_bytes=stored_bytes, dense_bytes=dense_bytes)


def settings_of(config: Any) -> Settings | None:
    """Return how a configuration of transformers says that weights are quantized; None if it does not."""
    for part in (config, config.get_text_config()):
        found = getattr(part, "quantization_config", None)
        if found is not None:
            return found if isinstance(found, Mapping) else dict(found.to_dict())
    return None


def itemsize(dtype: str) -> int:
    """Return the bytes of a number."""
    size: int = getattr(torch, dtype).itemsize
    return size


def dtype_of(config: Any) -> str:
    """Return the dtype that a configuration names; bfloat16 if it names none."""
    named = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None) or "bfloat16"
    return str(named).removeprefix("torch.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseWeights:
    """Where the dense weights of a checkpoint are made, once."""

    conversion: Conversion
    files: ModelFiles
    weights: tuple[str, ...]
    trust_remote_code: bool

    def check_room(self) -> None:
        """Check that they are there, or have room on the disk.

        Raises:
            UsageError: they have none.
        """
        check_room(self._facts(), what=self._what(), num_bytes=self.conversion.dense_bytes)

    def directory(self) -> Path:
        """Return a directory with them, after making them if nobody has. Fetches weights that are not here yet.

        Raises:
            UsageError: they cannot be made.
        """
        return dense_directory(self._facts(), what=self._what(), num_bytes=self.conversion.dense_bytes, make=self._make)

    def _make(self, directory: Path) -> None:
        self.files.fetch(self.weights)
        try:
            convert(self.files, self.weights, self.conversion.format, self.conversion.dtype, directory)
        except Unreadable as error:
            raise UsageError(
                f"{self._what()}: {error}. Copy it again, or name the model that it was made from."
            ) from None

    def _what(self) -> str:
        return f"--model {self.files.name} ({self.conversion.format.phrase})"

    def _facts(self) -> Any:
        fingerprint = identify(self.files, self.weights, trust_remote_code=self.trust_remote_code)
        return {"fingerprint": fingerprint, "made": "dense weights", "version": VERSION}
