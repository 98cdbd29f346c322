"""Adapters (LoRA and its relatives): checked before any weights are loaded, then merged into the model by peft.

They are merged on the host, in the dtype of the checkpoint, before the model is cut. Merged layers are private memory
of each process.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from job.engine.model.naming import ADAPTER_CONFIG
from job.engine.model.weights import check_complete, header_of
from job.errors import UsageError, first_line
from job.launch.activity import doing
from job.remote.contents import hashes_of

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"

CHANGED_BASES = ("corda", "loftq")
"""Ways to begin the training of an adapter that change the model, and that peft cannot repeat when it loads one."""

EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "lm_head", "embed_out")
"""What input embeddings and output layers are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter in a directory."""

    directory: Path
    digest: str
    """SHA-256 of its configuration and of its weights, with a space between."""
    rank: int
    num_rows: int | None
    """How many tokens its embedding or output layer has, if it brings one."""

    @property
    def has_tokenizer(self) -> bool:
        """Whether it brings a tokenizer, which then takes the place of the model's."""
        return (self.directory / "tokenizer_config.json").is_file()

    def describe(self) -> str:
        """Return what it is in a line for the user."""
        own = "; its tokenizer and chat template take the place of the model's" if self.has_tokenizer else ""
        return f"adapter {self.directory}, rank {self.rank}, is merged into the model{own}"


def inspect_adapters(names: Sequence[str], hf_config: Any) -> tuple[Adapter, ...]:
    """Read and check adapters, in the order in which they are merged.

    Args:
        names: directories.
        hf_config: the configuration of the model.

    Raises:
        UsageError: one is missing or cannot be merged, or peft is not installed.
    """
    if names and find_spec("peft") is None:
        raise UsageError(
            "--adapter needs a package that is not installed. Run: pip install 'dataset-inference-job[adapter]'"
        )
    return tuple(_inspect(name, hf_config) for name in names)


def merge(model: Any, adapters: Sequence[Adapter]) -> Any:
    """Return a model with the adapters merged into its weights, which are changed in place.

    Raises:
        UsageError: an adapter does not fit the model.
    """
    for adapter in adapters:
        doing(f"merging {adapter.directory}")
        model = _merged(model, adapter)
    return model


def _merged(model: Any, adapter: Adapter) -> Any:
    from peft import PeftModel

    if adapter.num_rows is not None and adapter.num_rows != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(adapter.num_rows, mean_resizing=False)
    try:
        return PeftModel.from_pretrained(model, str(adapter.directory)).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UsageError(
            f"--adapter {adapter.directory} does not fit the model: {first_line(error)} Was it trained on another one?"
        ) from error


def _inspect(name: str, hf_config: Any) -> Adapter:
    directory = Path(name)
    settings = _settings(name, directory)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise UsageError(f"--adapter {name} is of the kind {kind}; only LORA (with DoRA and rsLoRA) can be merged.")
    if settings.get("init_lora_weights") in CHANGED_BASES:
        raise UsageError(
            f"--adapter {name} was begun with {settings['init_lora_weights']}, which also changes the model that it is "
            "for. Convert it to a plain LoRA with peft, or merge it where it was trained."
        )
    shapes = _shapes(name, directory)
    tied = next((key for key in shapes if ".lora_" in key and _layer(key) in EMBEDDINGS), None)
    if tied is not None and getattr(hf_config.get_text_config(), "tie_word_embeddings", False):
        raise UsageError(
            f"--adapter {name} changes {_layer(tied)}, but the model's embedding and its output layer are the same "
            "weights, which a merge would change twice. It cannot be used here."
        )
    saved = (key for key in shapes if _layer(key) in EMBEDDINGS and ".lora_" not in key and key.endswith(".weight"))
    rows = next((shapes[key][0] for key in saved), None)
    config, weights = hashes_of([directory / ADAPTER_CONFIG, directory / WEIGHTS], name)
    return Adapter(directory=directory, digest=f"{config} {weights}", rank=int(settings.get("r", 0)), num_rows=rows)


def _settings(name: str, directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise UsageError(
            f"--adapter {name}: there is no such directory. Check the path; an adapter of the Hub is fetched with "
            f"'hf download {name} --local-dir DIR' first."
        )
    path = directory / ADAPTER_CONFIG
    if not path.is_file():
        found = sorted(str(each.parent) for each in directory.glob(f"*/{ADAPTER_CONFIG}"))
        advice = f"Perhaps you mean {found[-1]}." if found else "Name the directory that peft's save_pretrained wrote."
        raise UsageError(f"--adapter {name} has no {ADAPTER_CONFIG}, so it is not an adapter. {advice}")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise UsageError(f"--adapter {name}: {ADAPTER_CONFIG} is not a JSON object. Copy it again.")
    return settings


def _shapes(name: str, directory: Path) -> dict[str, list[int]]:
    """Return the shapes of its tensors, from the header of the file."""
    path = directory / WEIGHTS
    if not path.is_file():
        if (directory / PICKLED).is_file():
            raise UsageError(
                f"--adapter {name} has pickled weights ({PICKLED}), which can run code when they are loaded. Load it "
                "where you trust it and call save_pretrained, which writes safetensors."
            )
        raise UsageError(f"--adapter {name} has no {WEIGHTS}. Copy it again.")
    check_complete(path)
    _, tensors = header_of(path)
    return {key: entry["shape"] for key, entry in tensors.items()}


def _layer(key: str) -> str:
    """Return the name of the layer that a tensor belongs to.

    >>> _layer("base_model.model.lm_head.lora_A.weight"), _layer("base_model.model.model.embed_tokens.weight")
    ('lm_head', 'embed_tokens')
    """
    return next((part for part in key.split(".") if part in EMBEDDINGS), "")
