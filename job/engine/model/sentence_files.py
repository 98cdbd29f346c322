"""What sentence-transformers stores beside a model: how vectors are pooled, which layers come after that, and which
texts come before a text.

Formats: ``modules.json``, ``config.json`` of its Pooling and Dense modules, ``config_sentence_transformers.json`` and
``sentence_bert_config.json``, as versions 2 to 6 write them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from job.errors import UsageError
from job.remote.model_files import ModelFiles
from job.tasks.head import DenseLayer, Head

MODULES, PROMPTS, LENGTH = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"

_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How versions before 6 say it: each of these may be true."""

_POOLINGS = {"cls": "cls", "mean": "mean", "weightedmean": "weighted-mean", "lasttoken": "last"}

_VECTOR = "sentence_embedding"
"""The name of the pooled vector, which dense layers change."""

ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
"""Classes of torch that may follow a dense layer."""

_ORDER = re.compile(r"Transformer( Pooling( Dense)*( Normalize)?)?")
"""The modules that are served, in their order."""


def read_sentence_files(files: ModelFiles, head: Head) -> Head:
    """Return a model's head with what these files say, if they are there.

    Raises:
        UsageError: they ask for what is not served, or cannot be read.
    """
    if not files.has(MODULES):
        return head
    modules = _read(files, MODULES)
    try:
        kinds = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
    except (TypeError, KeyError):
        raise UsageError(f"--model {files.name}: {MODULES} is not a list of modules with type and path.") from None
    unknown = [kind for kind, _ in kinds if kind not in ("Transformer", "Pooling", "Dense", "Normalize")]
    order = " ".join(kind for kind, _ in kinds)
    if unknown or not _ORDER.fullmatch(order) or kinds[0][1]:
        is_moved = _ORDER.fullmatch(order) is not None
        what = unknown[0] if unknown else "a Transformer in a folder of its own" if is_moved else f"the order {order}"
        raise UsageError(
            f"--model {files.name}: its {MODULES} has {what}, and --task embed serves a Transformer, Pooling, Dense "
            "and Normalize, in this order. Use sentence-transformers for this model."
        )
    for kind, path in kinds:
        if kind == "Pooling":
            head = _with_pooling(files, head, f"{path}/config.json")
        if kind == "Dense":
            head = _with_dense(files, head, path)
    if files.has(LENGTH):
        head = replace(head, lowers_case=bool(_read(files, LENGTH).get("do_lower_case")))
    if files.has(PROMPTS):
        found = _read(files, PROMPTS)
        prompts = {name: text for name, text in (found.get("prompts") or {}).items() if text}
        usual = found.get("default_prompt_name")
        head = replace(head, prompts=prompts, usual_prompt=usual if usual in prompts else None)
    return replace(head, normalizes=("Normalize" in dict(kinds)))


def longest_text(files: ModelFiles) -> int | None:
    """Return the number of tokens to which sentence-transformers cuts texts, if its files say that."""
    if not (files.has(MODULES) and files.has(LENGTH)):
        return None
    value = _read(files, LENGTH).get("max_seq_length")
    return value if isinstance(value, int) else None


def _with_pooling(files: ModelFiles, head: Head, name: str) -> Head:
    config = _read(files, name)
    modes = config.get("pooling_mode") or [mode for flag, mode in _FLAGS.items() if config.get(flag)] or "mean"
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) > 1 or modes[0] not in _POOLINGS:
        raise UsageError(
            f"--model {files.name}: {name} asks for the pooling {' and '.join(map(str, modes))}; "
            f"--task embed serves {', '.join(_POOLINGS)}. Use sentence-transformers for this model."
        )
    return replace(head, pooling=_POOLINGS[modes[0]], pools_prompt=bool(config.get("include_prompt", True)))


def _with_dense(files: ModelFiles, head: Head, folder: str) -> Head:
    name = f"{folder}/config.json"
    config = _read(files, name)
    try:
        layer = DenseLayer(
            folder=folder,
            num_in=int(config["in_features"]),
            num_out=int(config["out_features"]),
            has_bias=bool(config.get("bias", True)),
            activation=str(config.get("activation_function", "Tanh")).rpartition(".")[2],
        )
    except (TypeError, KeyError, ValueError):
        raise UsageError(f"--model {files.name}: {name} does not say how large the layer is. Copy it again.") from None
    other = next(
        (key for key in ("module_input_name", "module_output_name") if config.get(key, _VECTOR) != _VECTOR), ""
    )
    if layer.activation not in ACTIVATIONS or other:
        what = f"{other} {config[other]!r}" if other else f"the activation {layer.activation}"
        raise UsageError(f"--model {files.name}: {name} has {what}, which is not served. Use sentence-transformers.")
    if layer.num_in != head.size:
        raise UsageError(
            f"--model {files.name}: {name} is for vectors of {layer.num_in}, and the model's have {head.size}."
        )
    if not files.has(layer.weights):
        raise UsageError(
            f"--model {files.name}: {layer.weights} is missing. (Pickled weights are not read: load the model with "
            "sentence-transformers where you trust it, then call save_pretrained.)"
        )
    return replace(head, dense=(*head.dense, layer), size=layer.num_out)


def _read(files: ModelFiles, name: str) -> Any:
    path = files.directory / name
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--model {files.name}: {name} cannot be read: {error}. Copy it again.") from None
    return found
