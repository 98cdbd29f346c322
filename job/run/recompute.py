"""Recomputes rows of a run: opens what the run read, refuses what is no longer the same, loads the model, and computes.

Writes nothing. One process, and by default one row at a time, with nothing shared between rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import torch

from job.config import EngineConfig, RunConfig
from job.data.source import read_rows
from job.engine.model.decoder import begin_ids
from job.engine.model.info import ModelInfo
from job.engine.model.loading import LoadedModel
from job.engine.model.logit_hooks import last_logits
from job.engine.protocol import Engine
from job.engine.registry import ENGINES
from job.errors import JobError, UsageError
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from job.modes.bound import BoundModes
from job.output.looking.found import FoundRun
from job.output.looking.sampled_rows import FinishedRow
from job.output.parts.differences import describe_differences
from job.output.parts.manifest import Manifest
from job.output.store.names import MANIFEST
from job.records import Completion, Generation, Prompt, Request, RowError
from job.run.calibration import calibrated
from job.run.changed_requests import changed
from job.run.examination import Examined, examine
from job.run.identity import in_dtype
from job.run.model import load_in_range
from job.run.pinned import model_files
from job.run.recorded import changes_of, config_of, with_prompt_limit
from job.tasks import Generate, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How rows are to be recomputed. None: as the run says."""

    engine: EngineConfig
    dtype: str | None = None
    model: str | None = None
    dataset: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedAgain:
    """A finished row, and what an engine is asked for it."""

    row: FinishedRow
    prompt: Prompt
    request: Request | None
    """None if the row cannot become a prompt any more."""
    error: RowError | None = None


def open_run(run: FoundRun, asked: Asked, note: Callable[[str], None]) -> tuple[Examined, Replica]:
    """Open what a run reads, and check that it is what the run read.

    Raises:
        UsageError: it is not, or is no longer there.
    """
    config = _config(run, asked)
    replica = Replica(read_process_info({}, 1), note=note, device=config.engine.device)
    try:
        files = model_files(config, run.manifest)
        examined = examine(config, files, replica.device, run.manifest)
        _check(run, examined, any_dtype=asked.dtype is not None, any_limit=True)
        if examined.run.max_prompt_tokens != run.manifest.section("prompt")["max_prompt_tokens"]:
            examined = examine(with_prompt_limit(config, run.manifest), files, replica.device, run.manifest)
    except Changed:
        raise
    except UsageError as error:
        raise UsageError(_worded(error, run, config.data.dataset)) from None
    _check(run, examined, any_dtype=asked.dtype is not None)
    return examined, replica


def _config(run: FoundRun, asked: Asked) -> RunConfig:
    engine, name = asked.engine, run.manifest.meaning["engine"]
    if name == "model" and not ENGINES[engine.engine].needs_model:
        raise UsageError(f"--engine {engine.engine} has no model, and the run had one. Use paged or static.")
    if name != "model" and ENGINES[engine.engine].needs_model:
        engine = replace(engine, engine=name)  # what has no model cannot be recomputed with one
    config = config_of(run.manifest, run.directory.store.describe(), engine)
    model = replace(
        config.model,
        model=asked.model or config.model.model,
        revision=None if asked.model else config.model.revision,
        dtype=asked.dtype or config.model.dtype,
        trust_remote_code=asked.trust_remote_code,
    )
    data = replace(config.data, dataset=asked.dataset) if asked.dataset else config.data
    return replace(config, model=model, data=data)


class Changed(UsageError):
    """What a run read is no longer the same."""


def _check(run: FoundRun, examined: Examined, *, any_dtype: bool, any_limit: bool = False) -> None:
    """Refuse to compare rows with those of another run.

    Args:
        any_dtype: the dtype may be another one.
        any_limit: the limit of prompts may be another one.

    Raises:
        Changed: the dataset, the model or anything else is no longer what the manifest names.
    """
    found, wanted = run.manifest, examined.manifest
    # Kept columns are only copied.
    same = {"columns": found.meaning.get("columns", {}), "engine": found.meaning["engine"]}
    if any_limit:
        same["prompt"] = wanted.identity["prompt"] | {"max_prompt_tokens": found.section("prompt")["max_prompt_tokens"]}
    wanted = Manifest({**wanted.identity, **same}, wanted.about)
    if any_dtype:
        wanted = in_dtype(wanted, str(found.meaning["model"]["dtype"]))
    if differences := describe_differences(found, wanted):
        changes = differences.partition(": ")[2].partition(". Use a new")[0]
        raise Changed(
            f"{run.directory.store.describe(MANIFEST)} is not what is there now: {changes}. Rows can be recomputed "
            "only from what the run read: restore it, or say where it is with --model or --dataset."
        )


def _worded(error: UsageError, run: FoundRun, dataset: str) -> str:
    has_prompts = run.manifest.section("columns")["include_prompt"] and dataset in str(error)
    kept = " The prompts are in the parts, but their texts alone do not say how they were tokenized." * has_prompts
    # Options of job run are no advice here.
    said = ". ".join(part for part in str(error).removesuffix(".").split(". ") if not part.startswith("Set --"))
    return (
        f"The rows cannot be recomputed: {said}. If the model or the dataset lies elsewhere now, say where with "
        f"--model or --dataset.{kept}"
    )


@dataclass(kw_only=True)
class Computer:
    """A loaded model and an engine, which complete requests."""

    engine: Engine
    model: LoadedModel | None
    modes: BoundModes
    examined: Examined
    how: str
    """Device, dtype and engine, in words."""
    _numbers: "count[int]" = field(default_factory=lambda: count(1))

    @classmethod
    def load(cls, examined: Examined, replica: Replica, note: Callable[[str], None]) -> "Computer":
        """Load the model and build the engine.

        Raises:
            JobError: it cannot be loaded, or a probe cannot be computed.
        """
        config, info = examined.config, examined.model_info
        model = None
        if config.engine.needs_model:
            stop_token_ids = examined.tokenizer.stop_token_ids
            model = load_in_range(config, info, replica, stop_token_ids, is_restart=True, note=note)
        kind = ENGINES[config.engine.engine]
        engine = kind.build(model, config.engine, replica, should_stop=lambda: False, note=note)
        how = _how(config.engine, info, replica.device, has_model=model is not None)
        computer = cls(engine=engine, model=model, modes=examined.modes, examined=examined, how=how)
        computer.modes = calibrated(examined.modes, computer.run(examined.probes))
        return computer

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The model's end-of-sequence tokens."""
        return frozenset(() if self.model is None else self.model.eos_token_ids)

    def run(self, requests: Sequence[Request], tell: Callable[[int], object] = lambda number: None) -> list[Generation]:
        """Complete requests, whose keys differ, and return the results in the same order.

        Args:
            tell: called with the number of those that have just been completed.
        """
        done: dict[object, Generation] = {}
        waiting = iter(requests)
        while len(done) < len(requests):
            while self.engine.num_pending < self.engine.max_pending and (request := next(waiting, None)) is not None:
                self.engine.submit(request)
            generations = self.engine.step()
            done |= {generation.request.key: generation for generation in generations}
            tell(len(generations))
        return [done[request.key] for request in requests]

    def again(self, request: Request) -> Generation:
        """Complete a request that differs only in what has begun of it from one that was completed before."""
        return self.run([self._new(request)])[0]

    def complete(self, generation: Generation, prompt: Prompt) -> Completion:
        """Return the output row that a generation makes."""
        texts = self.examined.tokenizer.decode([generation.text_ids])
        return self.modes.complete([generation], texts, [prompt.text], [prompt.prefill])[0]

    def before(self, request: Request) -> Sequence[int]:
        """Return the tokens that a completion follows: the prompt, or what a decoder begins with."""
        decoder = None if self.model is None else self.model.decoder
        return begin_ids(decoder, request.decoder_ids) or request.prompt_ids

    def next_logits(self, request: Request, completion_ids: Sequence[int]) -> torch.Tensor | None:
        """Return the logits after some tokens of a completion, [V]; None if there is no model, or they overflow."""
        if self.model is None:
            return None
        task = Generate(params=SamplingParams(max_new_tokens=1, ignore_eos=True))
        before = [*self.before(request), *completion_ids]
        given = {"prompt_ids": before} if self.model.decoder is None else {"decoder_ids": tuple(before)}
        with last_logits(self.model) as seen:
            generation = self.run([self._new(replace(request, task=task, begun=None, **given))])[0]
        return seen[0] if seen and generation.error is None else None

    def _new(self, request: Request) -> Request:
        """Return a request that is equal to none before: engines copy the answers of equal ones."""
        task = request.task
        if isinstance(task, Generate) and task.is_deterministic:  # then the seed has no effect
            return replace(request, task=replace(task, params=replace(task.params, seed=next(self._numbers))))
        return request


def _how(engine: EngineConfig, info: ModelInfo, device: torch.device, *, has_model: bool) -> str:
    if not has_model:
        return f"engine {engine.engine}, without a model"
    rows = (
        "each row alone"
        if engine.max_batch_rows == 1
        else f"batches of {engine.max_batch_rows or 'any number of'} rows"
    )
    return f"{rows}, {info.dtype} on {device.type}, engine {engine.engine}"


def ask_again(examined: Examined, modes: BoundModes, rows: Sequence[FinishedRow]) -> list[AskedAgain]:
    """Return what the engine was asked for some rows, in their order. Reads these rows of the dataset alone.

    Raises:
        JobError: the dataset cannot be read.
    """
    found: list[AskedAgain] = []
    columns, name = examined.renderer.read_columns, examined.config.data.dataset
    for row in rows:
        row_idx = row.completion.row_idx
        if not found or found[-1].prompt.row_idx != row_idx:
            [block] = read_rows(examined.source, name, range(row_idx, row_idx + 1), columns, ())
            [encoded] = examined.tokenization.encode([examined.renderer.render(block.rows[0])])
        request = encoded.request
        if request is not None:
            request = _request_of(replace(request, sample_idx=row.completion.sample_idx), row, examined, modes)
        found.append(AskedAgain(row=row, prompt=encoded.prompt, request=request, error=encoded.error))
    return found


def _request_of(request: Request, row: FinishedRow, examined: Examined, modes: BoundModes) -> Request:
    """Return the request that the row in the part came from: one with other options, or a later attempt."""
    if row.options:
        try:
            changes = changes_of(row.options)
        except ValueError as error:
            raise JobError(f"A part says that row {request.row_idx} was retried in another way: {error}.") from None
        request = changed(request, changes, examined.model_info.room_for_answer)
    for _ in range(row.completion.values.get("attempt") or 0):
        request = modes.next_attempt(request) or request
    return request
