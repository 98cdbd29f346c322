"""What recomputing rows of a run takes: opens what the run read, refuses what is no longer the same, and asks again.

Writes nothing. One process, and by default one row at a time, with nothing shared between rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from job.config import EngineConfig, RunConfig
from job.data.source import read_rows
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
from job.records import Prompt, Request, RowError
from job.run.changed_requests import changed
from job.run.examination import Examined, examine
from job.run.identity import in_dtype
from job.run.pinned import model_files
from job.run.recorded import changes_of, config_of, with_prompt_limit


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
