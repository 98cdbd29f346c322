"""An existing run: what it is and how it is cut into shards, from ``manifest.json`` alone. Writes nothing."""

from dataclasses import dataclass
from pathlib import Path

from job.errors import UsageError
from job.output.parts.lost_manifest import describe_lost, left_of_run
from job.output.parts.manifest import Manifest, read_manifest
from job.output.parts.plan import Plan
from job.output.store.addresses import open_store
from job.output.store.directory import RunDirectory
from job.output.store.names import LEASES, MANIFEST
from job.output.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRun:
    """An existing run, without the configuration that started it."""

    manifest: Manifest
    plan: Plan
    directory: RunDirectory


def find_run(output: str | Path) -> FoundRun:
    """Find the run in a directory.

    Raises:
        UsageError: it is not a run directory, cannot be read, or was made by another version.
    """
    store, left = open_store(output), None
    try:
        manifest = read_manifest(store)
        if manifest is None:
            left = left_of_run(store)
            manifest = None if left is None else read_manifest(store)  # it may have come in between
    except FileNotFoundError:
        raise UsageError(f"{output} is not a run directory: it does not exist. Name the --output of a run.") from None
    except NotADirectoryError:
        raise UsageError(
            f"{output} is not a run directory: it is not a directory. Name the --output of a run."
        ) from None
    except OSError as error:
        raise UsageError(f"{store.describe(MANIFEST)} cannot be read: {error.strerror or error}.") from None
    if manifest is None and left is not None:
        raise UsageError(describe_lost(store, left))
    if manifest is None and store.exists(LEASES):
        raise UsageError(
            f"{output} has no manifest.json yet. If a run is being started there, its model is still loading: look "
            "again when it has loaded."
        )
    if manifest is None:
        runs = [entry.name for entry in store.list() if store.exists(f"{entry.name}/{MANIFEST}")]
        advice = f"It contains runs: name one of {', '.join(sorted(runs))}." if runs else "Name the --output of a run."
        raise UsageError(f"{output} is not a run directory: it has no manifest.json. {advice}")
    return FoundRun(manifest=manifest, plan=_plan_of(manifest, store), directory=RunDirectory(store, manifest.names))


def _plan_of(manifest: Manifest, store: Store) -> Plan:
    try:
        plan = manifest.plan
        numbers = (plan.num_rows, plan.rows_per_shard, plan.num_samples)
        if not all(isinstance(number, int) for number in numbers) or numbers[0] < 0 or min(numbers[1:]) < 1:
            raise ValueError(f"{numbers[0]} rows, {numbers[1]} per shard, {numbers[2]} samples")
        return plan
    except (LookupError, TypeError, ValueError) as error:
        path = store.describe(MANIFEST)
        raise UsageError(f"{path} does not say how the run is cut into shards ({error!r}).") from None
