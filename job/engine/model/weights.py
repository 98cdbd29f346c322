"""The weights of a model: which files they are, whether all of them are there, and what identifies them.

Only safetensors are read. A run is refused before anything is fetched or hashed if there are none.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job.engine.model.naming import MODEL_CONFIG
from job.errors import UsageError
from job.remote.model_files import ModelFiles
from job.remote.refusals import not_cached

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
GENERATION_CONFIG = "generation_config.json"

PICKLED = (".bin", ".pt", ".pth")


def check_format(files: ModelFiles) -> None:
    """Check by the names of the files that there are weights that can be used.

    Raises:
        UsageError: there are none.
    """
    if not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in files.names()):
        raise UsageError(_no_weights(files))


def weight_files(files: ModelFiles) -> Sequence[str]:
    """Return the names of the files that transformers loads: one, or the shards that an index lists.

    Raises:
        UsageError: one of them is missing, or is not whole.
    """
    names = _weight_names(files)
    if files.repository is None:
        for name in names:
            check_complete(files.directory / name)
    return names


def _weight_names(files: ModelFiles) -> Sequence[str]:
    first = _settings(files).get("transformers_weights")  # a name that the configuration may give
    main = first or next((name for name in (WEIGHTS, INDEX) if files.has(name)), None)
    if main is None or not files.has(main):
        raise UsageError(_no_weights(files))
    if not main.endswith(".json"):
        return (main,)
    try:
        index = json.loads((files.directory / main).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UsageError(f"--model {files.name}: {main} is not an index of weights. Copy it again.") from None
    if missing := [name for name in names if not files.has(name)]:
        advice = "Copy it again." if files.repository is None else f"The repository lacks it at {files.commit}."
        raise UsageError(f"--model {files.name}: {missing[0]}, which {main} lists, is missing. {advice}")
    return names


def _settings(files: ModelFiles) -> dict[str, Any]:
    """Return the configuration as it is stored."""
    content = json.loads((files.directory / MODEL_CONFIG).read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _no_weights(files: ModelFiles) -> str:
    if files.repository is not None and not files.repository.is_listed:  # the cache may hold a part of it
        return not_cached("model", files.repository.name, files.commit, WEIGHTS)
    names = files.names()
    if pickled := [name for name in names if name.endswith(PICKLED)]:
        return (
            f"--model {files.name} has pickled weights ({pickled[0]}), which can run code when they are loaded. "
            "Convert them: load the model where you trust it, then call save_pretrained, which writes safetensors."
        )
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return (
            f"--model {files.name} has its weights in GGUF files ({gguf[0]}). Name the model that they were made from, "
            "or convert one to a directory of safetensors."
        )
    return f"--model {files.name} has no weights: it contains neither {WEIGHTS} nor {INDEX}. Download or convert them."


def check_complete(file: Path) -> None:
    """Refuse a safetensors file whose size is not the one in its header, as after an interrupted copy.

    Raises:
        UsageError: it is not whole.
    """
    header_bytes, tensors = header_of(file)
    end = max(entry["data_offsets"][1] for entry in tensors.values())
    if file.stat().st_size != 8 + header_bytes + end:
        raise UsageError(
            f"{file} has {file.stat().st_size:,} bytes, but its header says {8 + header_bytes + end:,}. Copy it again."
        )


def header_of(file: Path) -> tuple[int, dict[str, Any]]:
    """Return the size of a safetensors file's header, and what it says of each tensor: shape, dtype, place.

    Raises:
        UsageError: it is not a safetensors file.
    """
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        is_possible = header_bytes <= file.stat().st_size
        return header_bytes, header_in(stream.read(header_bytes) if is_possible else b"", file)


def header_in(content: bytes, what: Path | str) -> dict[str, Any]:
    """Return what the header of a safetensors file says of each tensor.

    Args:
        content: the header.
        what: the file, for messages.

    Raises:
        UsageError: it is not a header.
    """
    try:
        header = json.loads(content)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        if not tensors or any(len(entry["data_offsets"]) != 2 or "shape" not in entry for entry in tensors.values()):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{what} is not a safetensors file. Copy it again.") from None
    return tensors


def identify(files: ModelFiles, weights: Sequence[str], *, trust_remote_code: bool) -> str:
    """Return a hash of the contents that decide what the model computes: weights, configuration, generation settings.

    It is the same for a repository of the Hub and for a copy of it, and any other file may change. A repository's
    weights are neither fetched nor read for it; those in a directory are read once, and then known by their state.

    Args:
        weights: the names of the files with the weights.
        trust_remote_code: whether the model's own code is run, which then counts as well.
    """
    names = [MODEL_CONFIG, *weights]
    if files.has(GENERATION_CONFIG):
        names.append(GENERATION_CONFIG)
    if trust_remote_code and "auto_map" in _settings(files):
        names += files.code()
    names.sort()
    pairs = zip(names, files.hashes(names), strict=True)
    return hashlib.sha256(json.dumps([list(pair) for pair in pairs]).encode()).hexdigest()
