"""``README.md`` of a run directory and of a repository that it is published to: a dataset card, which describes the
parts to Hugging Face and to people.

All its facts come from the manifest and the parts' counts, so all workers that conclude a run write the same card.
(huggingface.co/docs/hub/datasets-cards, huggingface.co/docs/hub/datasets-manual-configuration)
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from job.errors import JobError
from job.modes.ignored import ignored_by
from job.output.parts.counts import Counts
from job.output.parts.manifest import Manifest
from job.output.parts.markdown import block, code
from job.output.store.names import CARD, PART_PATTERN, within
from job.output.store.store import Store
from job.wording import UNLIMITED, public_name

MARK_START = "<!-- Written by job, and "
"""The start of the mark in cards of every version. A card without it belongs to the user."""

MARK = f"{MARK_START}rewritten when rows are retried. Remove this line to keep a text of your own. -->"

SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
"""The bounds of Hugging Face's size categories, 1000 to 10**12."""

LONG_PROMPTS = {
    "error": "are error rows",
    "truncate-left": "are cut at the left of the row's own text",
    "truncate-right": "are cut at the right of the row's own text",
}

SHOWN_FILES = 3
"""The card names this many of the dataset's files; the manifest names all."""

LONG_TEXT = 80
"""Texts of more characters get a block of their own."""


def write_card(store: Store, manifest: Manifest, counts: Counts) -> None:
    """Write the card of a finished run, unless its README.md belongs to the user or is up to date.

    Args:
        counts: the sums over all parts.

    Raises:
        JobError: it cannot be written.
    """
    content = make_card(manifest, counts).encode()
    try:
        if _is_to_be_written(store, content):
            store.replace(CARD, content)
    except FileNotFoundError:
        return  # another worker has swept our draft, and writes the same card afterwards
    except OSError as error:
        raise JobError(
            f"{store.describe(CARD)} cannot be written: {error.strerror or error}. All rows are in the parts; "
            "run the same command once this is fixed."
        ) from None


def _is_to_be_written(store: Store, content: bytes) -> bool:
    try:
        found = store.read(CARD)
    except FileNotFoundError:
        return not store.exists(CARD)  # a dangling link is not ours
    except OSError:  # a directory, or a file that only its owner may read
        return False
    return is_ours(found) and found != content


def is_ours(card: bytes) -> bool:
    """Whether a card was written by ``job``, and its owner has not taken it over."""
    return MARK_START.encode() in card


def make_card(
    manifest: Manifest,
    counts: Counts,
    *,
    address: str = "path/or/id/of/this/directory",
    num_planned_rows: int | None = None,
) -> str:
    """Return the text of the card.

    Args:
        counts: the sums over the parts that the card describes.
        address: where ``datasets`` finds them.
        num_planned_rows: of a run that is not finished, how many rows it will have.
    """
    paragraphs = [
        _front_matter(manifest, counts),
        MARK,
        f"# {_content(manifest)} of {public_name(manifest.about['dataset'])} by {public_name(manifest.about['model'])}",
        *([] if num_planned_rows is None else [_unfinished(counts.num_rows, num_planned_rows)]),
        _counts(manifest, counts),
        f'```python\nimport datasets\n\nrows = datasets.load_dataset({json.dumps(address)}, split="train")\n```',
        "## How it was made",
        "\n".join(f"- {fact}" for fact in _facts(manifest)),
        "## Prompts",
        *_prompts(manifest.section("prompt")),
        *_answers(manifest),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _content(manifest: Manifest) -> str:
    """Return what the rows are called in the title."""
    return next((mode.content for mode in manifest.modes if mode.content), "Completions")


def _front_matter(manifest: Manifest, counts: Counts) -> str:
    """Return the YAML. (Every JSON string is also a YAML string.)

    The description is for the cache of ``datasets`` (5.2), which identifies a directory that has a card by its name
    and these values, not by its files: without it, a cached run in another ``out`` could be read instead of this one.
    """
    category = next((mode.task_category for mode in manifest.modes if mode.task_category), "text-generation")
    return "\n".join(
        [
            "---",
            "configs:",
            "- config_name: default",
            "  data_files:",
            "  - split: train",
            f"    path: {json.dumps(within(manifest.part_dir, PART_PATTERN))}",
            f"  description: {json.dumps(_description(manifest, counts))}",
            "size_categories:",
            f"- {size_category(counts.num_rows)}",
            "task_categories:",
            f"- {category}",
            "tags:",
            "- synthetic",
            *([f"base_model: {json.dumps(manifest.about['model'])}"] if _commit(manifest) else []),
            "---",
        ]
    )


def _description(manifest: Manifest, counts: Counts) -> str:
    """Return a line that is unique to this run, and changes when error rows have been retried."""
    return (
        f"{_origin(manifest)}: {counts.num_rows} rows, {counts.num_errors} with "
        f"an error, {counts.num_prompt_tokens} and {counts.num_completion_tokens} tokens"
    )


def _origin(manifest: Manifest) -> str:
    return f"Run {manifest.digest[:16]} of {manifest.about['created']}"


def other_origin(card: str, manifest: Manifest) -> str | None:
    """Return which run a card describes, if it is not this one."""
    found = re.search(r"Run [0-9a-f]{16} of \S+(?=: \d+ rows)", card)
    return None if found is None or found[0] == _origin(manifest) else found[0]


def _unfinished(num_rows: int, num_planned_rows: int) -> str:
    return (
        f"> **Unfinished: {num_rows:,} of {num_planned_rows:,} rows so far.** Further rows are added while the run "
        "goes on."
    )


def size_category(num_rows: int) -> str:
    """Return Hugging Face's size category for a number of rows.

    >>> size_category(999), size_category(1000), size_category(10**12)
    ('n<1K', '1K<n<10K', 'n>1T')
    """
    idx = sum(num_rows >= 10 ** (3 + place) for place in range(len(SIZES)))
    if idx == 0:
        return f"n<{SIZES[0]}"
    return f"n>{SIZES[-1]}" if idx == len(SIZES) else f"{SIZES[idx - 1]}<n<{SIZES[idx]}"


def _commit(manifest: Manifest) -> str | None:
    """Return the commit of the model on the Hub; None if it came from a directory.

    Up to version 0.3, the commit was what identified the model.
    """
    known = manifest.section("model")["fingerprint"]
    return manifest.about.get("model_commit") or (known if re.fullmatch("[0-9a-f]{40}", known) else None)


def _facts(manifest: Manifest) -> Iterator[str]:
    identity, about = manifest.meaning, manifest.about
    model = f"Model: {code(public_name(about['model']))}"
    if about["revision"]:
        model += f", revision {code(about['revision'])}"
    if commit := _commit(manifest):
        model += f", commit {code(commit)}"
    names = zip(about.get("adapter", []), about.get("adapter_commits", []), strict=True)
    adapters = [code(public_name(name)) + (f", commit {code(commit)}" if commit else "") for name, commit in names]
    if identity["engine"] != "model":
        yield "No model: a fake engine, for tests, has turned the prompts round"
    yield f"{model}, in {identity['model']['dtype']}"
    if adapters:
        yield f"Merged into it: {'; '.join(adapters)}"
    yield f"Dataset: {', '.join(_dataset(manifest))}"
    for run in about.get("earlier_runs", ()):
        model = f" by {code(public_name(run['model']))}" if run["model"] else ""
        yield f"From the earlier run {code(public_name(run['output']))}{model}, identity {code(run['identity'][:16])}"
    for other in about.get("reuse", ()):
        yield f"Rows that ask the same come from the run {code(other['name'])}, identity {code(other['digest'][:16])}"
    if values := [f"{name} {code(value)}" for name, value in _sampling(manifest) if value not in (None, [])]:
        yield f"Sampling: {', '.join(values)}"
    yield f"Date: {about['created']}"
    yield f"Versions: {', '.join(f'{name} {number}' for name, number in about['versions'].items())}"


def _sampling(manifest: Manifest) -> Iterator[tuple[str, Any]]:
    """Yield the sampling options: all of them if tokens are drawn, else those that were given and have an effect."""
    modes = manifest.modes
    if any(mode.always_generates for mode in modes) or not any(mode.draws_nothing for mode in modes):
        yield from manifest.section("sampling").items()
        return
    ignored = ignored_by(modes)
    given = manifest.meaning.get("sampling", {})
    yield from ((name, value) for name, value in given.items() if name not in ignored)


def _dataset(manifest: Manifest) -> Iterator[str]:
    dataset, about = manifest.section("dataset"), manifest.about
    yield code(public_name(about["dataset"]))
    if about["dataset_config"]:
        yield f"configuration {code(about['dataset_config'])}"
    if about["dataset_revision"]:
        yield f"revision {code(about['dataset_revision'])}"
    if about.get("dataset_commit"):
        yield f"commit {code(about['dataset_commit'])}"
    if about["data_files"]:
        yield f"files {', '.join(code(public_name(name)) for name in about['data_files'])}"
    yield f"split {code(dataset['split'])}"
    if dataset["limit"] is not None:
        yield f"the first {dataset['limit']:,} rows"
    if dataset["earlier_errors"] == "skip":
        yield "without its error rows"
    names = [public_name(name) for name in about.get("files", ())]
    if names and names != [public_name(about["dataset"])]:
        more = f" and {len(names) - SHOWN_FILES:,} more" if len(names) > SHOWN_FILES else ""
        yield f"read from {', '.join(map(code, names[:SHOWN_FILES]))}{more}"


def _prompts(prompt: Mapping[str, Any]) -> Iterator[str]:
    if prompt["prompt_template"] is not None:
        yield "The prompt of a row is this Jinja2 template over its columns:"
        yield block(prompt["prompt_template"])
    elif prompt["messages_column"] is not None:
        yield f"The prompt of a row is the conversation in its column {code(prompt['messages_column'])}."
    elif prompt["request_column"] is not None:
        yield f"The prompt of a row is the request to OpenAI's API in its column {code(prompt['request_column'])}."
    else:
        yield f"The prompt of a row is the text in its column {code(prompt['prompt_column'])}."
    if prompt["system_prompt"] is not None:
        yield "It is preceded by this system prompt:"
        yield block(prompt["system_prompt"])
    if prompt["examples"] is not None:
        yield "These examples come directly before it:"
        yield block(prompt["examples"])
    for side, language in (("Prompts", prompt["source_language"]), ("Answers", prompt["target_language"])):
        if language is not None:
            yield f"{side} are in the language {code(language)} of the model."
    template = "The model's chat template is applied." if prompt["chat"] else "No chat template is applied."
    most = prompt["max_prompt_tokens"]
    limit = f" Prompts of more than {most:,} tokens {LONG_PROMPTS[prompt['on_long_prompt']]}."
    yield template if most == UNLIMITED else template + limit


def _answers(manifest: Manifest) -> Iterator[str]:
    """Yield the constraints on completions, under the names of their options."""
    given = {name: value for mode in manifest.modes for name, value in mode.card_values().items()}
    if given:
        yield "## Answers"
    for name, value in given.items():
        option = name.replace("_", "-")
        if isinstance(value, str) and (len(value) > LONG_TEXT or "\n" in value):
            yield f"{option}:"
            yield block(value)
        else:
            values = value if isinstance(value, list | tuple) else [value]
            yield f"{option}: {', '.join(map(code, values))}"


def _counts(manifest: Manifest, counts: Counts) -> str:
    kinds = [(f"error `{kind}`", number) for kind, number in counts.errors.most_common()]
    rows = [
        ("rows", counts.num_rows),
        ("rows with a completion", counts.num_rows - counts.num_errors),
        *(kinds or [("rows with an error", 0)]),
        ("prompt tokens", counts.num_prompt_tokens),
        *([("completion tokens", counts.num_completion_tokens)] if counts.num_completion_tokens else []),
    ]
    table = ["| | number |", "|---|---:|", *(f"| {name} | {number:,} |" for name, number in rows)]
    outcome = [f"- {title}: {line}" for title, line in counts.lines(manifest)]
    return "\n".join([*table, *(["", *outcome] if outcome else [])])
