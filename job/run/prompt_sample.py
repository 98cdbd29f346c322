"""Shows what a run would do, from a sample of its rows. Needs the tokenizer and the data, but no model and no GPU.

Only reads. The rows go through the same steps as in the run, up to the engine.
"""

from array import array
from collections.abc import Callable, Sequence

from job.data.source import read_rows
from job.data.tokenization import EncodedPrompt
from job.engine.fit.memory import Room
from job.engine.model.kv_size import kv_bytes_per_token
from job.engine.paged.schedule.pages import num_common
from job.modes.registry import MODES
from job.observe.histogram import Histogram
from job.observe.preview_report import KvMemory, Preview, SeenError, SeenPrompt
from job.output.parts.plan import Plan
from job.records import Prompt, Request, RowBlock
from job.run.examination import Examined
from job.run.fit import report_fit
from job.run.row_check import sample_rows
from job.tasks import Pool
from job.tasks.head import MEANS

MAX_RUNS = 40
"""A sample has at most this many runs of consecutive rows: to reach a row of a Parquet file, all rows before it in its
row group must be decoded."""

TOO_LONG = "prompt_too_long"


def look_ahead(
    examined: Examined,
    room: Room,
    *,
    num_prompts: int,
    num_rows: int | None,
    tell: Callable[[int], object] = lambda count: None,
) -> Preview:
    """Render and tokenize some rows, and return what the run would do with them.

    Args:
        room: the memory that the model is to fit into.
        num_prompts: how many prompts to show.
        num_rows: how many rows to read, spread over the dataset. None: all.
        tell: called with the number of rows that were just read.

    Raises:
        JobError: the dataset cannot be read.
    """
    seen = SeenRows(examined, num_prompts)
    runs = sample_rows(
        examined.plan.num_rows, num_rows, num_prompts, max_runs=1 if examined.source.is_remote else MAX_RUNS
    )
    for rows in runs:
        for block in read_rows(
            examined.source, examined.config.data.dataset, rows, examined.renderer.read_columns, examined.kept_columns
        ):
            seen.add(block)
            tell(len(block.rows))
    return _preview(examined, room, seen, runs)


class SeenRows:
    """Figures about the rows that were read. Keeps counts and lengths, not rows."""

    def __init__(self, examined: Examined, num_prompts: int) -> None:
        """Render and tokenize like the run ``examined``, and keep the first ``num_prompts`` prompts."""
        self._renderer, self._tokenizer = examined.renderer, examined.tokenizer
        self._tokenization = examined.tokenization
        self._num_prompts = num_prompts
        self.num_rows = self.num_cut = self.num_too_long = 0
        self.prompts: list[SeenPrompt] = []
        self.lengths, self.admitted = array("q"), array("q")
        """The number of tokens of each prompt before cutting, and of each prompt that the model would read."""
        self.errors: dict[str, SeenError] = {}
        self._shared: Sequence[int] = ()

    def add(self, block: RowBlock) -> None:
        """Add the rows of a block."""
        prompts = [self._renderer.render(row) for row in block.rows]
        for prompt, encoded in zip(prompts, self._tokenization.encode(prompts), strict=True):
            self.num_rows += 1
            if encoded.request is not None:
                self._add_request(prompt, encoded, encoded.request)
            else:
                self._add_error(encoded)

    @property
    def num_shared_tokens(self) -> int:
        """The length of the prefix that all prompts share. 0 if there is only one prompt."""
        return len(self._shared) if len(self.admitted) > 1 else 0

    def _add_request(self, prompt: Prompt, encoded: EncodedPrompt, request: Request) -> None:
        was_cut, ids = encoded.prompt is not prompt, request.given_ids
        self.num_cut += was_cut
        self.num_too_long += was_cut
        self.lengths.append(encoded.num_tokens)
        self.admitted.append(len(ids))
        is_first = len(self.admitted) == 1
        num_shared = len(ids) if is_first else num_common(self._shared, ids)
        self._shared = ids[:num_shared]
        if len(self.prompts) < self._num_prompts:
            text = self._tokenizer.as_read(ids)
            self.prompts.append(SeenPrompt(row_idx=request.row_idx, text=text, num_tokens=len(ids), was_cut=was_cut))

    def _add_error(self, encoded: EncodedPrompt) -> None:
        completion = encoded.completion(sample_idx=0)
        assert completion.error is not None, "it has no request"
        kind, detail = completion.error.kind, completion.error.detail
        if kind == TOO_LONG:
            self.num_too_long += 1
            self.lengths.append(encoded.num_tokens)
            return
        known = self.errors.get(kind)
        self.errors[kind] = SeenError(
            kind=kind,
            num_rows=1 if known is None else known.num_rows + 1,
            first_row_idx=completion.row_idx if known is None else known.first_row_idx,
            first_detail=detail if known is None else known.first_detail,
        )


def _preview(examined: Examined, room: Room, seen: SeenRows, runs: Sequence[range]) -> Preview:
    config, plan, info = examined.config, examined.plan, examined.model_info
    schema = examined.columns.schema(examined.kept.schema)
    num_shared, has_cache = _num_shared(examined, seen), info.head is None or not info.head.reads_ahead
    return Preview(
        dataset=config.data.dataset,
        place=examined.dataset.place,
        files=[file.name for file in examined.dataset.files],
        not_read=[unread.name for unread in examined.dataset.unread],
        model=config.model.model,
        adapters=config.model.adapter,
        dtype=info.dtype,
        quantization=info.precision.quantization,
        tensor_parallel_size=config.engine.tensor_parallel_size,
        max_model_len=info.max_model_len,
        num_rows=plan.num_rows,
        num_shards=plan.num_shards,
        rows_per_shard=plan.rows_per_shard,
        num_samples=plan.num_samples,
        sampled=_which(runs, plan),
        num_sampled=seen.num_rows,
        prompts=seen.prompts,
        sections=examined.modes.sections,
        empty_sections={name: value for mode in MODES for name, value in mode.empty_preview.items()},
        lengths=Histogram.of(seen.lengths) if seen.lengths else None,
        admitted=Histogram.of(seen.admitted) if seen.admitted else None,
        max_prompt_tokens=examined.run.max_prompt_tokens,
        on_long_prompt=config.prompt.on_long_prompt,
        num_too_long=seen.num_too_long,
        num_cut=seen.num_cut,
        errors=sorted(seen.errors.values(), key=lambda error: -error.num_rows),
        num_shared_tokens=num_shared,
        has_cache=has_cache,
        kv_memory=_kv_memory(examined, num_shared) if has_cache else None,
        fit=report_fit(examined, room, seen.admitted, num_shared) if has_cache else None,
        schema=[(field.name, str(field.type)) for field in schema],
        notes=examined.notes,
    )


def _which(runs: Sequence[range], plan: Plan) -> str:
    if sum(map(len, runs)) == plan.num_rows:
        return "all"
    return "spread" if len(runs) > 1 else "first"


def _num_shared(examined: Examined, seen: SeenRows) -> int:
    """Return how many tokens at the beginning of all prompts are computed once. A mean needs each text's own."""
    head, task = examined.model_info.head, None if examined.model_info.head is None else examined.modes.task
    needs_all = isinstance(task, Pool) and (task.pooling in MEANS or (head is not None and head.reads_ahead))
    return 0 if needs_all else seen.num_shared_tokens


def _kv_memory(examined: Examined, num_shared_tokens: int) -> KvMemory | None:
    config, info = examined.config, examined.model_info
    dtype = info.precision.stored_dtype
    num_bytes = kv_bytes_per_token(info.config, dtype, config.engine.tensor_parallel_size)
    if not num_bytes:
        return None
    num_new_tokens = examined.modes.length.num_tokens
    return KvMemory(bytes_per_token=num_bytes, num_new_tokens=num_new_tokens, num_shared_tokens=num_shared_tokens)
