"""Adapters as they are stored: configuration and names of tensors, read and checked before any weights are loaded."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from job.engine.model.adapters.fitting import PREFIX, WRAPPERS, Fitting, fitting_of
from job.engine.model.adapters.kinds import check_kind
from job.engine.model.kinds import ModelKind
from job.engine.model.naming import ADAPTER_CONFIG, MODEL_CONFIG
from job.engine.model.text_part import tensors_of_part
from job.engine.model.weights import check_complete, header_in, header_of
from job.errors import UsageError
from job.remote.model_files import ModelFiles
from job.remote.refusals import of_adapter

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"

EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "shared", "lm_head", "embed_out")
"""What input embeddings and output layers are called."""

OF_PEFT = ("lora_", "hada_", "lokr_", "ia3_", "oft_", "hra_", "miss_", "vera_", "trainable_tokens", "ranknum")
"""How the parts of names begin that peft adds."""

MAX_TARGETS = 8
"""So many layers are named in a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter."""

    files: ModelFiles
    digest: str
    """SHA-256 of its configuration and of its weights, with a space between."""
    kind: str
    """Its ``peft_type``."""
    rank: int | None
    targets: tuple[str, ...]
    """The names of the layers that it changes, without their places."""
    base: str | None
    """The model that it was trained on, as its configuration names it."""
    num_rows: int | None
    """How many tokens its embedding or output layer has, if it brings one."""
    unties: bool
    """Whether it brings weights of its own for an embedding or an output layer that share theirs."""
    fitting: Fitting | None
    """What of the model it changes; None if the model cannot be built without weights."""
    is_of_part: bool = False
    """Whether the model is the language model of a larger one, by whose names it may call its tensors."""

    @property
    def name(self) -> str:
        """What the user typed."""
        return self.files.name

    def adapted(self, config: Any) -> Any:
        """Return transformers' configuration of a model once the adapter is merged into it."""
        if self.num_rows is None and not self.unties:
            return config
        config = copy.deepcopy(config)
        for part in (config, config.get_text_config()):
            if self.num_rows is not None:
                part.vocab_size = self.num_rows
            if self.unties:
                part.tie_word_embeddings = False
        return config

    @property
    def has_tokenizer(self) -> bool:
        """Whether it brings a tokenizer, which then takes the place of the model's."""
        return has_tokenizer(self.files)

    def describe(self) -> str:
        """Return what it is in a line for the user."""
        rank = "" if self.rank is None else f", rank {self.rank}"
        more = f" and {len(self.targets) - MAX_TARGETS} more" if len(self.targets) > MAX_TARGETS else ""
        targets = f" ({', '.join(self.targets[:MAX_TARGETS])}{more})" if self.targets else ""
        own = "; its tokenizer and chat template take the place of the model's" if self.has_tokenizer else ""
        at = f" at commit {self.files.commit[:12]}" if self.files.commit else ""
        return f"adapter {self.name}{at}, {self.kind}{rank}, is merged into the model{targets}{own}"


def has_tokenizer(files: ModelFiles) -> bool:
    """Whether there is a tokenizer among an adapter's files."""
    return files.has("tokenizer_config.json")


def base_of(adapters: Sequence[ModelFiles]) -> tuple[str, str | None]:
    """Return the model that adapters were trained on, and its revision, by what their configurations say.

    Raises:
        UsageError: none of them names it, or they name different ones.
    """
    found = {}
    for files in adapters:
        settings = _settings(files)
        if settings.get("base_model_name_or_path"):
            found[str(settings["base_model_name_or_path"]), settings.get("revision") or None] = files.name
    if len({name for name, _ in found}) == 1:
        return next(iter(found))
    names = [f"{base} ({name})" for (base, _), name in found.items()]
    problem = f"name different models: {', '.join(names)}" if names else "does not name its model"
    raise UsageError(f"--adapter {adapters[0].name} {problem}. Give --model.")


def inspect_adapters(
    adapters: Sequence[ModelFiles],
    config: Any,
    kind: ModelKind,
    *,
    trust_remote_code: bool = False,
    is_part: bool = False,
) -> tuple[Adapter, ...]:
    """Read and check adapters, in the order in which they are merged. Of the Hub, only small files are fetched.

    Args:
        config: transformers' configuration of the model.
        kind: what the model is loaded as.
        trust_remote_code: whether the model's own code is run.
        is_part: whether it is the language model of a larger one.

    Raises:
        UsageError: one is missing or cannot be merged, or peft is not installed.
    """
    if adapters and find_spec("peft") is None:
        raise UsageError(
            "--adapter needs a package that is not installed. Run: pip install 'dataset-inference-job[adapter]'"
        )
    found = []
    for files in adapters:
        with of_adapter(files.name):
            adapter = _inspect(files, config, kind, trust_remote_code=trust_remote_code, is_part=is_part)
        config = adapter.adapted(config)
        found.append(adapter)
    return tuple(found)


def adapted_config(config: Any, adapters: Sequence[Adapter]) -> Any:
    """Return the configuration of a model once adapters are merged into it."""
    for adapter in adapters:
        config = adapter.adapted(config)
    return config


def _inspect(files: ModelFiles, config: Any, kind: ModelKind, *, trust_remote_code: bool, is_part: bool) -> Adapter:
    name, settings = files.name, _settings(files)
    check_kind(name, settings)
    shapes = tensors_of_part(_shapes(files), PREFIX) if is_part else _shapes(files)
    is_tied = bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
    changed = next((key for key in shapes if _layer(key) in EMBEDDINGS and not _is_whole(key)), None)
    if is_tied and changed is not None:
        raise UsageError(
            f"--adapter {name} changes {_layer(changed)}, but the model's embedding and its output layer are the same "
            "weights, which a merge would change twice. It cannot be used here."
        )
    saved = [key for key in shapes if _layer(key) in EMBEDDINGS and key.endswith(".weight") and _is_whole(key)]
    num_rows = next((shapes[key][0] for key in saved), None)
    _check_tokens(name, settings, num_rows or config.get_text_config().vocab_size)
    if has_tokenizer(files):
        files.fetch_settings(with_code=False)
    digests = files.hashes([ADAPTER_CONFIG, WEIGHTS])
    rank = settings.get("r")
    adapter = Adapter(
        files=files,
        digest=" ".join(digests),
        kind=_kind(settings),
        rank=rank if isinstance(rank, int) else None,
        targets=tuple(sorted({target for key in shapes if (target := _target(key))})),
        base=settings.get("base_model_name_or_path") or None,
        num_rows=num_rows,
        unties=is_tied and bool(saved),
        fitting=None,
        is_of_part=is_part,
    )
    whole = adapter.adapted(config)
    fitting = fitting_of(name, files.directory, whole, kind, shapes, trust_remote_code=trust_remote_code)
    return replace(adapter, fitting=fitting)


def _kind(settings: Mapping[str, Any]) -> str:
    """Return the kind in words people use.

    >>> _kind({"peft_type": "LORA", "use_dora": True}), _kind({"peft_type": "IA3"})
    ('DoRA', 'IA3')
    """
    names = {"LORA": "LoRA", "ADALORA": "AdaLoRA", "LOHA": "LoHa", "LOKR": "LoKr", "MISS": "MiSS", "VERA": "VeRA"}
    kind = str(settings["peft_type"])
    if kind == "LORA" and settings.get("use_dora"):
        return "DoRA"
    return "rsLoRA" if kind == "LORA" and settings.get("use_rslora") else names.get(kind, kind)


def _check_tokens(name: str, settings: Mapping[str, Any], num_rows: int) -> None:
    """Check that the model has the tokens that an adapter trains one by one.

    Raises:
        UsageError: it has fewer.
    """
    given = settings.get("trainable_token_indices") or settings.get("token_indices") or []
    lists = given.values() if isinstance(given, dict) else [given]
    largest = max((idx for each in lists for idx in each), default=-1)
    if largest >= num_rows:
        raise UsageError(
            f"--adapter {name} trains the token {largest}, but the model has only {num_rows:,} tokens, and the adapter "
            "brings no larger embedding. Save it with save_embedding_layers=True."
        )


def _settings(files: ModelFiles) -> dict[str, Any]:
    name = files.name
    if not files.has(ADAPTER_CONFIG):
        found = [] if files.repository else sorted(files.directory.glob(f"*/{ADAPTER_CONFIG}"))
        advice = "Name the directory that peft's save_pretrained wrote."
        if files.has(MODEL_CONFIG):
            advice = f"It is a whole model: give it as --model {name}."
        elif found:
            advice = f"Perhaps you mean {found[-1].parent}."
        raise UsageError(f"--adapter {name} has no {ADAPTER_CONFIG}, so it is not an adapter. {advice}")
    if files.repository is not None:
        files.repository.fetch([ADAPTER_CONFIG])
    try:
        settings = json.loads((files.directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise UsageError(f"--adapter {name}: {ADAPTER_CONFIG} is not a JSON object. Copy it again.")
    return settings


def _shapes(files: ModelFiles) -> dict[str, list[int]]:
    """Return the shapes of its tensors, from the header of the file."""
    if not files.has(WEIGHTS):
        if files.has(PICKLED):
            raise UsageError(
                f"--adapter {files.name} has pickled weights ({PICKLED}), which can run code when they are loaded. "
                "Load it where you trust it and call save_pretrained, which writes safetensors."
            )
        raise UsageError(f"--adapter {files.name} has no {WEIGHTS}. Copy it again.")
    if files.repository is None:
        check_complete(files.directory / WEIGHTS)
        _, tensors = header_of(files.directory / WEIGHTS)
    else:
        tensors = _header_on_hub(files)
    return {key: entry["shape"] for key, entry in tensors.items()}


def _header_on_hub(files: ModelFiles) -> dict[str, Any]:
    """Return what the header of its weights says, without fetching the rest."""
    repository = files.repository
    assert repository is not None
    num_bytes = int.from_bytes(repository.read(WEIGHTS, 0, 8), "little")
    if num_bytes > files.num_bytes([WEIGHTS]):
        num_bytes = 0
    return header_in(repository.read(WEIGHTS, 8, 8 + num_bytes), f"{WEIGHTS} of {files.name}")


def _layer(key: str) -> str:
    """Return which embedding or output layer a tensor belongs to; empty if to none.

    >>> _layer("base_model.model.lm_head.lora_A.weight"), _layer("base_model.model.model.embed_tokens.weight")
    ('lm_head', 'embed_tokens')
    """
    return next((part for part in key.split(".") if part in EMBEDDINGS), "")


def _is_whole(key: str) -> bool:
    """Whether a tensor takes the place of one of an embedding, wholly or in rows.

    >>> _is_whole("base_model.model.lm_head.weight"), _is_whole("base_model.model.lm_head.lora_A.weight")
    (True, False)
    """
    rest = key.partition(f".{_layer(key)}.")[2].split(".")
    return {*rest} <= {*WRAPPERS, "weight", "bias"} or any(part.startswith("trainable_tokens") for part in rest)


def _target(key: str) -> str:
    """Return the name of the layer that a tensor belongs to, without its place.

    >>> _target("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"), _target("base_model.vera_A")
    ('q_proj', '')
    """
    parts = key.removeprefix(PREFIX).split(".")
    own = (*WRAPPERS, "weight", "bias")
    names = [part for part in parts if not part.startswith(OF_PEFT) and part not in own]
    return names[-1] if len(parts) > 1 and names and key.startswith(PREFIX) else ""
