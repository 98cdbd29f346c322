"""``--reuse``: the runs whose rows are to be copied. They must treat rows as this one does."""

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from job.config import RunConfig
from job.errors import UsageError
from job.observe.text import number
from job.output.looking.found import find_run
from job.output.looking.journal_counts import JournalCounts
from job.output.parts.copies import OtherRun
from job.output.parts.copy_plan import Other
from job.output.parts.differences import describe_other_run
from job.output.parts.manifest import Manifest
from job.output.store.addresses import ADDRESS, S3, local_path, normal
from job.output.store.names import KEYS
from job.run.identity import dtype_of, in_dtype
from job.wording import public_name

if TYPE_CHECKING:
    from job.run.examination import Examined

JOURNAL_SECS = 5.0
"""How long the rows in the journals of another run are counted."""

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
    manifests = [_manifest_of(name) for name in names]
    shown = _distinct(names, manifests)
    return [
        OtherRun(Other(name=shown[name], address=_place(name), digest=manifest.digest), manifest)
        for name, manifest in zip(names, manifests, strict=True)
    ]


def _manifest_of(name: str) -> Manifest:
    address = ADDRESS.fullmatch(name)
    if address is not None and address[1].lower() not in (S3, "file"):
        raise UsageError(
            f"--reuse {name} is not the directory of a run, but of what was published of it, which does not say what "
            "its rows ask. Name the --output of that run."
        )
    try:
        return find_run(name).manifest
    except UsageError as error:
        raise UsageError(f"--reuse: {error}".replace("--reuse: --output", "--reuse")) from None


def _distinct(names: Sequence[str], manifests: Sequence[Manifest]) -> Mapping[str, str]:
    """Return what the column ``reused_from`` calls each run: its public name, with a number if another run has that.

    Those whose rows these runs have copied themselves have names there already.
    """
    places = {each["name"]: each["address"] for run in manifests for each in run.about.get("reuse", ())}
    found = {}
    for name in names:
        public = public_name(name)
        numbered = (public if number == 1 else f"{public} ({number})" for number in count(1))
        found[name] = next(text for text in numbered if places.get(text, _place(name)) == _place(name))
        places[found[name]] = _place(name)
    return found


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
    if not others:
        return examined
    notes = check_fit(examined.manifest, others, examined.model_info.fallback_dtype)
    origin = [
        {"name": run.other.name, "address": run.other.address, "digest": run.other.digest, **_circumstances(run)}
        for run in others
    ]
    manifest = replace(examined.manifest, about={**examined.manifest.about, "reuse": origin})
    return replace(examined, manifest=manifest, notes=(*examined.notes, *notes))


def check_fit(wanted: Manifest, others: Sequence[OtherRun], fallback_dtype: str | None = None) -> list[str]:
    """Check that the other runs treat rows as the wanted one does, as far as it is known. Returns notes.

    Args:
        fallback_dtype: the dtype in which the wanted run may come out, too.

    Raises:
        UsageError: one of them does not.
    """
    notes: list[str] = []
    for run in others:
        where, parts = run.other.name, run.directory.written_shards()
        is_known = bool(wanted.section("model")["fingerprint"])
        if dtype_of(run.manifest) == fallback_dtype:
            wanted = in_dtype(wanted, fallback_dtype)
        if (differences := describe_other_run(run.manifest, wanted, is_model_known=is_known)) is not None:
            raise UsageError(f"--reuse {where} {differences}")
        num_journaled = _num_journaled(run, parts)
        left_out = (
            f"{number(num_journaled, 'row')} of {where} {'is' if num_journaled == 1 else 'are'} finished, but in its "
            "journals, from which none is copied. To have them copied, run its own command to the end first."
        )
        if run.manifest.is_format_2 or not any(_has_keys(run)):
            advice = OLDER if parts and not run.manifest.is_format_2 else left_out if num_journaled else "Leave it out."
            raise UsageError(f"--reuse {where} has no finished part that says what its rows ask. {advice}")
        if num_journaled:
            notes.append(left_out)
        if num_unknown := _num_unknown(run):
            notes.append(f"{number(num_unknown, 'part')} of {where} will not be copied. {OLDER}")
        has_prompt, wants_prompt = (each.section("columns")["include_prompt"] for each in (run.manifest, wanted))
        if wants_prompt and not has_prompt:
            raise UsageError(
                f"--reuse {where} has no column 'prompt', which would be null in copied rows. Give --no-include-prompt."
            )
    return notes


def _num_journaled(run: OtherRun, parts: Container[int]) -> int:
    """Return how many finished rows of a run are in no part yet, as far as they can be counted in a few seconds."""
    counts = JournalCounts(run.directory, run.plan)
    counts.look(budget_secs=JOURNAL_SECS)
    return sum(found.num_rows for shard_idx, found in counts.of_shards().items() if shard_idx not in parts)


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
