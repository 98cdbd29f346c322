"""From what the user asked to what the runner needs: everything is checked, and the run directory is this run's."""

from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa
import torch

from job.config import RunConfig
from job.errors import UsageError
from job.output.parts.columns import Columns
from job.output.parts.manifest import Manifest, claim_run_directory, read_manifest
from job.output.parts.shard import PartFormat
from job.output.sharing.leases import WorkerId
from job.output.store.paths import RunPaths
from job.run.examination import Examined, examine
from job.run.identity import metadata_of


@dataclass(frozen=True, kw_only=True)
class Prepared(Examined):
    """All that a leader needs but the model. The run directory is this run's; ``manifest`` is the one in it."""

    paths: RunPaths
    part_format: PartFormat
    worker: WorkerId

    @property
    def is_done(self) -> bool:
        """Whether every shard is final."""
        return len(self.paths.done_shards()) == self.plan.num_shards


def prepare(config: RunConfig, device: torch.device) -> Prepared:
    """Examine what was asked, and claim the run directory.

    Raises:
        UsageError: anything that cannot work as asked.
    """
    examined = examine(config, device, found_in(config.output.output))
    plan = examined.plan
    paths = RunPaths(config.output.output.absolute(), plan.num_shards)
    worker = WorkerId.of_this_process()
    manifest = _claim(paths, examined.manifest, worker)
    if Columns.of(manifest) != examined.columns:  # another version has begun this run at the same moment
        examined = examine(config, device, manifest)
    values = {field.name: getattr(examined, field.name) for field in fields(Examined)}
    values["manifest"] = manifest
    return Prepared(
        **values,
        paths=paths,
        part_format=PartFormat.build(
            pa.schema(examined.kept),
            examined.columns,
            compression=config.output.compression,
            metadata=metadata_of(config, manifest, examined.features),
        ),
        worker=worker,
    )


def found_in(root: Path) -> Manifest | None:
    """Return the manifest that is in a directory already; None if there is none, or it cannot be read.

    Raises:
        UsageError: it is not one that this version can read.
    """
    try:
        return read_manifest(root)
    except OSError:  # said when the directory is claimed
        return None


def _claim(paths: RunPaths, manifest: Manifest, worker: WorkerId) -> Manifest:
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        found = claim_run_directory(paths.root, manifest, str(worker))
        paths.make_directories()
        paths.check_writable(str(worker))
        return found
    except OSError as error:
        reason = "it is a file" if paths.root.is_file() else error.strerror or str(error)
        raise UsageError(f"--output {paths.root} cannot be written: {reason}. Use another directory.") from None
