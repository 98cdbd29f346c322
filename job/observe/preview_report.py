"""What a run would do, as text for people and as JSON values for programs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from job.modes.mode import Section
from job.observe.fit_report import FitReport
from job.observe.histogram import Histogram
from job.observe.text import number, visible, with_adapters
from job.wording import UNLIMITED

GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenPrompt:
    """A prompt as the model will read it."""

    row_idx: int
    text: str
    """Includes special tokens."""
    num_tokens: int
    was_cut: bool
    """Whether it was too long and has been truncated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenError:
    """Rows that become error rows of the same kind."""

    kind: str
    num_rows: int
    first_row_idx: int
    first_detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KvMemory:
    """An estimate of the KV cache memory that each process needs."""

    bytes_per_token: int
    num_new_tokens: int
    """The most tokens that a completion can have."""
    num_shared_tokens: int
    """Tokens at the beginning of every prompt, which are stored once."""

    def row_bytes(self, num_prompt_tokens: int) -> int:
        """Return the memory for a row with a prompt of this length and the longest possible completion."""
        return (num_prompt_tokens + self.num_new_tokens) * self.bytes_per_token

    def rows_per_gib(self, num_prompt_tokens: int) -> int:
        """Return how many such rows fit in 1 GiB at once. The shared tokens are stored once and count."""
        shared_bytes = self.num_shared_tokens * self.bytes_per_token
        return max(0, GIB - shared_bytes) // (self.row_bytes(num_prompt_tokens) - shared_bytes)

    def to_dict(self, num_prompt_tokens: int) -> dict[str, int]:
        """Return JSON values for a row with a prompt of this length."""
        return {
            "prompt_tokens": num_prompt_tokens,
            "bytes": self.row_bytes(num_prompt_tokens),
            "rows_per_gib": self.rows_per_gib(num_prompt_tokens),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a run would do. Row counts are of the rows that were read."""

    dataset: str
    place: str
    """The split and the files that the rows come from."""
    files: Sequence[str]
    """The names of all of them."""
    not_read: Sequence[str]
    """What lies beside them."""
    model: str
    adapters: Sequence[str]
    """Merged into the model."""
    dtype: str
    quantization: str | None
    """Of the linear layers."""
    tensor_parallel_size: int
    max_model_len: int
    num_rows: int
    """The rows of the dataset, up to ``--limit``."""
    num_shards: int
    rows_per_shard: int
    num_samples: int
    sampled: str
    """Which rows were read: ``all``, ``spread`` over the dataset, or the ``first`` ones."""
    num_sampled: int
    prompts: Sequence[SeenPrompt]
    sections: Sequence[Section]
    """The sections that the run's modes add."""
    empty_sections: Mapping[str, object]
    """The JSON values of the modes that this run does not use."""
    lengths: Histogram | None
    """Prompt lengths in tokens, before truncation. None if no row has a prompt."""
    admitted: Histogram | None
    """Lengths of the prompts that the model will read, after truncation."""
    max_prompt_tokens: int
    on_long_prompt: str
    num_too_long: int
    num_cut: int
    """How many of the prompts that are too long will be truncated. The others become error rows."""
    errors: Sequence[SeenError]
    """Errors other than ``prompt_too_long``."""
    num_shared_tokens: int
    """The length of the beginning that all prompts share."""
    has_cache: bool
    """Whether the model keeps keys and values; encoders read each text at once."""
    kv_memory: KvMemory | None
    """None if the model's configuration does not contain the sizes."""
    fit: FitReport | None
    """None if the sizes are unknown, or there is no model."""
    schema: Sequence[tuple[str, str]]
    """Columns of the output and their Arrow types."""
    notes: Sequence[str]

    @property
    def num_errors(self) -> int:
        """How many of the rows that were read will be error rows."""
        return sum(error.num_rows for error in self.errors) + self.num_too_long - self.num_cut

    def to_dict(self) -> dict[str, object]:
        """Return JSON values. The names are stable: programs rely on them."""
        return {
            "dataset": self.dataset,
            "files": list(self.files),
            "not_read": list(self.not_read),
            "model": {
                "name": self.model,
                "adapters": list(self.adapters),
                "dtype": self.dtype,
                "quantization": self.quantization,
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
            "fit": None if self.fit is None else self.fit.to_dict(),
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
            *_titled("dataset", [_dataset(preview), *([preview.place] if len(preview.files) > 1 else [])]),
            *_titled("plan", [_plan(preview)]),
            *_titled("model", [_model(preview)]),
            *(line for section in preview.sections for line in _titled(section.title, section.lines)),
            *_titled("lengths", _lengths(preview)),
            *_titled("too long", [_too_long(preview)]),
            *_titled("errors", [_error(error, preview) for error in preview.errors] or ["none"]),
            *(_of_cache(preview) if preview.has_cache else ()),
            *_titled("columns", [f"{name}: {data_type}" for name, data_type in preview.schema]),
            *_titled("note", preview.notes),
        ]
    )


def _titled(title: str, lines: Sequence[str]) -> list[str]:
    """Put a title before the first line and indent the others."""
    return [f"  {title if idx == 0 else '':<10}{line}" for idx, line in enumerate(lines)]


def _prompt(prompt: SeenPrompt) -> list[str]:
    cut = ", cut" if prompt.was_cut else ""
    lines = [f"  | {visible(line)}" for line in prompt.text.split("\n")]
    return [f"row {prompt.row_idx}: {prompt.num_tokens:,} tokens{cut}", *lines, ""]


def _dataset(preview: Preview) -> str:
    ways = {
        "all": "all of which were read",
        "spread": f"{preview.num_sampled:,} of which were read, spread over the dataset",
        "first": f"the first {preview.num_sampled:,} of which were read",
    }
    return f"{preview.dataset}: {number(preview.num_rows, 'row')}, {ways[preview.sampled]}"


def _plan(preview: Preview) -> str:
    completions = preview.num_rows * preview.num_samples
    samples = "" if preview.num_samples == 1 else f" with {preview.num_samples:,} samples each: {completions:,} in all"
    shards = f"{number(preview.num_shards, 'shard')} of {preview.rows_per_shard:,}"
    return f"{number(preview.num_rows, 'row')} in {shards}{samples}"


def _model(preview: Preview) -> str:
    where = "this machine" if preview.fit is None else preview.fit.device
    layers = f", layers in {preview.quantization}" if preview.quantization else ""
    model = with_adapters(preview.model, preview.adapters)
    return f"{model} in {preview.dtype}{layers} (on {where}), room for {preview.max_model_len:,} tokens"


def _lengths(preview: Preview) -> list[str]:
    lengths = preview.lengths
    if lengths is None:
        return ["no row has a prompt"]
    figures = f"min {lengths.min:,}, median {lengths.median:,}, 95 % up to {lengths.p95:,}, max {lengths.max:,} tokens"
    return [figures, *lengths.bars()]


def _too_long(preview: Preview) -> str:
    if preview.max_prompt_tokens == UNLIMITED:
        return "none: texts may have any length"
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
    return f"{error.kind} {rows}; the first is row {error.first_row_idx}: {visible(error.first_detail)}"


def _share(num_rows: int, preview: Preview) -> str:
    return f"{num_rows:,} of {preview.num_sampled:,} ({100 * num_rows / preview.num_sampled:.1f} %)"


def _of_cache(preview: Preview) -> Iterator[str]:
    yield from _titled("shared", [_shared(preview)])
    yield from _titled("KV cache", _memory(preview))
    yield from _titled("memory", ["unknown"] if preview.fit is None else list(preview.fit.lines()))


def _shared(preview: Preview) -> str:
    if not preview.num_shared_tokens:
        return "no beginning of the prompts is computed once for all"
    return f"all prompts begin with the same {preview.num_shared_tokens:,} tokens, which are computed and stored once"


def _memory(preview: Preview) -> list[str]:
    memory, lengths = preview.kv_memory, preview.admitted
    if memory is None:
        return ["unknown: the model's configuration does not contain the sizes"]
    size = preview.tensor_parallel_size
    per_process = "" if size == 1 else f" on each of {size} processes"
    lines = [f"{memory.bytes_per_token:,} bytes per token{per_process} (estimate)"]
    if lengths is not None:
        for name, num_tokens in (("median", lengths.median), ("longest", lengths.max)):
            lines.append(
                f"{name} row, {num_tokens:,} + {memory.num_new_tokens:,} tokens: "
                f"{memory.row_bytes(num_tokens) / 1024**2:,.1f} MiB, {memory.rows_per_gib(num_tokens):,} fit in 1 GiB"
            )
    return lines
