"""Writes the dense weights of a quantized checkpoint: one layer after the other, into files of half a gigabyte."""

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from job.engine.model.checkpoints.format import Format, Unreadable
from job.engine.model.naming import MODEL_CONFIG
from job.engine.model.weights import GENERATION_CONFIG, INDEX
from job.launch.activity import doing
from job.remote.model_files import ModelFiles

FILE_BYTES = 512 << 20
"""A file of the dense weights is written once it would be larger. Until then it is in memory."""

OF_ACTIVATIONS = (
    *(".activation_scale", ".input_scale", ".input_zero_point", ".output_scale", ".k_scale", ".v_scale"),
    *(".q_scale", ".weight_scale_2"),
)
"""Ends of names of tensors that say how activations are quantized. Here they are not."""

SETTINGS = ("quantization_config", "compression_config", "transformers_weights")

QUANTIZED = frozenset({torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2})
"""What weights are stored as that somebody has to convert."""


def convert(files: ModelFiles, weights: Sequence[str], format: Format, dtype: str, directory: Path) -> None:
    """Write the dense model into an empty directory.

    Args:
        weights: the names of the files with the weights.
        dtype: of what was quantized. Other tensors stay as they are.

    Raises:
        Unreadable: a layer is not stored as the format says.
    """
    from safetensors import safe_open

    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(files.directory / name, "pt")) for name in weights]
        where = {name: file for file in opened for name in file.keys()}  # noqa: SIM118
        layers = format.layers(where)
        used = {name for parts in layers.values() for name in parts.values()}
        firsts = {next(iter(parts.values())): dense for dense, parts in layers.items()}
        writer = _Writer(directory, files.name, len(where) - len(used) + len(layers))
        for name, file in where.items():
            if name in firsts:
                writer.add(firsts[name], _dense(format, firsts[name], layers[firsts[name]], where, dtype))
            elif name not in used and not name.endswith(OF_ACTIVATIONS):
                tensor = file.get_tensor(name)
                if tensor.dtype in QUANTIZED:
                    raise Unreadable(f"{name} is stored as {tensor.dtype} without what {format.phrase} needs with it")
                writer.add(name, tensor)
        writer.close()
    for name in (GENERATION_CONFIG, *files.code()):
        if files.has(name) and (files.directory / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files.directory / name, directory / name)
    config = json.loads((files.directory / MODEL_CONFIG).read_text(encoding="utf-8"))
    (directory / MODEL_CONFIG).write_text(json.dumps(_without_settings(config)), encoding="utf-8")


def _dense(format: Format, name: str, parts: dict[str, str], where: dict[str, Any], dtype: str) -> torch.Tensor:
    tensors = {part: where[stored].get_tensor(stored) for part, stored in parts.items()}
    try:
        return format.dense(tensors, getattr(torch, dtype))
    except (
        Unreadable,
        RuntimeError,
        IndexError,
        ValueError,
        KeyError,
    ) as error:  # of shapes that do not belong together
        reason = str(error) if isinstance(error, Unreadable) else "its parts do not have the shapes of this format"
        raise Unreadable(f"{name}: {reason}") from error


def _without_settings(config: Any) -> Any:
    """Return a configuration that says nothing of quantization, on any level."""
    if not isinstance(config, dict):
        return config
    return {name: _without_settings(value) for name, value in config.items() if name not in SETTINGS}


class _Writer:
    """Writes tensors into numbered files, and their index."""

    def __init__(self, directory: Path, what: str, num_tensors: int) -> None:
        self._directory, self._what, self._num_tensors = directory, what, num_tensors
        self._waiting: dict[str, torch.Tensor] = {}
        self._num_waiting_bytes = 0
        self._files: dict[str, str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor, and write those taken before if they are enough for a file."""
        if self._waiting and self._num_waiting_bytes + tensor.nbytes > FILE_BYTES:
            self._write()
        self._waiting[name] = tensor.contiguous()
        self._num_waiting_bytes += tensor.nbytes
        num_done = len(self._files) + len(self._waiting)
        doing(f"converting {self._what}", f"{num_done:,} of {self._num_tensors:,} tensors")

    def close(self) -> None:
        """Write the rest, and the index."""
        self._write()
        index = {"metadata": {}, "weight_map": self._files}
        (self._directory / INDEX).write_text(json.dumps(index), encoding="utf-8")

    def _write(self) -> None:
        from safetensors.torch import save_file

        file = f"model-{len(set(self._files.values())) + 1:05}.safetensors"
        save_file(self._waiting, self._directory / file, metadata={"format": "pt"})
        self._files |= dict.fromkeys(self._waiting, file)
        self._waiting, self._num_waiting_bytes = {}, 0
