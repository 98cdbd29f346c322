"""Looks at some rows before weights are loaded: refuses a run whose every row would fail, and notes what is odd.

Reads the first rows, and only if all of them are alike, others that are spread over the dataset.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from job.config import RunConfig
from job.data.prompts import PromptRenderer
from job.data.source import Source, read_rows
from job.data.special_tokens import SpecialTokens
from job.data.tokenization import EncodedPrompt, Tokenization
from job.errors import UsageError

NUM_FIRST, NUM_SPREAD = 100, 1000
"""How many rows to look at: at the start of the dataset, and spread over the rest."""

FROM_OPTIONS = frozenset(
    [
        *("template_error", "not_a_string", "invalid_messages", "unsupported_content", "ends_with_assistant"),
        *("dropped_message", "special_token", "unknown_token"),
        *("invalid_request", "unsupported_url", "unsupported_parameter", "parameter_mismatch", "invalid_parameter"),
    ]
)
"""Errors which, if all rows have them, come from the options or the form of the data, not from single rows."""

REMEDIES = {
    "dropped_message": "Write such messages as the template knows them, for example with the role system or user",
    "template_error": "Fix the template or the data",
}

REASONING = re.compile(
    r"<(/?)(?:think|thinking|thought|reasoning|analysis|scratchpad)>|\[(/?)THINK\]|◁(/?)think▷", re.I
)
"""What begins and ends a model's reasoning."""

CHANNELS = ("<|channel|>", "<|message|>")
"""Special tokens of models that write reasoning and answer into channels (gpt-oss)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedAt:
    """Rows of a dataset as the run would treat them."""

    values: list[Mapping[str, Any]]
    """The values that prompts are made from."""
    encoded: list[EncodedPrompt]

    def refuse_if_none_works(self) -> None:
        """Refuse the run if no row becomes a prompt, because of the options.

        Raises:
            UsageError: so it is.
        """
        errors = [(each.prompt.row_idx, each.error) for each in self.encoded if each.error is not None]
        if errors and len(errors) == len(self.encoded) and _all_from_options(self.encoded):
            row_idx, error = errors[0]
            remedy = REMEDIES.get(error.kind, "Fix the options or the data")
            rows = "every row is an error" if len(errors) == 1 else f"all {len(errors):,} rows looked at are errors"
            what = str(error).rstrip(".")
            end = "" if what.endswith("?") else "."
            raise UsageError(f"Nothing was started, because {rows}. Row {row_idx}: {what}{end} {remedy}.")

    @property
    def first_prompt(self) -> str | None:
        """The prompt of the first row; None if it has none."""
        first = self.encoded[0] if self.encoded else None
        return None if first is None or first.request is None else first.prompt.text

    def notes(self, config: RunConfig, special_tokens: SpecialTokens) -> list[str]:
        """Return notes for the user."""
        notes = (
            self.note_on_equal(),
            self.note_on_special_tokens(special_tokens, config.prompt.special_tokens_in_text),
            self.note_on_reasoning(_constraint(config)),
        )
        return [note for note in notes if note is not None]

    def note_on_equal(self) -> str | None:
        """Return a note if all rows have the same prompt."""
        texts = {each.prompt.text for each in self.encoded}
        if len(self.encoded) < 2 or len(texts) > 1 or None in texts:
            return None
        return f"all {len(self.encoded):,} prompts looked at are the same: is the right column in the prompt?"

    def note_on_special_tokens(self, special_tokens: SpecialTokens, policy: str) -> str | None:
        """Return a note if the text of rows contains special tokens."""
        found = [token for values in self.values if (token := special_tokens.find(values))]
        if policy != "allow" or not found:
            return None
        return (
            f"{len(found):,} of {len(self.values):,} rows looked at contain special tokens such as {found[0]} in their "
            "text, and the model reads them as such; --special-tokens-in-text escape or error changes that"
        )

    def note_on_reasoning(self, flag: str | None) -> str | None:
        """Return a note if prompts begin the model's reasoning, but the option ``flag`` constrains the answer."""
        works = [each.prompt for each in self.encoded if each.request is not None]
        if flag is None or not works:
            return None
        text, span = str(works[0].text), works[0].content_span
        marks = list(REASONING.finditer(text))
        if not marks or any(marks[-1].groups()):
            return None
        is_in_content = span is not None and marks[-1].start() < span[1]
        if is_in_content and text[marks[-1].end() :].strip():
            return None
        return (
            f"prompts end with {marks[-1][0]}, where the model begins to reason, but {flag} makes it answer there at "
            "once, without reasoning"
        )


def notes_on_channels(special_tokens: Collection[str], config: RunConfig) -> list[str]:
    """Return a note on a model that answers in channels."""
    if not all(token in special_tokens for token in CHANNELS) or _separates_reasoning(config):
        return []
    flag = _constraint(config)
    if flag is not None:
        return [f"this model reasons and answers in channels, but {flag} makes it answer at once, without either"]
    return [
        "this model reasons and answers in channels: completions have the text of all of them, without the special "
        "tokens between them; --logprobs writes the token ids"
    ]


def _constraint(config: RunConfig) -> str | None:
    """Return the option that constrains completions from their first token; None if none does."""
    if _separates_reasoning(config):
        return None
    return next((mode.flag for mode in config.active_modes if mode.decides_end), None)


def _separates_reasoning(config: RunConfig) -> bool:
    return any(mode.before_answer for mode in config.active_modes)


def look_at_rows(
    source: Source, name: str, num_rows: int, renderer: PromptRenderer, tokenization: Tokenization
) -> LookedAt:
    """Render and tokenize some rows.

    Args:
        name: of the dataset, for messages.
        num_rows: of the run.

    Raises:
        JobError: the dataset cannot be read.
    """

    def look(rows: range) -> LookedAt:
        found = [row for block in read_rows(source, name, rows, renderer.read_columns, ()) for row in block.rows]
        encoded = tokenization.encode([renderer.render(row) for row in found])
        return LookedAt(values=[row.values for row in found], encoded=encoded)

    if not num_rows:
        return LookedAt(values=[], encoded=[])
    first = look(range(min(NUM_FIRST, num_rows)))
    is_odd = _all_from_options(first.encoded) or first.note_on_equal() is not None
    if not is_odd or num_rows <= NUM_FIRST or source.is_remote:
        return first
    spread = sample_rows(num_rows - NUM_FIRST, NUM_SPREAD, 1, max_runs=20)
    others = [look(range(NUM_FIRST + rows.start, NUM_FIRST + rows.stop)) for rows in spread]
    return LookedAt(
        values=[*first.values, *(values for each in others for values in each.values)],
        encoded=[*first.encoded, *(encoded for each in others for encoded in each.encoded)],
    )


def sample_rows(num_rows: int, wanted: int | None, num_first: int, *, max_runs: int) -> list[range]:
    """Choose rows that are spread evenly over a dataset, in runs of consecutive rows, far from one another.

    Args:
        num_first: this many rows at the start must be among them.

    >>> sample_rows(1000, 6, 1, max_runs=3)
    [range(0, 2), range(333, 335), range(666, 668)]
    """
    if wanted is None or wanted >= num_rows:
        return [range(num_rows)] if num_rows else []
    num_runs = min(wanted, max_runs)
    runs = []
    position = 0
    for idx in range(num_runs):
        start = max(position, num_rows * idx // num_runs)
        length = wanted * (idx + 1) // num_runs - wanted * idx // num_runs
        position = min(num_rows, start + (length if idx else max(length, num_first)))
        runs.append(range(start, position))
    return [rows for rows in runs if rows]


def _all_from_options(encoded: list[EncodedPrompt]) -> bool:
    return all(each.error is not None and each.error.kind in FROM_OPTIONS for each in encoded)
