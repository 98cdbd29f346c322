"""How two runs differ, in the words of whoever typed the command: why a restart is refused, and what can be done.

Fields are named as options. What only follows from other options comes last, with the options that it follows from.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from job.config import SECTIONS
from job.errors import shorten
from job.modes.registry import MODES
from job.output.parts.defaults import DEFAULTS, defaults_of
from job.output.parts.input_files import describe_changes
from job.wording import flag, listed

if TYPE_CHECKING:
    from job.output.parts.manifest import Manifest

LABELS = {
    "dataset.reader": "the reader of the files",
    "dataset.card_options": "what the dataset's card says about reading the files",
    "model.tokenizer": "the tokenizer",
    "columns.kept": "what --id-column and --keep-columns keep",
    "columns.reused": "whether rows come from other runs (--reuse)",
    "plan.num_rows": "the number of rows",
    "prompt.request_column": "the column of an OpenAI batch's requests",
    "prompt.text_prefix": "what the model reads before each text",
    "prompt.lowers_case": "whether texts are read in lower case",
    "prompt.whole_conversations": "whether a conversation is read whole",
    "prompt.text_rules": "the version of the rules for text",
    "modes.classify.cuts": "whether long texts are cut",
    "modes.embed.cuts": "whether long texts are cut",
    "modes.classify.problem": "what kind of classifier the model is",
    "modes.classify.labels": "the labels of the classifier",
    "modes.classify.reads_ahead": "whether the model reads a text in both directions",
    "modes.classify.longest_pair": "the longest pair of texts that the model reads",
    "modes.embed.size": "the size of a vector",
    "modes.embed.layers": "what the model's files put after the pooling",
    "modes.embed.lowers_case": "whether texts to embed are read in lower case",
    "modes.embed.prefix": "what the model reads before each text to embed",
    "modes.row_params.request_column": "the column of requests whose parameters count",
}
"""Fields that are not options."""

SOURCES = {
    "dataset.fingerprint": ("dataset", "dataset_config", "dataset_revision", "data_files"),
    "model.fingerprint": ("model", "revision"),
    "model.adapter": ("adapter",),
}
"""Fields that identify contents, and the options that say where the contents come from. These may change alone."""

COMMITS = {
    "dataset.fingerprint": ("dataset_commit", "dataset_revision"),
    "model.fingerprint": ("model_commit", "revision"),
}
"""What ``about`` calls the commits of the contents on the Hub, and the options that name a commit."""

OF_LIMIT = {"dataset.limit", "plan.num_rows"}
"""The fields that a larger ``--limit`` changes."""

OF_ROWS = frozenset({"dataset", "plan", "columns"})
"""Sections that say which rows there are and what is written of them, but not how a row is answered."""

DERIVED = {
    "model.tokenizer": "a hash of the model's vocabulary and chat template",
    "prompt.max_prompt_tokens": "if not given, what --max-new-tokens leaves of the model's length",
    "plan.num_rows": "what lies in the dataset",
}
"""Fields that may follow from others, and how."""


def describe_differences(found: "Manifest", wanted: "Manifest") -> str | None:
    """Say how the wanted run differs from the one that was found, each field with both values, and what to do.

    Returns:
        The sentences that follow the manifest's name; None if it is the same run, or the same with a larger limit.
    """
    before, after = _flatten(found.meaning), _flatten(wanted.meaning)
    names = [name for name in before | after if before.get(name) != after.get(name)]
    if not names or is_growth(found, wanted):
        return None
    if "dataset.limit" in names and set(names) <= OF_LIMIT:
        return f"is a run of more rows: {_change('dataset.limit', before, after)}. {_advice_on_limit(before)}"
    if {"dataset.limit", "dataset.fingerprint"} & set(names):
        names = [name for name in names if name != "plan.num_rows"]  # the other two say it
    is_larger = _is_larger(before, after)
    if is_larger:
        names = [name for name in names if name not in OF_LIMIT]  # that alone would be welcome
    if is_larger and names == ["columns.kept"] and _same_columns(*(side["columns.kept"] for side in (before, after))):
        types = _change("columns.kept", before, after)
        return f"has columns of other types than with the larger --limit: {types}. {_advice_on_types(before)}"
    names.sort(key=lambda name: (name in DERIVED, name not in SOURCES))
    changes = _changes(names, found, wanted)
    causes = [name for name in names if name not in DERIVED]
    commits = [_commits(name, found, wanted) for name in causes if name in SOURCES]
    if causes and len(commits) == len(causes) and all(commits):
        given = [f"{flag(COMMITS[name][1])} {pair[0]}" for name, pair in zip(causes, commits, strict=True)]
        advice = f"Use a new --output, or {listed(given)} to go on."
    elif all(name in SOURCES and not _renamed(name, found, wanted) for name in causes):
        advice = "Use a new --output, or restore the old contents to go on."
        if causes == ["dataset.fingerprint"]:
            advice += " If rows were appended, --extend goes on. Else --reuse copies those that are the same."
    else:
        advice = f"Use a new --output, or the old value{'s' if len(causes) > 1 else ''}."
    return f"is another run: {'; '.join(changes)}. {advice}"


def describe_other_run(other: "Manifest", wanted: "Manifest", *, is_model_known: bool = True) -> str | None:
    """Say how another run treats rows in another way than the wanted one, and what to do.

    Args:
        is_model_known: whether the wanted run's model has been read, so that its contents can be compared.

    Returns:
        The sentence that follows the other run's name; None if rows that ask the same get the same answers.
    """
    before, after = _flatten(other.meaning), _flatten(wanted.meaning)
    left_out = set() if is_model_known else {"model.fingerprint"}
    differing = {name for name in before | after if before.get(name) != after.get(name)} - left_out
    names = [name for name in before | after if name in differing and name.partition(".")[0] not in OF_ROWS]
    if not names:
        return None
    names.sort(key=lambda name: (name in DERIVED, name not in SOURCES))
    changes = "; ".join(_changes(names, other, wanted))
    return f"has other answers: {changes}. Rows can be copied only from a run with the same model, prompt and settings."


def _changes(names: Sequence[str], found: "Manifest", wanted: "Manifest") -> list[str]:
    """Describe how fields differ, one by one."""
    before, after = _flatten(found.meaning), _flatten(wanted.meaning)
    changes = []
    for name in names:
        change = _source(name, found, wanted) if name in SOURCES else _change(name, before, after)
        changes.append(f"{change} ({DERIVED[name]})" if name in DERIVED else change)
    return changes


def is_growth(found: "Manifest", wanted: "Manifest") -> bool:
    """Whether the wanted run is the one that was found, with a larger limit or a dataset that has gained rows."""
    before, after = _flatten(found.meaning), _flatten(wanted.meaning)
    names = {name for name in before | after if before.get(name) != after.get(name)}
    if wanted.extends is not None and wanted.extends == before.get("dataset.fingerprint"):
        is_smaller = "dataset.limit" in names and not _is_larger(before, after)
        return "dataset.fingerprint" in names <= {*OF_LIMIT, "dataset.fingerprint"} and not is_smaller
    return names <= OF_LIMIT and _is_larger(before, after)


def _is_larger(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether the limit has grown."""
    was, now = before.get("dataset.limit"), after.get("dataset.limit")
    return was is not None and (now is None or now > was)


def _same_columns(was: Sequence[str], now: Sequence[str]) -> bool:
    """Whether kept columns differ in nothing but their types."""
    return [text.partition(": ")[0] for text in was] == [text.partition(": ")[0] for text in now]


def _advice_on_types(before: Mapping[str, Any]) -> str:
    return f"Types fit all rows. Use a new --output, or give --limit {before['dataset.limit']} to go on."


def _advice_on_limit(before: Mapping[str, Any]) -> str:
    """Say what can be done if nothing but ``--limit`` has changed, and it has not grown."""
    limit = before.get("dataset.limit")
    old = "leave out --limit" if limit is None else f"give --limit {limit}"
    return f"A run can grow, but not shrink. Use a new --output for fewer rows, or {old} to go on."


def _renamed(name: str, found: "Manifest", wanted: "Manifest") -> list[str]:
    """Describe the options that say where contents come from, if they differ."""
    pairs = [(option, found.about.get(option), wanted.about.get(option)) for option in SOURCES[name]]
    # Not shortened much: long paths often differ at their ends.
    return [f"{flag(option)} was {_show(was, 500)}, now {_show(now, 500)}" for option, was, now in pairs if was != now]


def _source(name: str, found: "Manifest", wanted: "Manifest") -> str:
    """Say how contents have changed: the name of where they come from, or what is there under the same name."""
    files = [manifest.about.get("files", {}) if name == "dataset.fingerprint" else {} for manifest in (found, wanted)]
    changes = f": {describe_changes(*files)}" if {*files[0]} & {*files[1]} and max(map(len, files)) > 1 else ""
    commits = _commits(name, found, wanted)
    moved = f" (commit {commits[0]} then, {commits[1]} now)" if commits else ""
    if renamed := _renamed(name, found, wanted):
        return f"{' and '.join(renamed)}, and the contents differ{moved}{changes}"
    was, now = (_num_rows(manifest) for manifest in (found, wanted))
    rows = f" ({was:,} rows then, {now:,} now)" if name == "dataset.fingerprint" and was and now and was != now else ""
    when = f", {found.about['created']}" if "created" in found.about else ""
    option = SOURCES[name][0]
    details = f"{when}{moved}{changes}{rows}"
    what = wanted.about.get(option)
    what = ", ".join(what) if isinstance(what, list) else what
    return f"{flag(option)} {what} has other contents than when the run started{details}"


def _commits(name: str, found: "Manifest", wanted: "Manifest") -> tuple[str, ...]:
    """Return both commits of contents on the Hub, if they differ and all else that says where they are is the same."""
    if name not in COMMITS:
        return ()
    commit, revision = COMMITS[name]
    places = [[side.about.get(option) for option in SOURCES[name] if option != revision] for side in (found, wanted)]
    was, now = (side.about.get(commit) for side in (found, wanted))
    return (str(was), str(now)) if was and now and was != now and places[0] == places[1] else ()


def _num_rows(manifest: "Manifest") -> int | None:
    """Return how many rows the dataset had; None if the run did not ask for all of them."""
    is_limited = manifest.section("dataset")["limit"] is not None
    return None if is_limited else manifest.section("plan").get("num_rows")


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    items: dict[str, Any] = {}
    for key, inner in value.items():
        items |= _flatten(inner, f"{prefix}.{key}" if prefix else key)
    return items


def _label(name: str) -> str:
    """Return a field's name for the user. One that this version does not know keeps its place in the manifest."""
    leaf = name.rpartition(".")[2]
    return LABELS.get(name) or (flag(leaf) if leaf in _options() else name)


def _options() -> set[str]:
    return {field.name for section in (*SECTIONS, *MODES) for field in fields(section) if "option" in field.metadata}


def _change(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Describe how one field differs. A side that does not name it has the default, if the field has one."""
    defaults = _flatten({**DEFAULTS, "modes": {mode.name: defaults_of(mode) for mode in MODES}})
    values = [side.get(name, defaults.get(name)) for side in (before, after)]
    was, now = map(_show, values)
    label, is_known = _label(name), name in defaults
    if not is_known and name not in after:
        return f"{label} was {was}, which this version does not know"
    if not is_known and name not in before:
        return f"{label} was unknown to the version that wrote it, now {now}"
    return f"{label} was {was}, now {now}{f' ({_where(*map(str, values))})' if was == now else ''}"


def _where(one: str, other: str) -> str:
    """Return where two long texts differ that begin alike."""
    pairs = enumerate(zip(one, other, strict=False))
    place = next((idx for idx, pair in pairs if pair[0] != pair[1]), min(len(one), len(other)))
    excerpts = [repr(text[max(0, place - 10) : place + 30]) for text in (one, other)]
    return f"they differ at character {place}: {' and '.join(excerpts)}"


def _show(value: Any, max_characters: int = 80) -> str:
    """Return a value for a message.

    >>> _show(None), _show([]), _show(True), _show("a"), _show(0.5)
    ('not set', 'not set', 'on', '"a"', '0.5')
    """
    if value is None or value == []:
        return "not set"
    if isinstance(value, bool):
        return "on" if value else "off"
    return shorten(json.dumps(value, ensure_ascii=False) if isinstance(value, str) else value, max_characters)
