"""The options of a run, bound to the columns of its dataset: what prompts are made of them, and which columns are kept.

Checks all that columns can show. Rows are looked at afterwards, in ``examination``.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from job.config import RunConfig
from job.data.chat_template import ModelChatTemplate
from job.data.dataset import OpenDataset
from job.data.openai_batch import BODY_COLUMN, ID_COLUMN, Requests, open_requests, recognizes_requests
from job.data.prefill import Prefill
from job.data.prompts import PromptRenderer, needed_columns
from job.data.source import check_columns, check_prompt_type
from job.data.special_tokens import SpecialTokens
from job.data.templates import check_braces
from job.data.tokenization import RoomOf, Tokenization
from job.data.tokenizer import Tokenizer
from job.engine.model.info import ModelInfo
from job.errors import UsageError
from job.modes.bound import BoundModes
from job.modes.mode import AnswerLength, Setting
from job.output.parts.manifest import Manifest
from job.output.parts.part_schema import Columns
from job.records import RowRejected
from job.run.effects import check_effects_on_texts
from job.run.identity import has_origin
from job.run.kept_columns import KeptColumns, columns_kept
from job.run.older_runs import with_requests
from job.run.resolved import ResolvedRun
from job.tasks import Generate, Task
from job.tasks.head import GENERATE
from job.wording import UNLIMITED


@dataclass(frozen=True, kw_only=True)
class OfModel:
    """What the model says about prompts."""

    info: ModelInfo
    tokenizer: Tokenizer
    template: ModelChatTemplate | None
    """None if prompts are plain text."""
    chat_template: ModelChatTemplate | None
    """The same template, with the run's date."""
    decoder_ids: tuple[int, ...] = ()
    """See ``Request``."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The options, bound to columns."""

    run: ResolvedRun
    requests: Requests | None
    """If the dataset is a batch of requests to OpenAI's API."""
    special_tokens: SpecialTokens
    renderer: PromptRenderer
    modes: BoundModes
    tokenization: Tokenization
    columns: Columns
    kept: KeptColumns
    notes: tuple[str, ...]
    """On options without an effect, and on columns that are not kept."""


def check_head(config: RunConfig, of_model: OfModel, head: OpenDataset) -> None:
    """Check what the first rows show, before the rest is fetched.

    Raises:
        UsageError: the run cannot work as asked.
    """
    if recognizes_requests(config.prompt, head.source.schema.names):
        return  # what they ask for is looked at when they are all here
    with _told(head.remarks):
        bind(config, of_model, head, None)


def bind(config: RunConfig, of_model: OfModel, dataset: OpenDataset, found: Manifest | None) -> Bound:
    """Bind the options to the columns of a dataset.

    Args:
        found: the manifest in the run directory, if there is one already.

    Raises:
        UsageError: the run cannot work as asked.
    """
    info, tokenizer, template = of_model.info, of_model.tokenizer, of_model.template
    run = _with_columns(config, dataset, found, chat=template is not None)
    notes = () if run.is_batch else check_effects_on_texts(config, is_new=found is None)
    config, schema = run.config, dataset.source.schema
    requests = open_requests(config, dataset.source, chat=run.chat) if run.is_batch else None
    special_tokens = SpecialTokens(list(tokenizer.special_tokens), config.prompt.special_tokens_in_text)
    with _told(dataset.remarks):
        renderer = PromptRenderer(
            config.prompt,
            of_model.chat_template,
            schema.names,
            requests,
            config.mode_columns,
            special_tokens=special_tokens,
        )
    check_columns(dataset.source, renderer.read_columns)
    for mode in config.active_modes:
        mode.check_schema(schema)
    check_prompt_type(run.text_column, schema)
    modes = BoundModes.of(config, _setting(run, tokenizer, renderer))
    run = replace(run, max_prompt_tokens=max_prompt_tokens(config.prompt.max_prompt_tokens, info, modes.length))
    columns = Columns(
        modes=config.active_modes,
        include_prompt=config.output.include_prompt,
        has_error_kind=found is None or not found.is_format_2,
        has_origin=has_origin(config, found),
    )
    kept, kept_notes = columns_kept(run, schema, columns, found, is_run=bool(dataset.runs))
    check_columns(dataset.source, kept.columns)
    if found is None:
        _check_prompts(config, schema.names, template, renderer)
    return Bound(
        run=run,
        requests=requests,
        special_tokens=special_tokens,
        renderer=renderer,
        modes=modes,
        tokenization=_tokenization(run, of_model, modes),
        columns=columns,
        kept=kept,
        notes=(*notes, *kept_notes),
    )


def _with_columns(config: RunConfig, dataset: OpenDataset, found: Manifest | None, *, chat: bool) -> ResolvedRun:
    """Look up the columns that the options name, and find out whether the dataset is a batch of requests."""
    columns = dataset.source.schema.names
    run = ResolvedRun(config=config, chat=chat).with_columns(columns)
    if recognizes_requests(config.prompt, columns):
        if config.model.task != GENERATE:
            raise UsageError(
                f"--dataset {config.data.dataset} holds requests to OpenAI's API, which --task {config.model.task} "
                "does not answer. Give it texts: JSON lines with a column such as prompt."
            )
        if config.sampling.searches:
            raise UsageError(
                f"--dataset {config.data.dataset} holds requests to OpenAI's API, which does not know beams, and "
                f"--num-beams is {config.sampling.num_beams} here. Use --num-beams 1."
            )
        run = replace(run, batch_id_column=ID_COLUMN, config=with_requests(run.config, BODY_COLUMN, found))
    needed = [BODY_COLUMN] if run.is_batch else needed_columns(run.config.prompt, columns)
    of_prefill = Prefill(run.config.prompt.prefill, columns).needed
    dataset.source.fix_columns(
        [column for column, _ in run.named_columns], [*needed, *of_prefill, *config.mode_columns]
    )
    return run


@contextmanager
def _told(remarks: Sequence[str]) -> Iterator[None]:
    """Add remarks on the data to a refusal: the way that it was read may be why a column is missing."""
    try:
        yield
    except UsageError as error:
        raise UsageError(" ".join([str(error), *(f"Note: {remark}." for remark in remarks)])) from None


def _tokenization(run: ResolvedRun, of_model: OfModel, modes: BoundModes) -> Tokenization:
    info = of_model.info
    return Tokenization(
        of_model.tokenizer,
        modes.task_of,
        chat=run.chat,
        max_prompt_tokens=_room_of(run, info),
        on_long_prompt=run.config.prompt.on_long_prompt,
        vocab_size=getattr(info.config.get_text_config(), "vocab_size", None),
        given=modes.given,
        decoder_ids=of_model.decoder_ids,
    )


def _room_of(run: ResolvedRun, info: ModelInfo) -> RoomOf:
    """Return what gives the most prompt tokens of a row, which may have a length of its own."""
    wanted, usual_length = run.config.prompt.max_prompt_tokens, run.config.sampling.max_new_tokens

    def room_of(task: Task) -> int:
        if not isinstance(task, Generate) or (length := task.params.max_new_tokens) == usual_length:
            return run.max_prompt_tokens
        if (room := info.room_for_prompt(length)) < 1:
            detail = f"the model has room for {info.room}"
            raise RowRejected("invalid_parameter", f"max_new_tokens is {length}; {detail}")
        return room if wanted is None else min(room, wanted)

    return room_of


def _setting(run: ResolvedRun, tokenizer: Tokenizer, renderer: PromptRenderer) -> Setting:
    return Setting(
        tokens=tokenizer,
        sampling=run.config.sampling,
        prompt_suffix=renderer.suffix,
        before_answer="".join(mode.before_answer for mode in run.config.active_modes),
        begins_answer=run.config.prompt.prefill is not None or run.config.prompt.continues_last_turn,
        stops_at_special_tokens=run.config.prompt.has_own_rules,
        text_column=run.text_column,
        adds_special_tokens=not run.chat,
        serves=lambda response_format: any(mode.serves(response_format) for mode in run.config.active_modes),
    )


def _check_prompts(
    config: RunConfig,
    columns: Sequence[str],
    template: ModelChatTemplate | None,
    renderer: PromptRenderer,
) -> None:
    """Check that a new run makes the prompts that were meant.

    Raises:
        UsageError: it does not.
    """
    if config.prompt.prompt_template is not None:
        check_braces(config.prompt.prompt_template, columns)
    if template is not None:
        template.check()
    renderer.check_system_prompt()


def max_prompt_tokens(wanted: int | None, info: ModelInfo, length: AnswerLength) -> int:
    """Return how many tokens an answer leaves for the prompt, or the number that the user wants if that is smaller.
    ``UNLIMITED`` if prompts may have any number.

    Raises:
        UsageError: it leaves none, or fewer than the user wants.
    """
    if not length.limits_prompt:
        return wanted or UNLIMITED
    room = info.room_for_prompt(length.num_tokens)
    if room < 1:
        raise UsageError(
            f"{length.what} is {length.num_tokens}, but the model has room for {info.room}. "
            f"Use {info.longest_answer} or less."
        )
    if wanted is not None and wanted > room:
        raise UsageError(
            f"--max-prompt-tokens {wanted} is too large. {length.what} is {length.num_tokens}, and the model has room "
            f"for {info.max_model_len} tokens. Use at most {room}."
        )
    return wanted or room
