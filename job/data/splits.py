"""Splits by the names of files: only where the layout says so for every file.

``datasets`` looks for words such as "test" anywhere in a name, and leaves out all files without one: of
``alpha.jsonl``, ``beta.jsonl`` and ``chemistry_test_tubes.jsonl`` it reads the last alone (huggingface/datasets#5021,
#7201). Here:

- The layout is plain if each file lies in a folder that has a split's name, or has such a name itself, perhaps with a
  number: ``train/a.jsonl``, ``data/test-00000-of-00001.parquet``, ``dev_2.csv``.
- It may be meant if each name has such a word in it (``gsm8k-train.jsonl``, ``gsm8k-test.jsonl``). Then the user must
  choose, unless it is the same split for all files.
- Otherwise all files are one split.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from job.config import DataConfig
from job.errors import UsageError

WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""The words of ``datasets``, in the order of its splits."""

NUMBER = re.compile(r"([-_ ]?\d+)?(-of-\d+(-[0-9a-f]+)?)?")
SHARDED = re.compile(r"(\w+)-\d{5}-of-\d{5}\b.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The splits of a directory."""

    files: Mapping[str, tuple[str, ...]]
    is_plain: bool
    """False if the names only look like several splits."""


def splits_of(names: Sequence[str]) -> Splits:
    """Sort files into splits.

    Args:
        names: their paths, relative to the dataset.

    >>> splits_of(["train/a.jsonl", "test/a.jsonl"]).files
    {'train': ('train/a.jsonl',), 'test': ('test/a.jsonl',)}
    >>> splits_of(["alpha.jsonl", "chemistry_test_tubes.jsonl"]).files
    {'train': ('alpha.jsonl', 'chemistry_test_tubes.jsonl')}
    """
    for is_plain, split_of in ((True, _plain_split), (False, _likely_split)):
        if (found := _sorted_by(names, split_of)) is not None:
            return Splits(files=found, is_plain=is_plain or len(found) == 1)
    return Splits(files={"train": tuple(names)}, is_plain=True)


def choose_split(splits: Sequence[str], config: DataConfig, *, must_choose: bool = False) -> str:
    """Return the split to read: the requested one, else ``train``, else the only one.

    Args:
        must_choose: whether the user must request one.

    Raises:
        UsageError: there is no such split, or none was requested.
    """
    if must_choose and config.split is None:
        raise UsageError(
            f"--dataset {config.dataset}: the names of its files look like the splits {', '.join(splits)}. "
            "Choose one with --split, or read all files with --data-files '**'."
        )
    wanted = config.split or ("train" if "train" in splits or len(splits) != 1 else splits[0])
    if wanted not in splits:
        raise UsageError(
            f"--dataset {config.dataset} has no split {wanted!r}. Splits: {', '.join(splits) or 'none'}. "
            f"{'Set --split' if config.split is None else 'Give --split one of these, or leave it out'}."
        )
    return wanted


def _sorted_by(names: Sequence[str], split_of: Callable[[str], str | None]) -> dict[str, tuple[str, ...]] | None:
    """Return the files of each split; None if a file has none."""
    of_names = {name: split_of(name) for name in names}
    order = [*dict.fromkeys(WORDS.values()), *sorted({split for split in of_names.values() if split})]
    found = {split: tuple(name for name in names if of_names[name] == split) for split in dict.fromkeys(order)}
    return {split: files for split, files in found.items() if files} if all(of_names.values()) else None


def _plain_split(name: str) -> str | None:
    path = PurePosixPath(name)
    for folder in path.parts[:-1]:
        if folder.lower() in WORDS:
            return WORDS[folder.lower()]
    if path.parent.name == "data" and (sharded := SHARDED.fullmatch(path.name)):
        return WORDS.get(sharded[1], sharded[1])
    stem = path.name.partition(".")[0].lower()
    return next(
        (split for word, split in WORDS.items() if stem.startswith(word) and NUMBER.fullmatch(stem, len(word))), None
    )


def _likely_split(name: str) -> str | None:
    found = {WORDS[word] for word in re.split(r"[-._ 0-9/]+", name.lower()) if word in WORDS}
    return found.pop() if len(found) == 1 else None
