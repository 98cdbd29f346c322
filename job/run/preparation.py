"""From what the user asked to what the runner needs: everything is checked, and the run directory is this run's."""

from dataclasses import dataclass, fields

import pyarrow as pa
import torch

from job.config import RunConfig
from job.errors import UsageError
from job.output.parts.manifest import Manifest, claim_run_directory
from job.output.parts.shard import PartFormat
from job.output.sharing.settings import RunSettings, set_settings
from job.output.sharing.worker import WorkerId
from job.output.store.directory import RunDirectory
from job.output.store.names import RunNames
from job.output.store.opening import open_store
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
    examined = examine(config, device)
    plan, config = examined.plan, examined.config
    directory = RunDirectory(open_store(config.output.output), RunNames(plan.num_shards))
    values = {field.name: getattr(examined, field.name) for field in fields(Examined)}
    manifest, settings = _claim(directory, examined.manifest, config.engine.lease_timeout)
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
