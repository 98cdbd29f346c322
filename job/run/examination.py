"""What a run would do, as far as it can be known without the model: everything is opened and checked. Writes nothing.

The order matters only for the messages: cheap and likely mistakes are found first.
"""

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch

from job.config import AnswerConfig, RunConfig
from job.data.choices import Choices, build_choices, notes_on, read_choices
from job.data.examples import read_examples
from job.data.grammar import compile_grammar, with_texts
from job.data.openai_batch import open_requests, recognise_requests
from job.data.opening import OpenDataset, open_dataset
from job.data.prompts import PromptRenderer, needed_columns
from job.data.source import Source, check_columns, read_rows
from job.data.templates import Template, read_template
from job.data.tokenization import Tokenization, chat_template_of, load_tokenizer
from job.engine.model.info import ModelInfo, inspect_model
from job.errors import UsageError
from job.output.parts.columns import Columns
from job.output.parts.manifest import Manifest
from job.output.parts.plan import Plan
from job.records import Grammar, Request
from job.run.identity import manifest_of
from job.run.kept_columns import features_of, kept_fields, named_columns


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What a run would do, as far as it can be known without the model."""

    config: RunConfig
    """With the texts of all files that it names."""
    model_info: ModelInfo
    source: Source
    renderer: PromptRenderer
    tokenization: Tokenization
    choices: Choices | None
    """What completions are chosen from, if they are."""
    grammar: Grammar | None
    """What every completion must be, if anything."""
    calibration: tuple[Request, ...]
    """Content-free prompts whose scores calibrate the choices."""
    stop_token_ids: tuple[int, ...]
    """End-of-sequence ids of the tokenizer."""
    max_prompt_tokens: int
    plan: Plan
    columns: Columns
    kept: tuple[pa.Field, ...]
    """Columns that go from the dataset to the output."""
    features: bytes
    """HuggingFace's description of the output's columns."""
    manifest: Manifest
    notes: tuple[str, ...]
    """What the user should know before they wait for the result."""

    @property
    def kept_columns(self) -> tuple[str, ...]:
        """The names of ``kept``."""
        return tuple(field.name for field in self.kept)


def examine(config: RunConfig, device: torch.device, *, needs_weights: bool = True) -> Examined:
    """Open the dataset, the tokenizer and the model's configuration. Writes nothing.

    Args:
        needs_weights: whether it is a mistake if the model has none.

    Raises:
        UsageError: anything that cannot work as asked.
    """
    config = _with_texts(config)
    info = inspect_model(config.model, device, config.engine.tensor_parallel_size, needs_weights=needs_weights)
    tokenizer = load_tokenizer(config.model)
    if config.prompt.on_long_prompt != "error" and not tokenizer.is_fast:
        raise UsageError(
            f"--on-long-prompt {config.prompt.on_long_prompt} needs a fast tokenizer; this model has none."
        )
    config, dataset = _open(config)
    schema = dataset.source.schema
    chat_template = chat_template_of(tokenizer, config.prompt.chat)
    requests = open_requests(config, dataset.source, chat=chat_template is not None)
    renderer = PromptRenderer(config.prompt, chat_template, schema.names, requests)
    check_columns(dataset.source, renderer.columns)
    _check_prompt_type(config, schema)
    choices = build_choices(config.answer, config.sampling, tokenizer, renderer.suffix)
    max_prompt_tokens = _max_prompt_tokens(config, info, choices)
    tokenization = _tokenization(config, tokenizer, chat_template is not None, max_prompt_tokens, choices)
    first_prompt = _first_prompt(config, dataset.source, renderer, tokenization) if choices else None
    notes = notes_on(choices, tokenizer, first_prompt) if choices else ()
    columns = Columns.of(answer=config.answer, output=config.output, sampling=config.sampling)
    kept = tuple(kept_fields(config.data, schema, columns, config.prompt.text_column))
    check_columns(dataset.source, [field.name for field in kept])
    plan = _plan(config, dataset.source)
    return Examined(
        config=config,
        model_info=info,
        source=dataset.source,
        renderer=renderer,
        tokenization=tokenization,
        choices=choices,
        grammar=compile_grammar(config.answer, tokenizer),
        calibration=_calibration(config.answer, renderer, tokenization),
        stop_token_ids=() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,),
        max_prompt_tokens=max_prompt_tokens,
        plan=plan,
        columns=columns,
        kept=kept,
        features=features_of(columns, schema, kept),
        manifest=manifest_of(
            config,
            info,
            tokenizer,
            dataset,
            plan,
            columns,
            kept,
            chat=chat_template is not None,
            max_prompt_tokens=max_prompt_tokens,
        ),
        notes=notes if requests is None else (requests.note, *notes),
    )


def _plan(config: RunConfig, source: Source) -> Plan:
    limit = config.data.limit
    num_rows = source.num_rows if limit is None else min(limit, source.num_rows)
    return Plan(num_rows=num_rows, rows_per_shard=config.output.rows_per_shard, num_samples=config.sampling.num_samples)


def _with_texts(config: RunConfig) -> RunConfig:
    """Replace the paths of files by what is in them, and check what can be checked of it."""
    prompt, answer = config.prompt, config.answer
    if prompt.prompt_template is not None:
        prompt = replace(prompt, prompt_template=read_template(prompt.prompt_template))
        Template(str(prompt.prompt_template))  # its syntax
    if prompt.examples is not None:
        prompt = replace(prompt, examples=read_examples(prompt.examples))
    if answer.choices:
        answer = replace(answer, choices=read_choices(answer.choices))
    answer = with_texts(answer)
    return replace(config, prompt=prompt, answer=answer)


def _open(config: RunConfig) -> tuple[RunConfig, OpenDataset]:
    """Open the dataset, and see whether it is a batch of requests."""
    dataset = open_dataset(config.data)
    config = recognise_requests(config, dataset.source.schema.names)
    dataset.source.fix_columns(named_columns(config.data), needed_columns(config.prompt, dataset.source.schema.names))
    return config, dataset


def _tokenization(
    config: RunConfig, tokenizer: Any, chat: bool, max_prompt_tokens: int, choices: Choices | None
) -> Tokenization:
    return Tokenization(
        tokenizer,
        chat=chat,
        max_prompt_tokens=max_prompt_tokens,
        on_long_prompt=config.prompt.on_long_prompt,
        stop=config.sampling.stop,
        choices=choices,
    )


def _calibration(answer: AnswerConfig, renderer: PromptRenderer, tokenization: Tokenization) -> tuple[Request, ...]:
    requests = []
    for idx, text in enumerate(answer.choice_calibration):
        prompt = replace(renderer.render_content_free(text), row_idx=-1 - idx)
        [(_, request)] = tokenization.encode([prompt])
        if not isinstance(request, Request):
            raise UsageError(f"--choice-calibration {text!r}: {request.error}.")
        requests.append(request)
    return tuple(requests)


def _first_prompt(
    config: RunConfig, source: Source, renderer: PromptRenderer, tokenization: Tokenization
) -> str | None:
    """Return the first row's prompt: the others end like it, as a rule. None if it has none."""
    if not source.num_rows:
        return None
    block = next(read_rows(source, config.data.dataset, range(1), renderer.columns, ()))
    [(prompt, item)] = tokenization.encode([renderer.render(block.rows[0])])
    return prompt.text if isinstance(item, Request) else None


def _max_prompt_tokens(config: RunConfig, info: ModelInfo, choices: Choices | None) -> int:
    """Return the room that a completion leaves for the prompt, or less if the user wants less."""
    option, length = "--max-new-tokens", config.sampling.max_new_tokens
    if choices is not None:
        option, length = "The longest of --choices, in tokens,", max(map(len, choices.token_ids))
    room = info.max_model_len - length
    if room < 1:
        raise UsageError(
            f"{option} is {length}, but the model has room for {info.max_model_len} "
            f"tokens, prompt included. Use {info.max_model_len - 1} or less."
        )
    wanted = config.prompt.max_prompt_tokens
    if wanted is not None and wanted > room:
        raise UsageError(
            f"--max-prompt-tokens {wanted} is too large: the model has room for {info.max_model_len} tokens, and "
            f"{option} is {length}. Use at most {room}."
        )
    return wanted or room


def _check_prompt_type(config: RunConfig, schema: pa.Schema) -> None:
    """Refuse a prompt column none of whose rows can be a prompt. (JSON lines have types row by row.)"""
    name = config.prompt.text_column
    if name is None:
        return
    data_type = schema.field(name).type
    is_text = pa.types.is_string(data_type) or pa.types.is_large_string(data_type) or pa.types.is_string_view(data_type)
    if not (is_text or pa.types.is_null(data_type) or pa.types.is_dictionary(data_type)):
        raise UsageError(
            f"Column {name!r} is {data_type}, not string. Use --prompt-template '{{{{ {name} }}}}' to write it as text"
            f"{', or --messages-column' if pa.types.is_list(data_type) else ''}."
        )
