"""From what the user asked to what the runner needs: everything is checked, and the run directory is this run's."""

from dataclasses import dataclass, fields, replace

import pyarrow as pa
import torch

from job.config import RunConfig
from job.errors import UsageError
from job.output.parts.manifest import Manifest, claim_run_directory, read_manifest
from job.output.parts.shard import PartFormat
from job.output.sharing.leases import WorkerId
from job.output.store.paths import RunPaths
from job.run.examination import Examined, examine
from job.run.identity import dtype_of, in_dtype, metadata_of


@dataclass(frozen=True, kw_only=True)
class Prepared(Examined):
    """All that a leader needs but the model. The run directory is this run's; ``manifest`` is the one in it."""

    paths: RunPaths
    part_format: PartFormat
    worker: WorkerId
    is_claimed: bool
    """False until ``settle``, where the dtype of a new run is still open: there is no manifest yet."""

    @property
    def is_done(self) -> bool:
        """Whether every shard is final."""
        return len(self.paths.done_shards()) == self.plan.num_shards


def prepare(config: RunConfig, device: torch.device) -> Prepared:
    """Examine what was asked, and claim the run directory.

    A new run in float16 claims it in ``settle``: its manifest says the dtype, and many models cannot stand that one.

    Raises:
        UsageError: anything that cannot work as asked.
    """
    examined = examine(config, device)
    paths = RunPaths(examined.config.output.output.absolute(), examined.plan.num_shards)
    found = _find_manifest(paths)
    if found is not None and dtype_of(found) == examined.model_info.fallback_dtype:  # auto: as the run began
        examined = _in_dtype(examined, dtype_of(found))
    is_open = found is None and examined.model_info.dtype == "float16"
    return _prepared(examined, paths, WorkerId.of_this_process(), claims=not is_open)


def settle(prepared: Prepared, dtype: str) -> Prepared:
    """Claim the run directory, if that is still to do, now that the model runs in a dtype.

    Raises:
        UsageError: it was claimed for another run meanwhile, perhaps of another dtype.
    """
    if prepared.is_claimed and prepared.model_info.dtype == dtype:
        return prepared
    return _prepared(_in_dtype(prepared, dtype), prepared.paths, prepared.worker, claims=True)


def _find_manifest(paths: RunPaths) -> Manifest | None:
    try:
        return read_manifest(paths.root)
    except OSError:  # no directory, or none that may be read: ``_claim`` says so
        return None


def _in_dtype(examined: Examined, dtype: str) -> Examined:
    info = replace(examined.model_info, dtype=dtype, fallback_dtype=None)
    return replace(examined, model_info=info, manifest=in_dtype(examined.manifest, dtype))


def _prepared(examined: Examined, paths: RunPaths, worker: WorkerId, *, claims: bool) -> Prepared:
    config = examined.config
    values = {field.name: getattr(examined, field.name) for field in fields(Examined)}
    values["manifest"] = manifest = _claim(paths, examined.manifest, worker, claims=claims)
    return Prepared(
        **values,
        is_claimed=claims,
        paths=paths,
        part_format=PartFormat.build(
            pa.schema(examined.kept),
            examined.columns,
            compression=config.output.compression,
            metadata=metadata_of(config, manifest, examined.features),
        ),
        worker=worker,
    )


def _claim(paths: RunPaths, manifest: Manifest, worker: WorkerId, *, claims: bool) -> Manifest:
    """Make the directory this run's; without ``claims`` only see that it could be."""
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        found = manifest
        if claims or paths.written_shards():
            found = claim_run_directory(paths.root, manifest, str(worker))
        paths.make_directories()
        paths.check_writable(str(worker))
        return found
    except OSError as error:
        reason = "it is a file" if paths.root.is_file() else error.strerror or str(error)
        raise UsageError(f"--output {paths.root} cannot be written: {reason}. Use another directory.") from None
