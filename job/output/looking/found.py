"""A run directory as it is found: which run it is and how it is cut, from ``manifest.json`` alone. Writes nothing."""

from dataclasses import dataclass
from pathlib import Path

from job.errors import UsageError
from job.output.parts.manifest import Manifest, read_manifest
from job.output.parts.plan import Plan
from job.output.store.paths import RunPaths, manifest_path


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRun:
    """A run that exists, without the configuration that made it."""

    manifest: Manifest
    plan: Plan
    paths: RunPaths


def find_run(root: Path) -> FoundRun:
    """Read what a directory says about its run.

    Raises:
        UsageError: it is no run directory, cannot be read, or was made by another version.
    """
    try:
        manifest = read_manifest(root)
    except NotADirectoryError:
        raise UsageError(f"{root} is no run directory: it is no directory. Name the --output of a run.") from None
    except OSError as error:
        raise UsageError(f"{manifest_path(root)} cannot be read: {error.strerror or error}.") from None
    if manifest is None:
        what = "has no manifest.json" if root.is_dir() else "does not exist"
        raise UsageError(f"{root} is no run directory: it {what}. Name the --output of a run.")
    plan = _plan_of(manifest, root)
    return FoundRun(manifest=manifest, plan=plan, paths=RunPaths(root, plan.num_shards))


def _plan_of(manifest: Manifest, root: Path) -> Plan:
    try:
        cut, sampling = manifest.section("plan"), manifest.section("sampling")
        numbers = (cut["num_rows"], cut["rows_per_shard"], sampling["num_samples"])
        if not all(isinstance(number, int) for number in numbers) or numbers[0] < 0 or min(numbers[1:]) < 1:
            raise ValueError(f"{numbers[0]} rows, {numbers[1]} per shard, {numbers[2]} samples")
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{manifest_path(root)} does not say how the run is cut into shards ({error!r}).") from None
    return Plan(num_rows=numbers[0], rows_per_shard=numbers[1], num_samples=numbers[2])
