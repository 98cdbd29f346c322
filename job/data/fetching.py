"""How much of a dataset that lies elsewhere is fetched: the files of one split, or as many as hold the rows that are
needed; and to check options, the beginning of the first file.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from job.config import DataConfig
from job.data.compression import is_compressed
from job.data.dataset import DataFile, OpenDataset, writable
from job.data.finding import Found, explained
from job.data.formats import Format
from job.data.formats.csv_head import read_head
from job.data.formats.files import Files, Opened, builder_of
from job.data.formats.names import unique_names
from job.data.heads import check_heads
from job.data.remote_files import check_numbers, contents_of
from job.data.source import SchemaSource
from job.errors import NoRows, UsageError
from job.remote.beginning import FIRST_BYTES, first_lines
from job.remote.tree import RemoteTree

LINES, TABLES = ("json_lines", "text"), ("csv", "tsv")
"""Formats whose files may be cut at the end of a line, and those whose header may be read alone."""

BY_OPTIONS = ("csv", "tsv", "json_file", "converted")
"""Formats for which the options in a dataset's card can change the rows."""

BY_PREFIX_BYTES = 256 << 10
"""Of files that are larger, only the first lines are fetched if these are enough."""


@dataclass(frozen=True, kw_only=True)
class RemoteDataset:
    """A split of a dataset that lies elsewhere."""

    config: DataConfig
    tree: RemoteTree
    found: Found
    split: str
    known: Format
    paths: tuple[str, ...]
    """The files of the split."""

    @classmethod
    def of(cls, found: Found, config: DataConfig, tree: RemoteTree) -> "RemoteDataset":
        """Choose the split.

        Raises:
            UsageError: there is no such split, or it is known that a file is missing.
        """
        split, known = found.chosen(config)
        paths = found.splits[split]
        if not tree.is_listed:
            check_numbers(tree, paths)
        return cls(config=config, tree=tree, found=found, split=split, known=known, paths=paths)

    @property
    def is_here(self) -> bool:
        """Whether all files have been fetched."""
        return all(map(self.tree.has, self.paths))

    @property
    def is_parquet(self) -> bool:
        """Whether it can be read where it lies."""
        return self.known.module == "parquet"

    @property
    def _by_options(self) -> bool:
        """Whether the dataset's card says how the files are read."""
        return bool(self.found.options) and self.known.module in BY_OPTIONS

    def head(self) -> OpenDataset | None:
        """Return the beginning of the dataset, unless all of it is here. For checks of columns, not for rows."""
        path = next((path for path in self.paths if self.tree.files[path].num_bytes), None)
        if path is None or self.is_here:
            return None
        try:
            with explained(self.config):
                opened = self._open_head(path)
        except UsageError:  # the rest may show another reason
            opened = None
        if opened is None:
            return None
        remark = f"only the beginning of {self.tree.name}/{path} has been looked at, before the dataset is fetched"
        how = ", for example with hf download" if self.tree.commit else ""
        advice = f"if a later row has what is missing, fetch it first{how}"
        return replace(self._opened(opened, is_partial=True), remarks=(f"{remark}; {advice}",))

    def _open_head(self, path: str) -> Opened | None:
        is_small = self.tree.files[path].num_bytes <= FIRST_BYTES
        if self.is_parquet:
            return self._open_files([path], in_place=True)
        if self._by_options:
            return None
        if is_compressed(path) or self.known.module not in LINES + TABLES:
            return self._open_files([path]) if is_small else None
        local = self.tree.fetch([path])[0] if is_small else first_lines(self.tree, path, None)
        if local is None:
            return None
        if self.known.module in TABLES:
            delimiter = self.config.csv_delimiter or ("\t" if self.known.module == "tsv" else None)
            header = read_head(str(local), delimiter, self.config.csv_encoding).header
            return Opened(source=SchemaSource(pa.schema([(name, pa.string()) for name in unique_names(header)])))
        return self.known.open(self._files([str(local)]))

    def open(self, num_rows: int | None = None) -> OpenDataset:
        """Fetch files, and open them.

        Args:
            num_rows: more rows than these first ones are not needed. If not all files are here, Parquet is then read
                where it lies.
        """
        with explained(self.config):
            is_brief = num_rows is not None and not self.is_here
            in_place = self.is_parquet and (is_brief or self.config.streaming)
            wanted = min(filter(None, (self.config.limit, num_rows if is_brief else None)), default=None)
            if wanted is None or self.found.runs:  # some of these rows may be left out
                return self._opened(self._open_files(self.paths, in_place=in_place))
            return self._open_first(wanted, in_place=in_place)

    def _open_first(self, num_rows: int, *, in_place: bool) -> OpenDataset:
        """Open as many files as hold the first rows, and not many more."""
        if (opened := self._open_beginning(num_rows)) is not None:
            return self._opened(opened, is_partial=True)
        num_files = 1
        while num_files < len(self.paths):
            try:
                opened = self._open_files(self.paths[:num_files], in_place=in_place)
                if opened.source.num_rows >= num_rows:
                    return self._opened(opened, is_partial=True)
                likely = -(-num_files * num_rows // max(1, opened.source.num_rows))
            except NoRows:
                likely = 0
            num_files = max(num_files + 1, min(likely, 2 * num_files))
        return self._opened(self._open_files(self.paths, in_place=in_place))

    def _open_beginning(self, num_rows: int) -> Opened | None:
        """Open the first lines of the first file, if these are enough."""
        path = self.paths[0]
        is_large = self.tree.files[path].num_bytes > BY_PREFIX_BYTES
        if self.known.module not in LINES or is_compressed(path) or not is_large or self.tree.has(path):
            return None
        local = first_lines(self.tree, path, num_rows)
        return None if local is None else self.known.open(self._files([str(local)]))

    def _open_files(self, paths: Sequence[str], *, in_place: bool = False) -> Opened:
        if in_place:
            files = replace(self._files(paths), tree=self.tree)
        else:
            files = self._files([str(path) for path in self.tree.fetch(paths)])
            check_heads(files.names, self.known)
        return self.known.open(files)

    def _files(self, names: Sequence[str]) -> Files:
        options = self.found.options
        reader = self.found.reader or self.known.reader
        builder = partial(builder_of(reader, self.split, names), **options)
        return Files(config=self.config, split=self.split, names=tuple(names), builder=builder, options=options)

    def _opened(self, opened: Opened, *, is_partial: bool = False) -> OpenDataset:
        files = self.tree.files
        if self.config.streaming and not self.is_parquet:
            note = f"--streaming is for Parquet, so what is needed of {self.tree.name} is fetched"
            opened = replace(opened, notes=(*opened.notes, note))
        if self._by_options:
            opened = replace(opened, reading={**opened.reading, "card_options": _plain(self.found.options)})
        return self.found.opened(
            self.split,
            opened,
            fingerprint=contents_of(self.tree, self.paths),
            fingerprint_of=lambda num_files: contents_of(self.tree, self.paths[:num_files]),
            files=tuple(
                DataFile(name=writable(path), num_bytes=files[path].num_bytes, digest=files[path].digest)
                for path in self.paths
            ),
            commit=self.tree.commit,
            is_partial=is_partial,
        )


def _plain(options: Mapping[str, Any]) -> str:
    """Return options of a reader as text that is the same for the same options."""
    return json.dumps(options, sort_keys=True, default=lambda value: getattr(value, "to_dict", lambda: str(value))())
