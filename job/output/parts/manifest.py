"""``manifest.json``: what a run is. Written once by the first process, compared by every later one (law 4).

``identity`` holds every value that can change the output; a restart must have the same values. ``about`` is for
people: when, which versions, where the model was. If ``--limit`` grows, that is recorded beside it (``growth``).

Options with default values are left out of the identity, so that a version with more options recognizes the same run:
an option that the manifest does not name has its default. ``section`` returns the values with the defaults filled in.
"""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from job.errors import RunDiffers, UsageError, first_line
from job.fingerprint import digest_of_json
from job.modes.mode import Mode
from job.modes.registry import modes_of
from job.output.parts.defaults import DEFAULTS, without_defaults
from job.output.parts.differences import describe_differences, is_growth
from job.output.parts.growth import Growth, add_growth, read_growth
from job.output.parts.lost_manifest import describe_damaged, describe_lost, left_of_run
from job.output.parts.older_formats import from_format_2
from job.output.parts.plan import Plan
from job.output.store.names import MANIFEST, PARTS, RunNames, is_stranger, within
from job.output.store.store import Store

FORMAT_VERSION = 4
"""2: version 0.1. 3: version 0.2, without defaults. 4: parts in a directory of their own; we, not
``datasets``, list the files of a dataset's directory."""

READABLE_FORMATS = (2, 3, 4)


@dataclass(frozen=True)
class Manifest:
    """A run's identity and its circumstances; both are JSON values."""

    identity: dict[str, Any]
    about: dict[str, Any]
    format_version: int = FORMAT_VERSION
    growth: tuple[Growth, ...] = ()
    """How the run has grown since it began."""
    extends: str | None = None
    """Of a manifest that is asked for: the fingerprint that its dataset had before it grew."""

    @property
    def digest(self) -> str:
        """SHA-256 of the identity as it is stored, in hexadecimal. Every part contains it."""
        return digest_of_json(self.identity)

    @property
    def is_format_2(self) -> bool:
        """Whether version 0.1 started the run, which then goes on as that version would have continued it."""
        return self.format_version == 2

    @property
    def names(self) -> RunNames:
        """The names of the run's objects, for those who know it as this manifest does."""
        fences = [each.sealed for each in self.growth if each.sealed is not None]
        return RunNames(self.plan.num_shards, self.part_dir, len(fences), fences[-1] if fences else {})

    @property
    def part_dir(self) -> str:
        """The directory of the parts, relative to the run directory. A run keeps the layout that it began with."""
        return PARTS if self.format_version >= 4 else ""

    @property
    def lists_files(self) -> bool:
        """Whether the version that started the run decided itself which files of a directory are data."""
        return self.format_version >= 4

    @cached_property
    def beginning(self) -> dict[str, Any]:
        """The identity in the form of this version, without defaults, as the run began."""
        return without_defaults(from_format_2(self.identity) if self.is_format_2 else self.identity)

    @cached_property
    def meaning(self) -> dict[str, Any]:
        """The same with the latest limit."""
        if not self.growth:
            return self.beginning
        began, latest = self.beginning, self.growth[-1]
        prints = [each.fingerprint for each in self.growth if each.fingerprint is not None]
        dataset = {**began["dataset"], "limit": latest.limit, **({"fingerprint": prints[-1]} if prints else {})}
        plan = {**began["plan"], "num_rows": latest.num_rows}
        return without_defaults({**began, "dataset": dataset, "plan": plan})

    def section(self, name: str) -> dict[str, Any]:
        """Return the values of a section, including those that have their default."""
        return {**DEFAULTS.get(name, {}), **self.meaning[name]}

    @property
    def num_files(self) -> int:
        """The number of files of the dataset, as far as it is known."""
        numbers = [each.num_files for each in self.growth if each.num_files is not None]
        return numbers[-1] if numbers else len(self.about.get("files", ()))

    @property
    def plan(self) -> Plan:
        """How the run's rows are cut into shards."""
        plan = self.section("plan")
        totals = [self.beginning["plan"]["num_rows"], *(each.num_rows for each in self.growth)]
        return Plan(
            num_rows=plan["num_rows"],
            rows_per_shard=plan["rows_per_shard"],
            num_samples=self.section("sampling")["num_samples"],
            cuts=tuple(sorted({total for total in totals if 0 < total < plan["num_rows"]})) if self.growth else (),
        )

    @cached_property
    def modes(self) -> tuple[Mode, ...]:
        """The run's active modes, in their order."""
        return modes_of(self.meaning["modes"])

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        content = {"format_version": self.format_version, "identity": self.identity, "about": self.about}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def read_manifest(store: Store) -> Manifest | None:
    """Read the manifest of a run directory; None if there is none.

    Raises:
        UsageError: the file is not one that this version can read.
    """
    path = store.describe(MANIFEST)
    try:
        content = json.loads(store.read(MANIFEST))
        version = content["format_version"]
        if version not in READABLE_FORMATS:
            raise UsageError(
                f"{path} has format {version}; this version reads {READABLE_FORMATS[0]} to {FORMAT_VERSION}. "
                "Use the version that wrote it. To start a run, use a new --output."
            )
        manifest = Manifest(content["identity"], content["about"], version, read_growth(store))
        assert manifest.modes is not None and manifest.about is not None
        return manifest
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(describe_damaged(store, _reason(error))) from None


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if isinstance(error, ValueError):  # also of bytes that are not UTF-8
        return f"it is not JSON: {first_line(error)}"
    return "it does not hold what a run writes"


def claim_run_directory(store: Store, wanted: Manifest) -> Manifest:
    """Make the directory belong to this run, or continue the same run in it, with a larger limit if that is wanted.

    Returns:
        The manifest on disk, whichever process wrote it.

    Raises:
        UsageError: the directory belongs to another run; the message names each field with both values.
    """
    found = check_run_directory(store, wanted)
    if found is None:
        store.create_exclusively(MANIFEST, wanted.to_json().encode())
        found = read_manifest(store)
        assert found is not None, "the manifest was just created, here or by another process"
        _refuse_if_different(store.describe(MANIFEST), found, wanted)
    while is_growth(found, wanted):  # else it has grown in the meantime, perhaps even further
        dataset, num_rows = wanted.section("dataset"), wanted.section("plan")["num_rows"]
        extended = (dataset["fingerprint"], wanted.num_files) if wanted.extends else (None, None)
        grown = Growth.now(dataset["limit"], num_rows, *extended)
        _refuse_too_many_shards(store, found, replace(found, growth=(*found.growth, grown)))
        add_growth(store, found.growth, grown)
        found = replace(found, growth=read_growth(store))
        _refuse_if_different(store.describe(MANIFEST), found, wanted)
    return found


def check_run_directory(store: Store, wanted: Manifest) -> Manifest | None:
    """Return the manifest of the same run, perhaps with a smaller limit, if it is there; None if the directory can
    become this run's.

    Raises:
        UsageError: as ``claim_run_directory`` does.
    """
    found = check_place(store)
    if found is not None:
        _refuse_if_different(store.describe(MANIFEST), found, wanted)
    return found


def check_place(store: Store) -> Manifest | None:
    """Return the manifest in the directory; None if the directory can become a run's.

    Raises:
        UsageError: it holds something else.
        OSError: it is not there, or cannot be read.
    """
    # Parts are looked up first: a manifest is always older than its parts.
    left = left_of_run(store)
    top, parts = ([entry.name for entry in store.list(place)] for place in ("", PARTS))
    strangers = sorted(filter(is_stranger, top)) + sorted(within(PARTS, name) for name in parts if name[0] != ".")
    found = read_manifest(store)
    if found is None and left is not None:
        raise UsageError(describe_lost(store, left))
    if found is None and strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise UsageError(
            f"--output {store.describe()} holds {strangers[0]}{more}, which no run wrote. Use a new or empty directory."
        )
    return found


def _refuse_too_many_shards(store: Store, found: Manifest, grown: Manifest) -> None:
    """Refuse to grow to a number of shards with more digits than the names of the parts that are there."""
    numbers = [RunNames(manifest.plan.num_shards).number(0) for manifest in (found, grown)]
    if len(set(numbers)) > 1:
        raise UsageError(
            f"{store.describe()} would grow to {grown.plan.num_shards:,} parts, but the names of its parts have room "
            f"for {len(numbers[0])} digits. Use a new --output with a larger --rows-per-shard."
        )


def _refuse_if_different(where: str, found: Manifest, wanted: Manifest) -> None:
    if differences := describe_differences(found, wanted):
        raise RunDiffers(f"{where} {differences}")
