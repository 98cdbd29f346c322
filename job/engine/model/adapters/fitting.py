"""Whether an adapter fits a model, by names and shapes alone: both are built on a device that has no memory.

peft itself only warns of tensors that are missing, and says nothing of those that it does not need.
"""

import copy
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from job.engine.model.kinds import ModelKind
from job.errors import UsageError, first_line

PREFIX = "base_model.model."
"""How peft's names of tensors begin."""

ANOTHER = "Was it trained on another model?"

WRAPPERS = ("base_layer", "modules_to_save", "original_module")
"""What peft calls the module that it has put another one around."""

BEGINNINGS = ("init_lora_weights", "init_weights", "init_ia3_weights")
"""Settings of how training begins, some of which compute with the model's weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """What of a model an adapter changes."""

    modules: tuple[str, ...]
    num_params: int
    """The parameters of these modules."""


def fitting_of(
    name: str,
    directory: Path,
    config: Any,
    kind: ModelKind,
    shapes: Mapping[str, list[int]],
    *,
    trust_remote_code: bool,
) -> Fitting | None:
    """Return what an adapter changes of a model; None if the model cannot be built without its weights.

    Args:
        name: the adapter's, for messages.
        directory: has its configuration.
        config: transformers' configuration of the model, with as many tokens as the adapter brings.
        shapes: of the adapter's tensors, by their names.

    Raises:
        UsageError: it does not fit.
    """
    model = _without_weights(config, kind, trust_remote_code=trust_remote_code)
    if model is None:
        return None
    parameters = {key: value.numel() for key, value in model.named_parameters()}
    own = {key: list(value.shape) for key, value in model.state_dict().items()}
    modules = {key: module for key, module in model.named_modules() if key}
    touched = {found for key in shapes if (found := _module_of(key, modules))}
    _check_biases(name, shapes, modules)
    wanted = _wanted(name, directory, model)
    if wanted is not None:
        _compare(name, wanted, shapes, own)
    num_params = sum(size for key, size in parameters.items() if is_below(key, touched))
    return Fitting(modules=tuple(sorted(touched)), num_params=num_params)


def is_below(key: str, modules: Iterable[str]) -> bool:
    """Whether a parameter belongs to one of some modules.

    >>> is_below("layers.0.mlp.up_proj.weight", ["layers.0.mlp"]), is_below("layers.10.weight", ["layers.1"])
    (True, False)
    """
    return any(key.startswith(f"{module}.") for module in modules)


def _without_weights(config: Any, kind: ModelKind, *, trust_remote_code: bool) -> Any:
    import transformers

    try:
        with torch.device("meta"):
            return getattr(transformers, kind.auto_class).from_config(
                copy.deepcopy(config), trust_remote_code=trust_remote_code
            )
    except (ValueError, TypeError, AttributeError, ImportError, KeyError, RuntimeError, OSError):
        return None  # of code that comes with the model, or of a missing library: loading it will report it


def _wanted(name: str, directory: Path, model: Any) -> Mapping[str, list[int]] | None:
    """Return the shapes of the tensors that peft would store of such an adapter; None if that needs weights."""
    import peft
    from peft.utils import get_peft_model_state_dict

    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            settings = peft.PeftConfig.from_pretrained(str(directory))
            for beginning in BEGINNINGS:
                if hasattr(settings, beginning):
                    setattr(settings, beginning, False)
            adapted = peft.get_peft_model(model, settings)
            found = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"--adapter {name} does not fit the model: {first_line(error)} {ANOTHER}") from error
    except (RuntimeError, NotImplementedError):
        return None
    return {key: list(tensor.shape) for key, tensor in found.items()}


def _compare(
    name: str, wanted: Mapping[str, list[int]], shapes: Mapping[str, list[int]], own: Mapping[str, list[int]]
) -> None:
    """Check that an adapter has the tensors that it needs, in their shapes, and no others.

    Args:
        own: the shapes of the model's own tensors; an adapter may bring some of them whole.

    Raises:
        UsageError: it has not.
    """
    known = {key: own[found] for key in shapes if (found := _own_name(key)) in own} | dict(wanted)
    unlike = [key for key, shape in shapes.items() if key in known and shape != known[key]]
    unknown, missing = sorted(shapes.keys() - known.keys()), sorted(wanted.keys() - shapes.keys())
    if unlike:
        key = unlike[0]
        raise UsageError(
            f"--adapter {name} does not fit the model: {key.removeprefix(PREFIX)} has the shape {shapes[key]}, and the "
            f"model needs {known[key]}. {ANOTHER}"
        )
    if unknown:
        raise UsageError(
            f"--adapter {name} does not fit the model: it has {len(unknown)} tensors that belong to nothing there, "
            f"such as {unknown[0].removeprefix(PREFIX)}. {ANOTHER}"
        )
    if missing:
        raise UsageError(
            f"--adapter {name} lacks {len(missing)} of the tensors that its configuration and the model ask for, "
            f"such as {missing[0].removeprefix(PREFIX)}. Copy it again. {ANOTHER}"
        )


def _own_name(key: str) -> str:
    """Return what the model calls a tensor that an adapter brings whole.

    >>> _own_name("base_model.model.lm_head.base_layer.weight")
    'lm_head.weight'
    """
    return ".".join(part for part in key.removeprefix(PREFIX).split(".") if part not in WRAPPERS)


def _module_of(key: str, modules: Mapping[str, Any]) -> str:
    """Return the name of the module that a tensor belongs to; empty if it belongs to the adapter as a whole."""
    path = key.removeprefix(PREFIX).split(".")
    names = (".".join(path[:length]) for length in range(len(path) - 1, 0, -1))
    return next((name for name in names if name in modules), "")


def _check_biases(name: str, shapes: Mapping[str, list[int]], modules: Mapping[str, Any]) -> None:
    """Check that trained biases can be merged into those of the model.

    Raises:
        UsageError: the model has none.
    """
    for key in shapes:
        layer = _module_of(key, modules)
        if key.endswith(".lora_B.bias") and layer and getattr(modules[layer], "bias", None) is None:
            raise UsageError(
                f"--adapter {name} has lora_bias: it trains a bias of {layer}, which has none in the model, so it "
                "cannot be merged."
            )
