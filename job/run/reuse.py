"""``--reuse``: the runs whose rows are to be copied. They must treat rows as this one does."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from job.config import RunConfig
from job.errors import UsageError
from job.observe.text import number
from job.output.looking.found import find_run
from job.output.parts.copies import OtherRun
from job.output.parts.copy_plan import Other
from job.output.parts.differences import describe_other_run
from job.output.parts.manifest import Manifest
from job.output.store.addresses import local_path, normal
from job.output.store.names import KEYS
from job.wording import public_name

if TYPE_CHECKING:
    from job.run.examination import Examined

OLDER = (
    "Older versions did not record that. If its dataset is as it was, run its own command once more with this version, "
    "which does."
)


def open_others(config: RunConfig, found: Manifest | None) -> list[OtherRun]:
    """Find the runs whose rows are to be copied.

    Args:
        found: the manifest in the run directory, if there is one already.

    Raises:
        UsageError: one of them is not a run, or is this one, or this run was begun with others.
    """
    by_place: dict[str, str] = {}
    for name in config.output.reuse:
        if not name.strip():
            raise UsageError("--reuse is empty. Name the --output of another run, or leave it out.")
        if _place(name) == _place(config.output.output):
            raise UsageError(f"--reuse {name} is --output, too. To go on with that run, leave out --reuse.")
        by_place.setdefault(_place(name), name)
    names = list(by_place.values())
    if found is not None:
        _check_restart(names, found)
        return []
    others = []
    for name in names:
        try:
            run = find_run(name)
        except UsageError as error:
            raise UsageError(f"--reuse: {error}") from None
        other = Other(name=public_name(name), address=_place(name), digest=run.manifest.digest)
        others.append(OtherRun(other, run.manifest))
    return others


def _check_restart(names: Sequence[str], found: Manifest) -> None:
    if not names:
        return
    begun = [other["address"] for other in found.about.get("reuse", ())]
    if begun and sorted(begun) != sorted(map(_place, names)):
        was = ", ".join(other["name"] for other in found.about["reuse"])
        raise UsageError(
            f"--reuse was {was} when the run in --output began, now {', '.join(names)}. Leave --reuse out to go on, or "
            "use a new --output."
        )
    if not begun:
        raise UsageError(
            "--reuse was given, but the run in --output began without it, so its rows have no column for their origin. "
            "Leave --reuse out to go on, or use a new --output."
        )


def _place(name: str) -> str:
    path = local_path(name)
    return normal(name) if path is None else os.path.realpath(path)


def as_in_others(config: RunConfig, others: Sequence[OtherRun]) -> RunConfig:
    """Return the configuration with the date of the other runs, if it has none: it is part of their prompts."""
    dates = {run.manifest.section("prompt")["date"] for run in others}
    same_model = all(run.manifest.about.get("model") == config.model.model for run in others)
    if config.prompt.date is None and same_model and len(dates) == 1 and (date := dates.pop()) is not None:
        return replace(config, prompt=replace(config.prompt, date=date))
    return config


def check_others(examined: "Examined", others: Sequence[OtherRun]) -> "Examined":
    """Check that the other runs treat rows as this one does. Returns what was examined; its manifest names the others.

    Raises:
        UsageError: one of them does not.
    """
    notes: list[str] = []
    for run in others:
        where = run.other.name
        is_known = bool(examined.manifest.section("model")["fingerprint"])
        if (differences := describe_other_run(run.manifest, examined.manifest, is_model_known=is_known)) is not None:
            raise UsageError(f"--reuse {where} {differences}")
        if run.manifest.is_format_2 or not any(_has_keys(run)):
            advice = OLDER if run.directory.written_shards() and not run.manifest.is_format_2 else "Leave it out."
            raise UsageError(f"--reuse {where} has no finished part that says what its rows ask. {advice}")
        if num_unknown := _num_unknown(run):
            notes.append(f"{number(num_unknown, 'part')} of {where} will not be copied. {OLDER}")
        if examined.columns.include_prompt and not run.manifest.section("columns")["include_prompt"]:
            raise UsageError(
                f"--reuse {where} has no column 'prompt', which would be null in copied rows. Give --no-include-prompt."
            )
    if not others:
        return examined
    origin = [
        {"name": run.other.name, "address": run.other.address, "digest": run.other.digest, **_circumstances(run)}
        for run in others
    ]
    manifest = replace(examined.manifest, about={**examined.manifest.about, "reuse": origin})
    return replace(examined, manifest=manifest, notes=(*examined.notes, *notes))


def _circumstances(run: OtherRun) -> dict[str, object]:
    return {name: run.manifest.about.get(name) for name in ("dataset", "created")}


def _has_keys(run: OtherRun) -> Iterator[bool]:
    parts = run.directory.written_shards()
    found = (run.keys_of(shard_idx) for shard_idx in sorted(parts))
    yield from (keys is not None and bool(keys.any()) for keys in found)


def _num_unknown(run: OtherRun) -> int:
    """Return the number of parts that do not say what their rows ask."""
    known = {int(entry.name) for entry in run.directory.store.list(KEYS) if entry.name.isdecimal()}
    return len(run.directory.written_shards() - known)
