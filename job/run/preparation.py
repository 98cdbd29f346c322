"""Turns what the user asked for into what the runner needs: checks everything, and claims the run directory."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from job.config import RunConfig
from job.data.runs import read_run
from job.draws import seed_of_moved
from job.errors import UsageError
from job.output.looking.finished import FinishedRows
from job.output.parts.copies import Copies
from job.output.parts.counts import Counts
from job.output.parts.manifest import Manifest, check_place, check_run_directory, claim_run_directory, read_manifest
from job.output.parts.part_schema import Columns
from job.output.parts.part_tables import PartFormat
from job.output.sharing.settings import RunSettings, read_settings, set_settings
from job.output.sharing.worker import WorkerId
from job.output.store.addresses import local_path, normal, open_store
from job.output.store.directory import RunDirectory
from job.output.store.store import Store
from job.remote.addresses import is_address
from job.remote.model_files import ModelFiles
from job.run.copy_decision import with_copies
from job.run.examination import Examined, examine
from job.run.extend import check_extended
from job.run.identity import dtype_of, in_dtype, metadata_of
from job.run.pinned import model_files
from job.run.reuse import as_in_others, check_others, open_others


@dataclass(frozen=True, kw_only=True)
class Prepared(Examined):
    """Everything that a leader needs except the model. ``manifest`` is the run directory's, once that is claimed."""

    directory: RunDirectory
    settings: RunSettings
    part_format: PartFormat
    worker: WorkerId
    finished: FinishedRows
    """Counts what is finished of the run. Nothing has been read yet."""
    is_restart: bool
    """Whether the run existed before this launch."""
    is_claimed: bool
    """False until ``settle`` if the dtype of a new run is still undecided: there is no manifest yet."""
    copies: Copies | None = None
    """What is copied from other runs."""
    counts: Counts = field(default_factory=Counts)
    """The rows that this worker has finished, with a model or before it was loaded."""

    def changes_of_moved(self, shard_idx: int) -> Mapping[int, Mapping[str, Any]]:
        """Return the sampling options of rows whose own draws were copied to other rows."""
        moved = () if self.copies is None else self.copies.moved(shard_idx)
        changes = {"seed": seed_of_moved(self.config.sampling.seed)}
        return dict.fromkeys(moved, changes)

    @property
    def is_done(self) -> bool:
        """Whether every shard is final."""
        return len(self.directory.done_shards()) == self.plan.num_shards


def prepare(
    config: RunConfig,
    device: torch.device,
    files: ModelFiles | None = None,
    check: Callable[[Examined], None] = lambda examined: None,
) -> Prepared:
    """Examine what was asked for, and claim the run directory.

    A new run in float16 claims it later, in ``settle``: the manifest records the dtype, and many models overflow
    float16.

    Args:
        files: the model as the first process of the launch has found it. None: this is the first process.
        check: refuses the run for reasons of its own, before its directory is claimed.

    Raises:
        UsageError: something cannot work as asked.
    """
    _refuse_output_in_place(config)
    store = open_store(config.output.output)
    found = found_in(store)
    _refuse_occupied(store, config)
    others = open_others(config, found)
    config = as_in_others(config, others)
    examined = examine(config, files or model_files(config, found), device, found)
    for run in [*([found] if found is not None else []), *(other.manifest for other in others)]:
        if dtype_of(run) == examined.model_info.fallback_dtype:  # auto: the dtype of the run
            examined = _in_dtype(examined, dtype_of(run))
    examined = check_others(examined, others)
    if (notes := check_extended(examined, found, store)) is None:  # another launch has just extended the run
        return prepare(config, device, files, check)
    examined = replace(examined, notes=(*examined.notes, *notes))
    check(examined)
    dense_weights = examined.model_info.dense_weights
    if found is None and config.engine.needs_model and dense_weights is not None:
        dense_weights.check_room()
    is_open = found is None and not others and examined.model_info.dtype == "float16"  # others have shown that it works
    try:
        prepared = _prepared(examined, store, WorkerId.of_this_process(), found, claims=not is_open)
    except UsageError:
        if found is None and found_in(store) is not None:  # just started by another launch, perhaps on another day
            return prepare(config, device, files)
        raise
    if Columns.of(prepared.manifest) != examined.columns:  # another version started this run at the same moment
        return prepare(config, device, files)
    return with_copies(prepared)


def _refuse_output_in_place(config: RunConfig) -> None:
    """Refuse to write parts among the data, where a restart would take them for rows."""
    dataset, output = Path(config.data.dataset), local_path(config.output.output)
    if output is None and is_address(config.data.dataset) and normal(config.data.dataset) == config.output.output:
        raise UsageError(f"--output {config.output.output} is the directory of the dataset. Use another one.")
    if output is not None and dataset.is_dir() and dataset.resolve() == output.resolve():
        raise UsageError(
            f"--output {output} is the directory of the dataset. Use another one, for example {output / 'completions'}."
        )


def settle(prepared: Prepared, dtype: str, device: torch.device) -> Prepared:
    """Claim the run directory, unless it is claimed already, now that the model's dtype is known.

    Raises:
        UsageError: another run has claimed it in the meantime, perhaps one in another dtype.
    """
    if prepared.is_claimed and prepared.model_info.dtype == dtype:
        return prepared
    settled = _prepared(_in_dtype(prepared, dtype), prepared.directory.store, prepared.worker, claims=True)
    if Columns.of(settled.manifest) != settled.columns:  # another version started this run in the meantime
        return settle(prepare(settled.config, device, settled.model_info.files), dtype, device)
    return with_copies(settled)


def _in_dtype(examined: Examined, dtype: str) -> Examined:
    info = examined.model_info.in_dtype(dtype)
    return replace(examined, model_info=info, manifest=in_dtype(examined.manifest, dtype))


def _prepared(
    examined: Examined, store: Store, worker: WorkerId, found: Manifest | None = None, *, claims: bool
) -> Prepared:
    config = examined.config
    values = {each.name: getattr(examined, each.name) for each in fields(Examined)}
    directory, manifest, settings = _claim(store, examined, claims=claims)
    values |= {"manifest": manifest, "plan": manifest.plan}
    return Prepared(
        **values,
        is_restart=found is not None,
        is_claimed=claims,
        directory=directory,
        finished=FinishedRows(directory, manifest.plan),
        settings=settings,
        part_format=PartFormat.build(
            examined.kept.schema,
            examined.columns,
            compression=config.output.compression,
            metadata=metadata_of(config, manifest, examined.features),
        ),
        worker=worker,
    )


def found_in(store: Store) -> Manifest | None:
    """Return the manifest of an existing run. None if there is none or it cannot be read.

    Raises:
        UsageError: this version does not understand it.
    """
    try:
        return read_manifest(store)
    except OSError:  # reported when the directory is claimed
        return None


def _claim(store: Store, examined: Examined, *, claims: bool) -> tuple[RunDirectory, Manifest, RunSettings]:
    """Claim the directory for this run; without ``claims``, only check that this would be possible."""
    manifest, timeout_secs = examined.manifest, examined.config.engine.lease_timeout
    with _told_of_place(store):
        store.prepare([""])
        if claims:
            manifest = claim_run_directory(store, manifest)
        else:
            check_run_directory(store, manifest)
        # Only now is it known who started the run, perhaps an older version a moment ago, and where its parts lie.
        directory = RunDirectory(store, manifest.names)
        directory.prepare()
        settings = set_settings(store, lease_timeout_secs=timeout_secs) if claims else read_settings(store)
        return directory, manifest, settings


@contextmanager
def _told_of_place(store: Store) -> Iterator[None]:
    """Word the errors of a store that does not work.

    Raises:
        UsageError: there was one.
    """
    try:
        yield
    except OSError as error:
        where = store.describe()
        is_file = isinstance(error, FileExistsError) or Path(where).is_file()
        reason = "it is a file" if is_file else error.strerror or str(error)
        raise UsageError(
            f"--output {where} cannot be written: {reason}. Correct that, or use another --output."
        ) from None


def _refuse_occupied(store: Store, config: RunConfig) -> None:
    """Refuse a directory that cannot become this run's, before anything is fetched for it.

    Raises:
        UsageError: it cannot.
    """
    path = local_path(config.output.output)
    with _told_of_place(store), suppress(FileNotFoundError):
        if path is None:
            store.prepare([""])
        else:
            _refuse_inside_run(path, store)
        check_place(store)


def _refuse_inside_run(output: Path, store: Store) -> None:
    """Refuse to begin a run inside another run's directory.

    Raises:
        UsageError: it lies in one.
    """
    outer = next((folder for folder in output.absolute().parents if read_run(folder) is not None), None)
    if outer is not None and found_in(store) is None:
        raise UsageError(
            f"--output {store.describe()} lies in {outer}, which is the directory of another run and holds its own "
            "files only. Name another place."
        )
