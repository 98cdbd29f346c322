"""Where the files of a model are: in a directory, or in a repository of the Hub at one commit.

transformers always reads a directory. Of a repository, this is the snapshot in the Hub's cache, into which only what is
needed is fetched: first the small files, and the weights once nothing else can refuse the run.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from job.launch.activity import doing
from job.remote.contents import hashes_of
from job.remote.hub import HubRepository

SETTINGS_ENDINGS = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".vocab", ".bpe", ".spm")
"""Of the files of configurations, generation settings, tokenizers and chat templates."""

NOT_SETTINGS = ("adapter_config.json", "trainer_state.json")
"""An adapter beside the weights would be loaded on top of them if peft is installed; the other can be large."""

TEMPLATES_DIR = "additional_chat_templates"

MODULE_CONFIG = re.compile(r"\d+_[A-Z]\w*/config\.json")
"""Of a module of sentence-transformers, such as ``1_Pooling/config.json``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The files of a model at one state. A small value, the same on all processes of a launch."""

    name: str
    """What the user typed, for messages."""
    repository: HubRepository | None = None
    """None if ``name`` is a directory."""
    adapters: tuple["ModelFiles", ...] = ()
    """Of the adapters that are merged into the model, in this order."""

    @classmethod
    def local(cls, name: str, adapters: Sequence[str] = ()) -> "ModelFiles":
        """Return the files in a directory, with adapters in others."""
        return cls(name=name, adapters=tuple(cls(name=adapter) for adapter in adapters))

    @property
    def directory(self) -> Path:
        """The directory to read. Of a repository, it holds what was fetched."""
        return Path(self.name) if self.repository is None else self.repository.snapshot

    @property
    def commit(self) -> str | None:
        """The commit; None for a directory."""
        return None if self.repository is None else self.repository.commit

    def names(self) -> Sequence[str]:
        """Return the names of all files at the top level, fetched or not."""
        if self.repository is not None:
            return [path for path in self.repository.files if "/" not in path]
        return sorted(path.name for path in self.directory.iterdir() if path.is_file())

    def has(self, path: str) -> bool:
        """Whether there is a file, fetched or not."""
        return path in self.repository.files if self.repository is not None else (self.directory / path).is_file()

    def num_bytes(self, paths: Sequence[str]) -> int:
        """Return the size of files, fetched or not."""
        if self.repository is not None:
            return sum(self.repository.files[path].num_bytes for path in paths)
        return sum((self.directory / path).stat().st_size for path in paths)

    def fetch_settings(self, *, with_code: bool) -> None:
        """Fetch the small files that transformers may read.

        Args:
            with_code: whether the user lets transformers run the repository's code.
        """
        if self.repository is not None:
            wanted = [path for path in self.repository.files if _is_setting(path) or (with_code and _is_code(path))]
            doing(f"fetching the configuration and the tokenizer of {self.name}")
            self.repository.fetch(wanted)

    def fetch(self, paths: Sequence[str]) -> None:
        """Fetch files that are not there yet. Only one process of a machine fetches a file; others wait for it."""
        if self.repository is not None:
            doing(f"fetching the weights of {self.name}, or waiting for another process that does")
            self.repository.fetch(paths)

    def code(self) -> list[str]:
        """Return the names of the Python files, fetched or not."""
        if self.repository is not None:
            return [path for path in self.repository.files if _is_code(path)]
        return sorted(path.relative_to(self.directory).as_posix() for path in self.directory.rglob("*.py"))

    def hashes(self, paths: Sequence[str]) -> list[str]:
        """Return the SHA-256 of files. Weights in a repository are known by its listing, and not fetched for it."""
        known: dict[str, str] = {}
        if self.repository is not None:
            digests = {path: self.repository.files[path].digest.partition(":") for path in paths}
            known = {path: value for path, (kind, _, value) in digests.items() if kind == "sha256"}
        rest = [path for path in paths if path not in known]
        if self.repository is not None:
            self.repository.fetch(rest)
        known |= dict(zip(rest, hashes_of([self.directory / path for path in rest], self.name), strict=True))
        return [known[path] for path in paths]


def _is_setting(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    if MODULE_CONFIG.fullmatch(path):
        return True
    return folder in ("", TEMPLATES_DIR) and name.endswith(SETTINGS_ENDINGS) and name not in NOT_SETTINGS


def _is_code(path: str) -> bool:
    return PurePosixPath(path).suffix == ".py"
