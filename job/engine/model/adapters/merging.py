"""Merges adapters into the weights of a model, on the host, in the dtype of the checkpoint, before the model is cut.

Merged layers are private memory of whoever merges. Where several processes of a node load a model, one of them writes
those layers into a directory of the cache (``dense``), from where all of them map them into the model as it is stored:
each reads the same pages.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from job.engine.model.adapters.adapter import WEIGHTS, Adapter
from job.engine.model.adapters.fitting import is_below
from job.engine.model.dense import dense_directory
from job.engine.model.text_part import ADAPTER_KEYS
from job.errors import UsageError, first_line
from job.launch.activity import doing
from job.wording import listed

MERGED, ALIASES = "merged.safetensors", "aliases.json"

VERSION = 1
"""Rises when the same adapters make other weights."""


def merge(model: Any, adapters: Sequence[Adapter]) -> Any:
    """Return a model with the adapters merged into its weights, which are changed in place.

    Raises:
        UsageError: an adapter does not fit the model.
    """
    for adapter in adapters:
        adapter.files.fetch([WEIGHTS])
        doing(f"merging {adapter.name}")
        model = _merged(model, adapter)
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
        from safetensors.torch import save_file

        model = merge(self.read(), self.adapters)
        names: dict[int, list[str]] = {}  # an output layer may share its weights with the embedding
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        changed = [each for each in names.values() if any(_is_changed(name, self.adapters) for name in each)]
        tensors = {first: model.get_parameter(first).detach().contiguous() for first, *_ in changed}
        aliases = {name: first for first, *others in changed for name in others}
        save_file(tensors, directory / MERGED, metadata={"format": "pt"})
        (directory / ALIASES).write_text(json.dumps(aliases), encoding="utf-8")


def merged_bytes(adapters: Sequence[Adapter], itemsize: int) -> int:
    """Return about how large the layers are that adapters change."""
    return sum(adapter.fitting.num_params for adapter in adapters if adapter.fitting is not None) * itemsize


def put_in(model: Any, directory: Path, adapters: Sequence[Adapter]) -> Any:
    """Return a model with merged layers in place of its own. They stay mapped to their file."""
    from safetensors.torch import load_file

    for adapter in adapters:
        _resize(model, adapter)
    tensors = load_file(directory / MERGED)
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


def _merged(model: Any, adapter: Adapter) -> Any:
    from peft import PeftModel

    _resize(model, adapter)
    names: dict[str, Any] = {"key_mapping": ADAPTER_KEYS} if adapter.is_of_part else {}
    try:  # on a device of its own choice, peft would put the adapters of all processes of a node onto the first GPU
        adapted = PeftModel.from_pretrained(model, str(adapter.files.directory), torch_device="cpu", **names)
        return adapted.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UsageError(
            f"--adapter {adapter.name} does not fit the model: {first_line(error)} Was it trained on another one?"
        ) from error
