"""Merges adapters into the weights of a model, on the host, in the dtype of the checkpoint, before the model is cut.

Merged layers are private memory of whoever merges. Where several processes of a node load a model, one of them writes
those layers into a directory of the cache (``dense``), from where all of them map them into the model as it is stored:
each reads the same pages.
"""

import json
import warnings
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from job.engine.model.adapters.adapter import WEIGHTS, Adapter
from job.engine.model.adapters.fitting import PREFIX, is_below
from job.engine.model.dense import dense_directory
from job.engine.model.text_part import ADAPTER_KEYS
from job.errors import UsageError, first_line
from job.launch.activity import doing
from job.wording import listed

MERGED, ALIASES = "merged-{}.safetensors", "aliases.json"

FILE_BYTES = 256 << 20
"""Merged layers are written once they take so much memory."""

VERSION = 1
"""Rises when the same adapters make other weights."""


def merge(model: Any, adapters: Sequence[Adapter], written: "WrittenLayers | None" = None) -> Any:
    """Return a model with the adapters merged into its weights, which are changed in place.

    Args:
        written: takes the merged layers out of memory.

    Raises:
        UsageError: an adapter does not fit the model.
    """
    for adapter in adapters:
        adapter.files.fetch([WEIGHTS])
        doing(f"merging {adapter.name}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = _merged(model, adapter, written)
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedLayers:
    """Where the layers of a model that adapters change are made, once."""

    adapters: tuple[Adapter, ...]
    fingerprint: str
    """What identifies the model."""
    itemsize: int
    """The bytes of a number in the checkpoint."""
    read: Callable[[], Any]
    """Reads the model as it is stored."""

    def directory(self) -> Path:
        """Return a directory with them, after making them if nobody has.

        Raises:
            UsageError: an adapter does not fit the model, or there is no room on the disk.
        """
        facts = {
            "fingerprint": self.fingerprint,
            "adapters": [adapter.digest for adapter in self.adapters],
            "made": "merged layers",
            "version": VERSION,
            "versions": [version(name) for name in ("peft", "transformers", "torch")],
        }
        num_bytes = merged_bytes(self.adapters, self.itemsize)
        return dense_directory(facts, what=self._what(), num_bytes=num_bytes, make=self._make)

    def _what(self) -> str:
        return f"--adapter {listed([adapter.name for adapter in self.adapters])}"

    def _make(self, directory: Path) -> None:
        written = WrittenLayers(directory)
        model = merge(self.read(), self.adapters, written)
        names: dict[int, list[str]] = {}  # an output layer may share its weights with the embedding
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        changed = [each for each in names.values() if any(_is_changed(name, self.adapters) for name in each)]
        aliases = {name: first for first, *others in changed for name in others}
        for first, *_ in changed:
            written.add(first, model.get_parameter(first))
        written.write()
        (directory / ALIASES).write_text(json.dumps(aliases), encoding="utf-8")


class WrittenLayers:
    """Writes merged layers into numbered files as they come, and lets the model map them in place of its own memory."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._num_files = directory, 0
        self._waiting: dict[str, torch.nn.Parameter] = {}
        self._addresses: dict[str, int] = {}

    def add(self, name: str, parameter: torch.nn.Parameter) -> None:
        """Take a layer, unless it is what was written of it before."""
        if self._addresses.get(name) == parameter.data_ptr():
            return
        self._waiting[name] = parameter
        if sum(each.nbytes for each in self._waiting.values()) >= FILE_BYTES:
            self.write()

    def write(self) -> None:
        """Write the layers that have been taken."""
        from safetensors.torch import load_file, save_file

        if not self._waiting:
            return
        path = self._directory / MERGED.format(f"{self._num_files:05}")
        tensors = {name: parameter.detach().contiguous() for name, parameter in self._waiting.items()}
        save_file(tensors, path, metadata={"format": "pt"})
        for name, tensor in load_file(path).items():
            self._waiting[name].data = tensor
            self._addresses[name] = tensor.data_ptr()
        self._waiting, self._num_files = {}, self._num_files + 1


def _merge_linear_layers(adapted: Any, layers: Set[str], written: WrittenLayers) -> None:
    """Merge what is in linear layers one by one, so that they are never in memory together. peft merges the rest.

    Args:
        layers: the names of the model's own; peft puts others around and into them.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.pytorch_utils import Conv1D

    for path, module in adapted.named_modules():
        name = path.removeprefix(PREFIX)
        if not isinstance(module, BaseTunerLayer) or name not in layers:
            continue
        layer = module.get_base_layer()
        is_inner = type(getattr(module, "base_layer", None)) is type(layer)  # and not an adapter around an adapter
        if is_inner and type(layer) in (torch.nn.Linear, Conv1D):
            module.merge(safe_merge=True)
            for last, parameter in layer.named_parameters(recurse=False):
                written.add(f"{name}.{last}", parameter)


def merged_bytes(adapters: Sequence[Adapter], itemsize: int) -> int:
    """Return about how large the layers are that adapters change."""
    return sum(adapter.fitting.num_params for adapter in adapters if adapter.fitting is not None) * itemsize


def put_in(model: Any, directory: Path, adapters: Sequence[Adapter]) -> Any:
    """Return a model with merged layers in place of its own. They stay mapped to their file."""
    from safetensors.torch import load_file

    for adapter in adapters:
        _resize(model, adapter)
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob(MERGED.format("*"))):  # a layer that several adapters change may be in several
        tensors |= load_file(path)
    aliases = json.loads((directory / ALIASES).read_text(encoding="utf-8"))
    parameters = {name: torch.nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}
    parameters |= {name: parameters[shared] for name, shared in aliases.items()}
    for name, parameter in parameters.items():
        module, _, last = name.rpartition(".")
        setattr(model.get_submodule(module), last, parameter)
    for adapter in adapters:
        if adapter.unties:
            _untie(model.config)
    return model


def _is_changed(name: str, adapters: Sequence[Adapter]) -> bool:
    """Whether an adapter changes a parameter; true of all if it is not known what one changes."""
    return any(adapter.fitting is None or is_below(name, adapter.fitting.modules) for adapter in adapters)


def _resize(model: Any, adapter: Adapter) -> None:
    rows = adapter.num_rows
    if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)


def _untie(config: Any) -> None:
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = False


def _merged(model: Any, adapter: Adapter, written: "WrittenLayers | None") -> Any:
    from peft import PeftModel

    _resize(model, adapter)
    layers = {name for name, _ in model.named_modules()}
    names: dict[str, Any] = {"key_mapping": ADAPTER_KEYS} if adapter.is_of_part else {}
    try:  # on a device of its own choice, peft would put the adapters of all processes of a node onto the first GPU
        adapted = PeftModel.from_pretrained(model, str(adapter.files.directory), torch_device="cpu", **names)
        if written is not None:
            _merge_linear_layers(adapted, layers, written)
        return adapted.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UsageError(
            f"--adapter {adapter.name} does not fit the model: {first_line(error)} Was it trained on another one?"
        ) from error
