"""What ``--model`` names: a directory with a model, or a Hub id. Explains what else it may be, and what to give."""

import re
from importlib.util import find_spec
from pathlib import Path

from job.errors import UsageError
from job.remote.model_files import ModelFiles
from job.remote.refusals import not_cached

MODEL_CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def check_name(model: str) -> None:
    """Check what can be seen of the path alone.

    Raises:
        UsageError: it is a file, an adapter, or another directory than that of a model.
    """
    path = Path(model)
    if path.is_file():
        advice = "Convert it to a directory of safetensors." if path.suffix == ".gguf" else f"Name it: {path.parent}."
        raise UsageError(f"--model {model} is a file; it must be the directory of a model. {advice}")
    if not path.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise UsageError(f"--model {model}: there is no such directory. Check the path.")
        if not HUB_ID.fullmatch(model):
            advice = "Write out the variable: nothing replaces it here." if "$" in model else "Check the path."
            raise UsageError(f"--model {model}: there is no such directory, and it cannot be a Hub id. {advice}")
        return
    if (path / MODEL_CONFIG).is_file():
        return
    if (path / ADAPTER_CONFIG).is_file():
        raise UsageError(_is_adapter(model))
    inside = sorted(str(found.parent) for found in path.glob(f"*/{MODEL_CONFIG}"))
    inside += sorted(str(found.parent) for found in path.glob(f"snapshots/*/{MODEL_CONFIG}"))  # a repository in a cache
    advice = f"Perhaps you mean {inside[-1]}." if inside else "Name the directory that save_pretrained wrote."
    raise UsageError(f"--model {model} has no {MODEL_CONFIG}, so it is not the directory of a model. {advice}")


def check_adapter_name(adapter: str) -> None:
    """Check what can be seen of the path of an adapter alone.

    Raises:
        UsageError: it is a file, or neither a directory nor an id of the Hub.
    """
    path = Path(adapter)
    if path.is_file():
        raise UsageError(f"--adapter {adapter} is a file. Name its directory: {path.parent}.")
    if path.is_dir():
        return
    is_path = adapter.startswith((".", "/", "~")) or adapter.partition("@")[0].count("/") > 1
    if is_path or not HUB_ID.fullmatch(adapter.partition("@")[0]):
        raise UsageError(f"--adapter {adapter}: there is no such directory. Check the path.")


def check_repository(files: ModelFiles) -> None:
    """Check by the names of its files that a repository of the Hub is that of a model.

    Raises:
        UsageError: it is an adapter, or something else.
    """
    if files.repository is None or files.has(MODEL_CONFIG):
        return
    if files.has(ADAPTER_CONFIG):
        raise UsageError(_is_adapter(files.name))
    if not files.repository.is_listed:  # the cache may hold a part of it
        raise UsageError(not_cached("model", files.repository.name, files.commit, MODEL_CONFIG))
    if any(name.endswith(".gguf") for name in files.names()):
        raise UsageError(
            f"--model {files.name} holds GGUF files and no {MODEL_CONFIG}. Name the model that they were made from."
        )
    raise UsageError(f"--model {files.name} has no {MODEL_CONFIG}, so it is not a model that transformers loads.")


def check_no_adapter(files: ModelFiles) -> None:
    """Check that nothing but the model's own weights will be loaded: transformers also loads an adapter that lies
    beside them, if peft is installed, and the adapter is not part of what identifies the model.

    Raises:
        UsageError: there is one, and peft is installed.
    """
    adapter = files.directory / ADAPTER_CONFIG
    if adapter.is_file() and find_spec("peft") is not None:
        raise UsageError(
            f"--model {files.name} has an adapter beside its weights ({adapter}), which would be loaded on top of "
            "them, since peft is installed. Move it to another directory; to use it, give that as --adapter."
        )


def _is_adapter(model: str) -> str:
    return (
        f"--model {model} is an adapter (LoRA or the like), not a whole model. Give it as --adapter {model}; --model "
        "is the model that it was trained on, and may be left out if the adapter names that."
    )
