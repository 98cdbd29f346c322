"""Draw again until valid: a completion that is not what was asked for is drawn again at once, a few times at most.

Each draw is a request like any other, from the beginning of the answer, with a seed of its own. So what comes out of an
attempt depends on (seed, row, sample, attempt, position) alone, and the first attempt is that of a run without retries.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from job.errors import UsageError, require
from job.modes.mode import BoundMode, Mode, Outcome, Setting
from job.modes.options import option
from job.records import Completion, Request
from job.tasks import Generate, Task

if TYPE_CHECKING:
    import pyarrow as pa

    from job.config import RunConfig

ATTEMPT, VALID = "attempt", "valid"
"""The columns."""

RETRIES = "retries"
"""The name of its tally."""

MAX_RETRIES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RedrawMode(Mode):
    """Completions that are drawn again while they are invalid."""

    name: ClassVar[str] = "redraw"
    serves_beams: ClassVar[bool] = False

    retry_invalid: int = option(
        0,
        "Draw a completion again, up to N times, while it is cut or repeats itself, or lacks what --json-schema, "
        "--regex, --grammar or --extract ask for. The last one is kept; the columns 'attempt' and 'valid' tell.",
        metavar="N",
    )
    retry_temperature: float | None = option(
        None, "With --retry-invalid: the temperature of further draws [default: --temperature].", metavar="T"
    )

    def check(self, config: "RunConfig") -> None:
        """See ``Mode``."""
        require(0 <= self.retry_invalid <= MAX_RETRIES, "retry-invalid", self.retry_invalid, f"0 to {MAX_RETRIES}")
        temperature = self.retry_temperature
        if not self.retry_invalid:
            raise UsageError("--retry-temperature needs --retry-invalid. Give both.")
        undrawn = next((mode for mode in config.active_modes if mode.draws_nothing), None)
        if undrawn is not None:
            raise UsageError(
                f"--retry-invalid and {undrawn.flag} were given together. Leave out --retry-invalid: nothing is drawn."
            )
        if temperature is not None:
            require(1e-5 <= temperature < float("inf"), "retry-temperature", temperature, "0.00001 or more")
        elif config.sampling.temperature == 0 and not any(
            "temperature" in mode.varies() for mode in config.active_modes
        ):
            raise UsageError(
                "--retry-invalid draws again, but --temperature is 0, so the same completion would come out. Set "
                "--retry-temperature, for example 0.7."
            )
        if config.sampling.ignore_eos:
            raise UsageError("--retry-invalid and --ignore-eos were given together: every completion would be cut.")

    def varies(self) -> frozenset[str]:
        """See ``Mode``."""
        return frozenset() if self.retry_temperature is None else frozenset(["temperature"])

    def bind(self, setting: Setting) -> BoundMode:
        """See ``Mode``."""
        return BoundRedraw(self.retry_invalid, self.retry_temperature)

    def accepts(self, completion: Completion) -> bool:
        """See ``Mode``. An answer that its grammar could not follow has no completion, and may be drawn again."""
        if completion.error is not None:
            return completion.error.kind != "constraint_failed"
        return completion.finish_reason == "stop"

    def measured(self) -> "list[pa.Field]":
        """See ``Mode``."""
        import pyarrow as pa

        return [pa.field(ATTEMPT, pa.int16()), pa.field(VALID, pa.bool_())]

    def rules(self, batch: "pa.RecordBatch", is_error: "pa.Array") -> "Iterator[tuple[str, pa.Array]]":
        """See ``Mode``."""
        import pyarrow.compute as pc

        attempt, is_valid = batch[ATTEMPT], pc.fill_null(batch[VALID], False)
        is_in_range = pc.and_(pc.greater_equal(attempt, 0), pc.less_equal(attempt, self.retry_invalid))
        yield f"an attempt other than 0 to {self.retry_invalid}", pc.or_kleene(is_in_range, is_error)
        yield "valid without a completion, or neither", pc.equal(pc.is_null(batch[VALID]), is_error)
        has_stopped = pc.equal(pc.fill_null(batch["finish_reason"], ""), "stop")
        yield "valid, but a finish_reason other than stop", pc.or_(pc.invert(is_valid), has_stopped)

    def tally(self, batch: "pa.RecordBatch | pa.Table") -> Mapping[str, Mapping[str, int]]:
        """Count the completions that were drawn again, and how that ended."""
        import pyarrow.compute as pc

        again = batch[VALID].filter(pc.greater(pc.fill_null(batch[ATTEMPT], 0), 0))
        num_valid = pc.sum(again).as_py() or 0
        counted = {"valid": num_valid, "invalid": len(again) - again.null_count - num_valid}
        return {RETRIES: {name: number for name, number in counted.items() if number}}

    def describe(self, outcome: Outcome) -> Sequence[tuple[str, str]]:
        """Say how many completions were drawn again, and how many of them became valid."""
        counted = outcome.tallies.get(RETRIES, {})
        num_valid, total = counted.get("valid", 0), sum(counted.values())
        verb = "was" if total == 1 else "were"
        line = f"{total:,} of {outcome.num_completions:,} completions {verb} drawn again; {num_valid:,} became valid"
        return [(RETRIES, line)]


class BoundRedraw(BoundMode):
    """Asks for further attempts."""

    judges = True

    def __init__(self, max_retries: int, temperature: float | None) -> None:
        """Draw again up to ``max_retries`` times, at another temperature if there is one."""
        self._max_retries, self._temperature = max_retries, temperature
        self._next_task = lru_cache(MAX_RETRIES)(self._task_after)
        """Equal tasks are one object, since engines compare them."""

    def judge(self, completion: Completion, request: Request, *, is_accepted: bool) -> Completion:
        """See ``BoundMode``. Say which attempt it was, and whether it is valid."""
        if completion.error is not None:
            return completion
        return replace(completion, values={**completion.values, ATTEMPT: request.attempt, VALID: is_accepted})

    def again(self, request: Request) -> Request | None:
        """See ``BoundMode``."""
        if request.attempt == self._max_retries or (task := self._next_task(request.task)) is None:
            return None
        return replace(request, attempt=request.attempt + 1, task=task)

    def _task_after(self, task: Task) -> Task | None:
        """Return the task of the attempt after this one; None if it would give the same answer."""
        from job.draws import next_seed

        assert isinstance(task, Generate), "RunConfig refuses retries where nothing is drawn"
        temperature = task.params.temperature if self._temperature is None else self._temperature
        params = replace(task.params, seed=next_seed(task.params.seed), temperature=temperature)
        return None if temperature == 0 else replace(task, params=params)
