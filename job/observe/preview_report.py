"""What a run would do: for people as text, for programs as JSON values."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from job.modes.mode import Section
from job.observe.histogram import Histogram

GIB = 1024**3

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenPrompt:
    """A prompt as the model will read it."""

    row_idx: int
    text: str
    """Special tokens included."""
    num_tokens: int
    was_cut: bool
    """Whether it was too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenError:
    """Rows that become error rows for the same kind of reason."""

    kind: str
    num_rows: int
    first_row_idx: int
    first_detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KvMemory:
    """An estimate of what the KV cache takes, on each process."""

    bytes_per_token: int
    num_new_tokens: int
    """Of a completion at most."""
    num_shared_tokens: int
    """At the beginning of every prompt; they are kept once."""

    def row_bytes(self, num_prompt_tokens: int) -> int:
        """Return what a row with such a prompt takes when its completion is as long as it may be."""
        return (num_prompt_tokens + self.num_new_tokens) * self.bytes_per_token

    def rows_per_gib(self, num_prompt_tokens: int) -> int:
        """Return how many such rows fit in 1 GiB at once, the shared tokens kept once among them."""
        shared_bytes = self.num_shared_tokens * self.bytes_per_token
        return max(0, GIB - shared_bytes) // (self.row_bytes(num_prompt_tokens) - shared_bytes)

    def to_dict(self, num_prompt_tokens: int) -> dict[str, int]:
        """Return JSON values for a row with such a prompt."""
        return {
            "prompt_tokens": num_prompt_tokens,
            "bytes": self.row_bytes(num_prompt_tokens),
            "rows_per_gib": self.rows_per_gib(num_prompt_tokens),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a run would do. Counts of rows are of those that were read."""

    dataset: str
    model: str
    dtype: str
    tensor_parallel_size: int
    max_model_len: int
    num_rows: int
    """Of the dataset, up to ``--limit``."""
    num_shards: int
    rows_per_shard: int
    num_samples: int
    sampled: str
    """``all`` rows were read, ``spread`` ones from everywhere, or the ``first`` ones."""
    num_sampled: int
    prompts: Sequence[SeenPrompt]
    sections: Sequence[Section]
    """What the run's modes show."""
    empty_sections: Mapping[str, object]
    """The JSON values of modes that the run has not."""
    lengths: Histogram | None
    """Of prompts in tokens, before any is cut. None if no row has a prompt."""
    admitted: Histogram | None
    """Of those that the model will read."""
    max_prompt_tokens: int
    on_long_prompt: str
    num_too_long: int
    num_cut: int
    """Of those, the ones that will be cut; the others become error rows."""
    errors: Sequence[SeenError]
    """Not those that are too long."""
    num_shared_tokens: int
    """With which all prompts begin."""
    kv_memory: KvMemory | None
    """None if the model's configuration does not tell."""
    schema: Sequence[tuple[str, str]]
    """Columns of the output and their Arrow types."""
    notes: Sequence[str]

    def to_dict(self) -> dict[str, object]:
        """Return JSON values. The names are a promise: they stay."""
        return {
            "dataset": self.dataset,
            "model": {
                "name": self.model,
                "dtype": self.dtype,
                "tensor_parallel_size": self.tensor_parallel_size,
                "max_model_len": self.max_model_len,
            },
            "plan": {
                "rows": self.num_rows,
                "shards": self.num_shards,
                "rows_per_shard": self.rows_per_shard,
                "samples": self.num_samples,
                "completions": self.num_rows * self.num_samples,
            },
            "sample": {"rows": self.num_sampled, "which": self.sampled},
            "prompts": [asdict(prompt) for prompt in self.prompts],
            **self.empty_sections,
            **{name: value for section in self.sections for name, value in section.values.items()},
            "lengths": None if self.lengths is None else asdict(self.lengths),
            "too_long": {
                "limit": self.max_prompt_tokens,
                "policy": self.on_long_prompt,
                "rows": self.num_too_long,
                "cut": self.num_cut,
                "errors": self.num_too_long - self.num_cut,
            },
            "errors": [asdict(error) for error in self.errors],
            "shared_prefix_tokens": self.num_shared_tokens,
            "kv_memory": self._memory_to_dict(),
            "schema": [{"name": name, "type": data_type} for name, data_type in self.schema],
            "notes": list(self.notes),
        }

    def _memory_to_dict(self) -> dict[str, object] | None:
        memory, lengths = self.kv_memory, self.admitted
        if memory is None:
            return None
        return {
            "bytes_per_token": memory.bytes_per_token,
            "new_tokens": memory.num_new_tokens,
            "median_row": None if lengths is None else memory.to_dict(lengths.median),
            "longest_row": None if lengths is None else memory.to_dict(lengths.max),
        }


def describe_preview(preview: Preview) -> str:
    """Return a preview as text, the prompts first."""
    return "\n".join(
        [
            *(line for prompt in preview.prompts for line in _prompt(prompt)),
            *_titled("dataset", [_dataset(preview)]),
            *_titled("plan", [_plan(preview)]),
            *_titled("model", [_model(preview)]),
            *(line for section in preview.sections for line in _titled(section.title, section.lines)),
            *_titled("lengths", _lengths(preview)),
            *_titled("too long", [_too_long(preview)]),
            *_titled("errors", [_error(error, preview) for error in preview.errors] or ["none"]),
            *_titled("shared", [_shared(preview)]),
            *_titled("KV cache", _memory(preview)),
            *_titled("columns", [f"{name}: {data_type}" for name, data_type in preview.schema]),
            *_titled("note", preview.notes),
        ]
    )


def _titled(title: str, lines: Sequence[str]) -> list[str]:
    """Put a title before the first of some lines."""
    return [f"  {title if idx == 0 else '':<10}{line}" for idx, line in enumerate(lines)]


def _prompt(prompt: SeenPrompt) -> list[str]:
    cut = ", cut" if prompt.was_cut else ""
    lines = [f"  | {_visible(line)}" for line in prompt.text.split("\n")]
    return [f"row {prompt.row_idx}: {prompt.num_tokens:,} tokens{cut}", *lines, ""]


def _visible(line: str) -> str:
    """Write control characters as escapes: a terminal would obey them.

    >>> _visible("a\\tb\\r\\x1b[2J")
    'a\\tb\\\\r\\\\x1b[2J'
    """
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], line)


def _dataset(preview: Preview) -> str:
    ways = {
        "all": "all of them read",
        "spread": f"{preview.num_sampled:,} from everywhere read",
        "first": f"the first {preview.num_sampled:,} read",
    }
    return f"{preview.dataset}: {preview.num_rows:,} rows, {ways[preview.sampled]}"


def _plan(preview: Preview) -> str:
    shards = "1 shard" if preview.num_shards == 1 else f"{preview.num_shards:,} shards"
    completions = preview.num_rows * preview.num_samples
    samples = "" if preview.num_samples == 1 else f" with {preview.num_samples:,} samples each: {completions:,} in all"
    return f"{preview.num_rows:,} rows in {shards} of {preview.rows_per_shard:,}{samples}"


def _model(preview: Preview) -> str:
    return f"{preview.model} in {preview.dtype} (on this machine), room for {preview.max_model_len:,} tokens"


def _lengths(preview: Preview) -> list[str]:
    lengths = preview.lengths
    if lengths is None:
        return ["no row has a prompt"]
    figures = f"min {lengths.min:,}, median {lengths.median:,}, 95 % up to {lengths.p95:,}, max {lengths.max:,} tokens"
    return [figures, *lengths.bars()]


def _too_long(preview: Preview) -> str:
    limit = f"more than {preview.max_prompt_tokens:,} tokens"
    if not preview.num_too_long:
        return f"none has {limit}"
    side = preview.on_long_prompt.removeprefix("truncate-")
    num_errors = preview.num_too_long - preview.num_cut
    fates = [
        *([f"{preview.num_cut:,} will be cut at the {side}"] if preview.num_cut else []),
        *([f"{num_errors:,} will be error rows (prompt_too_long)"] if num_errors else []),
    ]
    return f"{_share(preview.num_too_long, preview)} have {limit}: {', '.join(fates)}"


def _error(error: SeenError, preview: Preview) -> str:
    rows = _share(error.num_rows, preview)
    return f"{error.kind} {rows}; the first is row {error.first_row_idx}: {_visible(error.first_detail)}"


def _share(num_rows: int, preview: Preview) -> str:
    return f"{num_rows:,} of {preview.num_sampled:,} ({100 * num_rows / preview.num_sampled:.1f} %)"


def _shared(preview: Preview) -> str:
    return f"{preview.num_shared_tokens:,} tokens begin every prompt: they are computed and kept once"


def _memory(preview: Preview) -> list[str]:
    memory, lengths = preview.kv_memory, preview.admitted
    if memory is None:
        return ["unknown: the model's configuration does not tell"]
    size = preview.tensor_parallel_size
    per_process = "" if size == 1 else f" on each of {size} processes"
    lines = [f"{memory.bytes_per_token:,} bytes a token{per_process}, by an estimate"]
    if lengths is not None:
        for name, num_tokens in (("median", lengths.median), ("longest", lengths.max)):
            lines.append(
                f"{name} row, {num_tokens:,} + {memory.num_new_tokens:,} tokens: "
                f"{memory.row_bytes(num_tokens) / 1024**2:,.1f} MiB, {memory.rows_per_gib(num_tokens):,} fit in 1 GiB"
            )
    return lines
