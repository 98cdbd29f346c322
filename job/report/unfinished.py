"""The finished rows of shards that have no part yet, with the columns that they will have in one.

Ours are in journals. Those of the dataset are read again from it, if it is still the one that the run has read.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from job.config import DataConfig
from job.data.dataset import OpenDataset
from job.data.earlier_errors import settle_errors
from job.data.opening import find_dataset
from job.data.source import read_rows
from job.errors import JobError, UsageError
from job.output.looking.found import FoundRun
from job.output.looking.shown_rows import ShardRows
from job.output.parts.part_schema import Columns
from job.output.store.addresses import local_path


class Unfinished:
    """Implements ``Journaled`` of ``run_table``."""

    def __init__(self, run: FoundRun) -> None:
        """List the shards."""
        self._run = run
        self._origins = dict(map(_name_and_origin, run.manifest.section("columns")["kept"]))
        """Name of a kept column to its name in the dataset."""
        self._journaled = sorted(run.directory.journaled_shards() - run.directory.written_shards())

    @cached_property
    def problem(self) -> str:
        """Why no rows can be given, although some are finished. The dataset is opened if it is needed."""
        if self._journaled and self._origins:
            try:
                self._dataset.source.fix_columns([*self._origins.values()])
            except JobError as error:
                return f"Rows in journals are left out, since kept columns cannot be read again: {error}"
        return ""

    @property
    def shards(self) -> Sequence[int]:
        """The shards without a part, as far as their rows can be read."""
        return () if self.problem else self._journaled

    @cached_property
    def _dataset(self) -> OpenDataset:
        opened, known = open_again(self._run), self._run.manifest.section("dataset")["fingerprint"]
        if opened.fingerprint != known and not opened.continues(self._run.manifest.num_files, known):
            raise UsageError(f"{self._run.manifest.about['dataset']} has changed since the run read it.")
        return opened

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of parts."""
        kept = [self._dataset.source.schema.field(origin).with_name(name) for name, origin in self._origins.items()]
        return Columns.of(self._run.manifest).schema(pa.schema(kept))

    def read(self, shard_idx: int, names: Sequence[str]) -> pa.Table:
        """Return the finished rows of a shard, as far as all of their samples are finished, in their order.

        Raises:
            JobError: a journal or the dataset cannot be read.
        """
        plan = self._run.plan
        own = [name for name in names if name not in self._origins]
        table = ShardRows(self._run, shard_idx).columns(list(dict.fromkeys([*own, "row_idx"])))
        _, places, counts = np.unique(table["row_idx"].to_numpy(), return_inverse=True, return_counts=True)
        table = table.filter(pa.array(counts[places] == plan.num_samples))
        wanted = {name: self._origins[name] for name in names if name in self._origins}
        if wanted:
            rows, about = plan.rows(shard_idx), self._run.manifest.about
            blocks = read_rows(self._dataset.source, str(about["dataset"]), rows, (), [*wanted.values()])
            kept = pa.concat_tables(block.kept for block in blocks).take(
                pa.array(table["row_idx"].to_numpy() - rows.start)
            )
            for name, origin in wanted.items():
                table = table.append_column(name, kept[origin])
        return table.select(list(names))


def open_again(run: FoundRun) -> OpenDataset:
    """Open the dataset that a run has read, as far as it is still there.

    Raises:
        JobError: it cannot be read.
    """
    about, known = run.manifest.about, run.manifest.section("dataset")
    config = DataConfig(
        dataset=about["dataset"],
        dataset_config=about["dataset_config"],
        dataset_revision=about["dataset_revision"],
        split=known["split"],
        data_files=tuple(about["data_files"]),
        csv_delimiter=known["csv_delimiter"],
        csv_encoding=known["csv_encoding"],
        sheet=known["sheet"],
    )
    dataset = find_dataset(
        config,
        output=local_path(run.directory.store.describe()),
        is_older=not run.manifest.lists_files,
        commit=about.get("dataset_commit"),
    ).open()
    return settle_errors(dataset, replace(config, partial=bool(dataset.runs)), known["earlier_errors"])


def _name_and_origin(text: str) -> tuple[str, str]:
    """Return the name of a kept column, and that in the dataset, from what the manifest says of it.

    >>> _name_and_origin("id: string"), _name_and_origin("label: int64, from class")
    (('id', 'id'), ('label', 'class'))
    """
    name, _, rest = text.partition(": ")
    return name, rest.partition(", from ")[2] or name
