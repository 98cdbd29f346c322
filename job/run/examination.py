"""Finds out what a run would do before weights are loaded: opens everything and checks everything.

Each check is next to the code that it protects; this module knows only the order. Writes nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from job.config import RunConfig
from job.data.dataset import OpenDataset
from job.data.earlier_errors import settle_errors
from job.data.opening import Dataset, find_dataset
from job.data.prompts import PromptRenderer
from job.data.separated import files_named
from job.data.source import Source
from job.data.template_variables import variables_of
from job.data.tokenization import Tokenization
from job.data.tokenizer import Tokenizer, load_tokenizer
from job.engine.model.info import ModelInfo, inspect_model
from job.errors import UsageError, shorten
from job.launch.activity import doing
from job.modes.bound import BoundModes
from job.modes.mode import Probe
from job.output.parts.manifest import Manifest
from job.output.parts.part_schema import Columns
from job.output.parts.plan import Plan
from job.output.store.addresses import local_path
from job.records import Request
from job.remote.model_files import ModelFiles
from job.run.adapted import check_vocabulary, notes_on_adapters
from job.run.beams import with_search
from job.run.binding import Bound, OfModel, bind, check_head
from job.run.dates import dated
from job.run.effects import check_effects
from job.run.encoder_decoders import as_texts, begin
from job.run.grown_types import check_grown
from job.run.identity import manifest_of
from job.run.kept_columns import KeptColumns, features_of
from job.run.odd_texts import notes_on_texts
from job.run.older_runs import as_started, dataset_commit, earlier_errors, model_fingerprint
from job.run.order_check import check_order
from job.run.pinned import based
from job.run.resolved import Foreseen, ResolvedRun
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
    kept: KeptColumns
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
        """The columns of ``kept`` in the dataset."""
        return self.kept.columns


def examine(
    config: RunConfig,
    files: ModelFiles,
    device: torch.device,
    found: Manifest | None = None,
    *,
    needs_weights: bool = True,
    num_rows: int | None = None,
) -> Examined:
    """Open the dataset, the tokenizer and the model's configuration.

    Args:
        files: the model.
        found: the manifest in the run directory, if there is one already.
        needs_weights: whether it is an error if the model has no weights.
        num_rows: more rows than these first ones are not needed.

    Raises:
        UsageError: something cannot work as asked.
    """
    is_left_out = not config.model.model
    config = as_started(based(config, files), found)
    data_files = files_named(config.data.data_files, config.data.dataset)
    config = replace(config, data=replace(config.data, data_files=data_files))
    config = _with_prompts(config)
    effect_notes = check_effects(config, is_new=found is None)
    doing(f"reading the configuration of {config.model.model}")
    size = config.engine.tensor_parallel_size
    info = inspect_model(config.model, files, device, size, needs_weights=needs_weights)
    config, of_model, template_notes = _of_model(config, files, info, found)
    dataset = _open(config, of_model, found, num_rows)
    doing("checking the options against the data")
    bound = bind(config, of_model, dataset, found)
    check_grown(dataset, config.data, bound.renderer, found, lambda limit: _with_limit(config, found, limit))
    run, renderer, modes = bound.run, bound.renderer, bound.modes
    config, schema = run.config, dataset.source.schema
    plan = _plan(config, dataset.source)
    order_notes = tuple(check_order(config.launch, dataset.source, plan, has_copies=bound.columns.has_origin))
    looked_at = look_at_rows(dataset.source, config.data.dataset, plan.num_rows, renderer, bound.tokenization)
    if found is None:
        looked_at.refuse_if_none_works()
    notes = (
        *(*dataset.notes, *_note_on_part(dataset, plan, config.data.limit)),
        *(
            *info.notes,
            *notes_on_adapters(info, config, is_left_out=is_left_out),
            *effect_notes,
            *bound.notes,
            *order_notes,
        ),
        *(*notes_on_texts(config.prompt, config.sampling, schema.names), *template_notes),
        *_notes_on_rows(bound, of_model, dataset, plan, looked_at),
    )
    fingerprint = model_fingerprint(info, config.model, found) if needs_weights else ""  # last: it may take long
    return Examined(
        run=run,
        model_info=info,
        tokenizer=of_model.tokenizer,
        dataset=dataset,
        renderer=renderer,
        modes=modes,
        tokenization=bound.tokenization,
        probes=_probes(modes.probes, renderer, bound.tokenization),
        plan=plan,
        columns=bound.columns,
        kept=bound.kept,
        features=features_of(bound.columns, bound.kept),
        manifest=manifest_of(run, info, (fingerprint, of_model.tokenizer.digest), dataset, plan, bound.kept, found),
        notes=notes,
    )


def foresee(config: RunConfig, files: ModelFiles, device: torch.device, dataset: OpenDataset) -> Foreseen:
    """Check the options of a new run whose rows are not there yet.

    Args:
        dataset: has the columns of the rows.

    Raises:
        UsageError: something cannot work as asked.
    """
    config = _with_prompts(based(config, files))
    check_effects(config, is_new=True)
    size = config.engine.tensor_parallel_size
    info = inspect_model(config.model, files, device, size, needs_weights=False)
    config, of_model, _ = _of_model(config, files, info, None)
    bound = bind(config, of_model, dataset, None)
    plan = Plan(num_rows=0, rows_per_shard=config.output.rows_per_shard)
    return Foreseen(
        schema=bound.columns.schema(bound.kept.schema),
        manifest=manifest_of(bound.run, info, ("", of_model.tokenizer.digest), dataset, plan, bound.kept),
        fallback_dtype=info.fallback_dtype,
    )


def _of_model(
    config: RunConfig, files: ModelFiles, info: ModelInfo, found: Manifest | None
) -> tuple[RunConfig, OfModel, Sequence[str]]:
    """Read the tokenizer and its chat template. Returns the configuration with the run's date, and notes on the
    template.
    """
    doing(f"reading the tokenizer of {config.model.model}")
    config = as_texts(config, info)
    tokenizer = _tokenizer(config, info.tokenizer_files, follows_prompt=info.decoder is None)
    check_vocabulary(info, tokenizer)
    begun = begin(config, info, tokenizer)
    config, search_notes = with_search(config, info, begun.decoder_ids)
    template = tokenizer.chat_template(config.prompt.chat)
    text = None if template is None else template.text
    of_run = replace(config, model=replace(config.model, max_model_len=info.max_model_len))
    earlier = None if found is None else found.modes
    modes = [*config.modes, *(mode for mode in config.active_modes if mode not in config.modes)]
    headed = modes if info.head is None else [mode.headed(info.head) for mode in modes]
    settled = (mode.settled(of_run, tokenizer, text, earlier) for mode in headed)
    config = _with_prompts(replace(config, modes=tuple(settled)))
    config, date, notes = dated(config, found, is_read=template is not None and template.reads_date)
    variables, more_notes = variables_of(config.prompt, template)
    continues = config.prompt.continues_last_turn
    chat_template = None
    if template is not None:
        answers = not config.prompt.whole_conversations
        chat_template = template.of_run(date, variables, continues=continues, answers=answers)
    of_model = OfModel(
        info=info,
        tokenizer=tokenizer,
        template=template,
        chat_template=chat_template,
        decoder_ids=begun.decoder_ids,
    )
    return config, of_model, [*notes, *more_notes, *begun.notes, *search_notes]


def _with_prompts(config: RunConfig) -> RunConfig:
    """Return the configuration with what the modes say about prompts."""
    for mode in config.active_modes:
        config = replace(config, prompt=mode.prompts(config.prompt))
    return config


def _notes_on_rows(
    bound: Bound, of_model: OfModel, dataset: OpenDataset, plan: Plan, looked_at: LookedAt
) -> Iterator[str]:
    config = bound.run.config
    if bound.requests is not None:
        yield from bound.requests.notes(dataset.source, plan.num_rows)
    yield from bound.modes.notes_on(lambda: looked_at.first_prompt)
    yield from looked_at.notes(config, bound.special_tokens)
    if of_model.template is not None:
        yield from notes_on_channels(of_model.tokenizer.special_tokens, config)


def _tokenizer(config: RunConfig, files: ModelFiles, *, follows_prompt: bool) -> Tokenizer:
    inner = load_tokenizer(files, trust_remote_code=config.model.trust_remote_code)
    prompt = config.prompt
    follows_prompt = follows_prompt and prompt.has_own_rules
    tokenizer = Tokenizer(inner, follows_prompt=follows_prompt, chat_template=prompt.chat_template)
    tokenizer.check_policy(prompt.on_long_prompt)
    if prompt.special_tokens_in_text == "escape":
        tokenizer.check_escaping()
    return tokenizer


def _open(config: RunConfig, of_model: OfModel, found: Manifest | None, num_rows: int | None) -> OpenDataset:
    """Open the dataset; before much of it is fetched for a new run, check the options against its beginning."""
    doing(f"opening {config.data.dataset}, or waiting for another process that converts it")
    dataset = _find(config, found)
    if found is None and (head := dataset.head()) is not None:
        check_head(config, of_model, head)
    return settle_errors(dataset.open(num_rows), config.data, earlier_errors(config.data, found))


def _find(config: RunConfig, found: Manifest | None) -> Dataset:
    return find_dataset(
        config.data,
        output=local_path(config.output.output),
        is_older=found is not None and not found.lists_files,
        commit=dataset_commit(config.data, found),
    )


def _with_limit(config: RunConfig, found: Manifest | None, limit: int) -> OpenDataset:
    return _find(replace(config, data=replace(config.data, limit=limit)), found).open()


def _note_on_part(dataset: OpenDataset, plan: Plan, limit: int | None) -> Iterator[str]:
    if dataset.is_partial and plan.num_rows != limit:
        yield f"only {plan.num_rows:,} rows were fetched to be looked at, and counts are of these; the run has more"


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
