"""From what the user asked to what the runner needs: everything is checked, and the run directory is this run's."""

from dataclasses import dataclass, fields

import pyarrow as pa
import torch

from job.config import RunConfig
from job.errors import UsageError
from job.output.parts.columns import Columns
from job.output.parts.manifest import Manifest, claim_run_directory, read_manifest
from job.output.parts.shard import PartFormat
from job.output.sharing.settings import RunSettings, set_settings
from job.output.sharing.worker import WorkerId
from job.output.store.directory import RunDirectory
from job.output.store.names import RunNames
from job.output.store.opening import open_store
from job.output.store.store import Store
from job.run.examination import Examined, examine
from job.run.identity import metadata_of


@dataclass(frozen=True, kw_only=True)
class Prepared(Examined):
    """All that a leader needs but the model. The run directory is this run's; ``manifest`` is the one in it."""

    directory: RunDirectory
    settings: RunSettings
    part_format: PartFormat
    worker: WorkerId

    @property
    def is_done(self) -> bool:
        """Whether every shard is final."""
        return len(self.directory.done_shards()) == self.plan.num_shards


def prepare(config: RunConfig, device: torch.device) -> Prepared:
    """Examine what was asked, and claim the run directory.

    Raises:
        UsageError: anything that cannot work as asked.
    """
    store = open_store(config.output.output)
    examined = examine(config, device, found_in(store))
    directory = RunDirectory(store, RunNames(examined.plan.num_shards))
    manifest, settings = _claim(directory, examined.manifest, config.engine.lease_timeout)
    if Columns.of(manifest) != examined.columns:  # another version has begun this run at the same moment
        examined = examine(config, device, manifest)
    values = {field.name: getattr(examined, field.name) for field in fields(Examined)}
    values["manifest"] = manifest
    return Prepared(
        **values,
        directory=directory,
        settings=settings,
        part_format=PartFormat.build(
            pa.schema(examined.kept),
            examined.columns,
            compression=config.output.compression,
            metadata=metadata_of(config, manifest, examined.features),
        ),
        worker=WorkerId.of_this_process(),
    )


def found_in(store: Store) -> Manifest | None:
    """Return the manifest that is in a directory already; None if there is none, or it cannot be read.

    Raises:
        UsageError: it is not one that this version can read.
    """
    try:
        return read_manifest(store)
    except OSError:  # said when the directory is claimed
        return None


def _claim(
    directory: RunDirectory, manifest: Manifest, lease_timeout_secs: float | None
) -> tuple[Manifest, RunSettings]:
    try:
        directory.store.prepare([""])
        found = claim_run_directory(directory.store, manifest)
        directory.prepare()
        return found, set_settings(directory.store, lease_timeout_secs=lease_timeout_secs)
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror or str(error)
        where = directory.store.describe()
        raise UsageError(f"--output {where} cannot be written: {reason}. Use another directory.") from None
