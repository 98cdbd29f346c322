"""Finds out what a run would do before weights are loaded: opens everything and checks everything.

Each check is next to the code that it protects; this module knows only the order. Writes nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import torch

from job.config import RunConfig
from job.data.chat_template import ModelChatTemplate
from job.data.dataset import OpenDataset
from job.data.openai_batch import BODY_COLUMN, ID_COLUMN, open_requests, recognizes_requests
from job.data.opening import open_dataset
from job.data.prompts import PromptRenderer, needed_columns
from job.data.separated import files_named
from job.data.source import Source, check_columns, check_prompt_type
from job.data.special_tokens import SpecialTokens
from job.data.templates import check_braces
from job.data.tokenization import Tokenization
from job.data.tokenizer import Tokenizer, load_tokenizer
from job.engine.model.info import ModelInfo, inspect_model
from job.errors import UsageError, shorten
from job.launch.activity import doing
from job.modes.bound import BoundModes
from job.modes.mode import AnswerLength, Probe, Setting
from job.output.parts.manifest import Manifest
from job.output.parts.part_schema import Columns
from job.output.parts.plan import Plan
from job.records import Request
from job.run.dates import dated
from job.run.effects import check_effects, check_effects_on_texts
from job.run.identity import manifest_of
from job.run.kept_columns import features_of, kept_fields
from job.run.odd_texts import notes_on_texts
from job.run.older_runs import as_started, dataset_commit
from job.run.resolved import ResolvedRun
from job.run.row_check import LookedAt, look_at_rows, notes_on_channels


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What a run would do, as far as it can be known without the model's weights."""

    run: ResolvedRun
    model_info: ModelInfo
    tokenizer: Tokenizer
    dataset: OpenDataset
    renderer: PromptRenderer
    modes: BoundModes
    tokenization: Tokenization
    probes: tuple[Request, ...]
    """Prompts that are computed before the first row, for ``BoundModes.calibrated``."""
    plan: Plan
    columns: Columns
    kept: tuple[pa.Field, ...]
    """Columns that are copied from the dataset to the output."""
    features: bytes
    """Hugging Face's description of the output's columns."""
    manifest: Manifest
    notes: tuple[str, ...]
    """What the user should know before waiting for the result."""

    @property
    def config(self) -> RunConfig:
        """What the user typed."""
        return self.run.config

    @property
    def source(self) -> Source:
        """The rows of ``dataset``."""
        return self.dataset.source

    @property
    def kept_columns(self) -> tuple[str, ...]:
        """The names of ``kept``."""
        return tuple(field.name for field in self.kept)


def examine(
    config: RunConfig, device: torch.device, found: Manifest | None = None, *, needs_weights: bool = True
) -> Examined:
    """Open the dataset, the tokenizer and the model's configuration.

    Args:
        found: the manifest in the run directory, if there is one already.
        needs_weights: whether it is an error if the model has no weights.

    Raises:
        UsageError: something cannot work as asked.
    """
    config = as_started(config, found)
    effect_notes = check_effects(config, is_new=found is None)
    doing(f"reading the configuration of {config.model.model}")
    info = inspect_model(config.model, device, config.engine.tensor_parallel_size, needs_weights=needs_weights)
    doing(f"reading the tokenizer of {config.model.model}")
    tokenizer = _tokenizer(config)
    template = tokenizer.chat_template(config.prompt.chat)
    config, date, date_notes = dated(config, found, is_read=template is not None and template.reads_date)
    chat_template = None if template is None else template.of_run(date, continues=config.prompt.continues_last_turn)
    doing(f"opening {config.data.dataset}, or waiting for another process that converts it")
    run, dataset = _open(config, found, chat=template is not None)
    if not run.is_batch:
        effect_notes += check_effects_on_texts(config, is_new=found is None)
    config = run.config
    doing("checking the options against the data")
    schema = dataset.source.schema
    requests = open_requests(run.config, dataset.source, chat=run.chat) if run.is_batch else None
    special_tokens = SpecialTokens(list(tokenizer.special_tokens), config.prompt.special_tokens_in_text)
    with _told(dataset.remarks):
        renderer = PromptRenderer(
            config.prompt, chat_template, schema.names, requests, config.mode_columns, special_tokens=special_tokens
        )
    check_columns(dataset.source, renderer.read_columns)
    check_prompt_type(run.text_column, schema)
    modes = BoundModes.of(config, _setting(config, tokenizer, renderer))
    run = replace(run, max_prompt_tokens=max_prompt_tokens(config.prompt.max_prompt_tokens, info, modes.length))
    tokenization = _tokenization(run, tokenizer, modes, info)
    plan = _plan(config, dataset.source)
    columns = _columns(config, found)
    kept = tuple(kept_fields(run, schema, columns, found))
    check_columns(dataset.source, [field.name for field in kept])
    looked_at = look_at_rows(dataset.source, config.data.dataset, plan.num_rows, renderer, tokenization)
    if found is None:
        _check_prompts(config, schema.names, template, renderer, looked_at)
    notes = (
        *dataset.notes,
        *effect_notes,
        *notes_on_texts(config.prompt, config.sampling, schema.names),
        *date_notes,
        *(() if requests is None else requests.notes(dataset.source, plan.num_rows)),
        *modes.notes_on(lambda: looked_at.first_prompt),
        *looked_at.notes(config, special_tokens),
        *(() if template is None else notes_on_channels(tokenizer.special_tokens, config)),
    )
    return Examined(
        run=run,
        model_info=info,
        tokenizer=tokenizer,
        dataset=dataset,
        renderer=renderer,
        modes=modes,
        tokenization=tokenization,
        probes=_probes(modes.probes, renderer, tokenization),
        plan=plan,
        columns=columns,
        kept=kept,
        features=features_of(columns, schema, kept),
        manifest=manifest_of(run, info, tokenizer.digest, dataset, plan, kept),
        notes=notes,
    )


@contextmanager
def _told(remarks: Sequence[str]) -> Iterator[None]:
    """Add remarks on the data to a refusal: the way that it was read may be why a column is missing."""
    try:
        yield
    except UsageError as error:
        raise UsageError(" ".join([str(error), *(f"Note: {remark}." for remark in remarks)])) from None


def _tokenizer(config: RunConfig) -> Tokenizer:
    tokenizer = Tokenizer(load_tokenizer(config.model), follows_prompt=config.prompt.has_own_rules)
    tokenizer.check_policy(config.prompt.on_long_prompt)
    if config.prompt.special_tokens_in_text == "escape":
        tokenizer.check_escaping()
    return tokenizer


def _tokenization(run: ResolvedRun, tokenizer: Tokenizer, modes: BoundModes, info: ModelInfo) -> Tokenization:
    return Tokenization(
        tokenizer,
        modes.task_of,
        chat=run.chat,
        max_prompt_tokens=run.max_prompt_tokens,
        on_long_prompt=run.config.prompt.on_long_prompt,
        vocab_size=getattr(info.config.get_text_config(), "vocab_size", None),
    )


def _columns(config: RunConfig, found: Manifest | None) -> Columns:
    return Columns(
        modes=config.active_modes,
        include_prompt=config.output.include_prompt,
        has_error_kind=found is None or not found.is_format_2,
    )


def _setting(config: RunConfig, tokenizer: Tokenizer, renderer: PromptRenderer) -> Setting:
    return Setting(
        tokens=tokenizer,
        sampling=config.sampling,
        prompt_suffix=renderer.suffix,
        stops_at_special_tokens=config.prompt.has_own_rules,
    )


def _check_prompts(
    config: RunConfig,
    columns: Sequence[str],
    template: ModelChatTemplate | None,
    renderer: PromptRenderer,
    looked_at: LookedAt,
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
    looked_at.refuse_if_none_works()


def _open(config: RunConfig, found: Manifest | None, *, chat: bool) -> tuple[ResolvedRun, OpenDataset]:
    """Open the dataset, and find out whether it is a batch of requests."""
    is_older = found is not None and not found.lists_files
    data = replace(config.data, data_files=files_named(config.data.data_files, config.data.dataset))
    run = ResolvedRun(config=replace(config, data=data), chat=chat)
    commit = dataset_commit(data, found)
    dataset = open_dataset(data, output=Path(config.output.output), is_older=is_older, commit=commit)
    columns = dataset.source.schema.names
    run = run.with_columns(columns)
    if recognizes_requests(config.prompt, columns):
        run = replace(run, batch_id_column=ID_COLUMN)
    needed = [BODY_COLUMN] if run.is_batch else needed_columns(run.config.prompt, columns)
    dataset.source.fix_columns(run.named_columns, [*needed, *config.mode_columns])
    return run, dataset


def max_prompt_tokens(wanted: int | None, info: ModelInfo, length: AnswerLength) -> int:
    """Return how many tokens an answer leaves for the prompt, or the number that the user wants if that is smaller.

    Raises:
        UsageError: it leaves none, or fewer than the user wants.
    """
    room = info.max_model_len - length.num_tokens
    if room < 1:
        raise UsageError(
            f"{length.what} is {length.num_tokens}, but the model has room for {info.max_model_len} "
            f"tokens, prompt included. Use {info.max_model_len - 1} or less."
        )
    if wanted is not None and wanted > room:
        raise UsageError(
            f"--max-prompt-tokens {wanted} is too large. {length.what} is {length.num_tokens}, and the model has room "
            f"for {info.max_model_len} tokens. Use at most {room}."
        )
    return wanted or room


def _plan(config: RunConfig, source: Source) -> Plan:
    limit = config.data.limit
    num_rows = source.num_rows if limit is None else min(limit, source.num_rows)
    return Plan(num_rows=num_rows, rows_per_shard=config.output.rows_per_shard, num_samples=config.sampling.num_samples)


def _probes(probes: Sequence[Probe], renderer: PromptRenderer, tokenization: Tokenization) -> tuple[Request, ...]:
    """Return the requests for probes. Their row indices are negative."""
    requests = []
    for idx, probe in enumerate(probes):
        [encoded] = tokenization.encode([replace(renderer.render_probe(probe.text), row_idx=-1 - idx)])
        if encoded.request is None:
            raise UsageError(f"{probe.option} {shorten(probe.text)!r}: {encoded.error}.")
        requests.append(encoded.request)
    return tuple(requests)
