"""Reads the weights of a model onto the host: memory-mapped, in the dtype of their checkpoint, and all of them."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

from job.config import ModelConfig
from job.engine.model.heads import without_unused
from job.engine.model.info import ModelInfo
from job.engine.model.kinds import CAUSAL
from job.engine.model.text_part import how_to_read
from job.errors import UsageError
from job.launch.activity import doing
from job.remote.model_code import code_options, why_unreadable

SHOWN_KEYS = 3
"""How many of the weights that are not used are named."""


def read_weights(config: ModelConfig, info: ModelInfo, note: Callable[[str], object] = str) -> Any:
    """Load a model on the host in the dtype of its checkpoint. Fetches weights that are not here yet.

    Args:
        note: is given a line on weights that the model has no place for, if there are any.

    Raises:
        UsageError: weights are missing; transformers would fill them with random numbers and only warn.
    """
    # Never let transformers ask a public service to convert pickled weights, as it does for repositories of the Hub.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    import transformers

    directory = info.files.directory
    if info.dense_weights is None:
        info.files.fetch(info.weights)
    else:
        directory = info.dense_weights.directory()
    doing(f"reading the weights of {config.model}")
    part = how_to_read(info.config, is_dense=info.dense_weights is not None) if info.whole_type is not None else {}
    try:
        with _counting_tensors(config.model):
            model, report = getattr(transformers, info.kind.auto_class).from_pretrained(
                directory,
                **code_options(info.files, config.trust_remote_code),
                dtype="auto",
                attn_implementation=_attention_of(info.config),
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report; transformers' own error names none of them
                **part,
            )
    except Exception as error:  # OSError, SafetensorError, ValueError, ...: from reading files and building modules
        raise UsageError(
            f"--model {config.model}: the weights cannot be loaded: {why_unreadable(info.files, error)}"
        ) from error
    unused = tuple(f"{name}." for name in info.kind.unused)
    missing = [key for key in report["missing_keys"] if not key.startswith(unused)]  # all of them, if none is unused
    if report["mismatched_keys"]:
        key, stored, needed = min(
            (str(key), list(stored), list(needed)) for key, stored, needed in report["mismatched_keys"]
        )
        raise UsageError(
            f"--model {config.model} has {len(report['mismatched_keys'])} weights of another shape than its "
            f"configuration asks for, such as {key}: {stored}, not {needed}. Copy the model again."
        )
    lacking = sorted(missing)
    if lacking:
        raise UsageError(
            f"--model {config.model} lacks {len(lacking)} weights of {type(model).__name__}, such as {lacking[0]}. "
            f"It is incomplete, or not {info.kind.phrase}."
        )
    if info.kind is CAUSAL and info.whole_type is None:  # otherwise what else there is does not belong to this model
        _note_unexpected(sorted(report["unexpected_keys"]), note)
    without_unused(model, info.kind)
    return model


def _note_unexpected(keys: Sequence[str], note: Callable[[str], object]) -> None:
    if keys:
        more = " and others" if len(keys) > SHOWN_KEYS else ""
        note(
            f"the model has no place for {len(keys):,} of its weights, which are left out: "
            f"{', '.join(keys[:SHOWN_KEYS])}{more}. Is its configuration the one that belongs to them?"
        )


@contextlib.contextmanager
def _counting_tensors(name: str) -> Iterator[None]:
    """Follow how far transformers is, through the seam that it has for progress bars. (Some releases have none.)"""
    from transformers.utils import logging

    set_hook = getattr(logging, "set_tqdm_hook", None)
    if set_hook is None:
        yield
        return

    def count(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not (args and isinstance(args[0], Sized)):
            return factory(*args, **kwargs)
        return factory(counted(args[0]), *args[1:], **{"total": len(args[0]), **kwargs})

    def counted(values: Any) -> Iterator[Any]:
        for idx, value in enumerate(values):
            doing(f"reading the weights of {name}", f"{idx:,} of {len(values):,} tensors")
            yield value

    previous = set_hook(count)
    try:
        yield
    finally:
        set_hook(previous)


def _attention_of(hf_config: Any) -> str | None:
    """Return the attention to load a model with; None is its default.

    Some releases of transformers (5.17) give Gemma 2 torch's fused attention, which ignores its soft-capping.
    """
    return "eager" if getattr(hf_config.get_text_config(), "attn_logit_softcapping", None) else None
