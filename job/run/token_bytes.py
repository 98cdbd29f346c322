"""The text of a run's tokens, for who looks at it without its model loaded."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from job.data.tokenizer import Tokenizer, load_tokenizer
from job.engine.model.adapters.adapter import has_tokenizer
from job.errors import UsageError
from job.output.parts.manifest import Manifest
from job.remote.hub import pin
from job.remote.model_files import ModelFiles
from job.run.pinned import adapter_files


def token_bytes_of(manifest: Manifest) -> Callable[[int], bytes]:
    """Return what gives the text of a token in UTF-8, from the tokenizer of a run's model.

    Raises:
        UsageError: the model is not there any more, or its tokenizer is another one.
        Unavailable: the Hub does not answer.
    """
    files = _files_of(manifest)
    files.fetch_settings(with_code=False)
    inner = load_tokenizer(files, trust_remote_code=False)
    tokenizer = Tokenizer(inner, chat_template=manifest.section("prompt")["chat_template"])
    if tokenizer.digest != manifest.section("model")["tokenizer"]:
        raise UsageError(f"the tokenizer of {files.name} is not the one of this run any more")
    return lru_cache(None)(tokenizer.token_bytes())


def _files_of(manifest: Manifest) -> ModelFiles:
    """Return where the tokenizer is: with the last adapter that brings one, or the model."""
    about = manifest.about
    pairs = zip(about.get("adapter", []), about.get("adapter_commits", []), strict=True)
    for adapter, commit in reversed(list(pairs)):
        files = adapter_files(adapter, commit)
        if has_tokenizer(files):
            return files
    name, commit = about["model"], about.get("model_commit") or about["revision"]
    return ModelFiles(name=name, repository=None if Path(name).is_dir() else pin("model", name, commit))
