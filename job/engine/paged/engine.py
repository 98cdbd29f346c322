"""The fast engine: continuous batching of the sharded model. Implements ``Engine``.

A step computes one token of every running row and chunks of new prompts as one ragged batch. The leader schedules it,
sends it to the replica, passes its logits to the tasks that need them, and refills the slots of rows that have ended.

A step is launched, its choice (what the tasks make of its logits) is started and then collected: with overlap, after
the next step was launched. A row's latest token may then be known to the device alone when its next step is scheduled
(it is pending), and what was computed for a row that had ended is dropped. The tokens are the same.
"""

from collections import abc
from collections.abc import Callable
from dataclasses import replace

import torch

from job.config import EngineConfig
from job.engine.failures import OUT_OF_MEMORY, describe_failure, failed, not_finite
from job.engine.model.loading import LoadedModel
from job.engine.paged.attention.backends import TRITON, allocate, choose_backend
from job.engine.paged.attention.cache import LayerShape
from job.engine.paged.budget import decide_budget
from job.engine.paged.cpu.linears import keep_freed_memory, speed_up
from job.engine.paged.executor import Executor
from job.engine.paged.largest_step import CudaMemory
from job.engine.paged.schedule.load import Scheduling
from job.engine.paged.schedule.pages import Pages
from job.engine.paged.schedule.scheduler import Scheduler
from job.engine.paged.schedule.sequences import Sequence
from job.engine.paged.schedule.step import CLOSE, KEEP_ALIVE, RUN, Step, close_step
from job.engine.paged.schedule.work import Work
from job.engine.paged.tasks.logits_task import Choice, Expected, LogitsTasks
from job.engine.task_kinds import require_served, servers
from job.errors import JobError
from job.launch.replica import Replica
from job.records import Generation, Partial, PartialKey, Request
from job.tasks import is_continued

PENDING_FACTOR = 8
"""At most this many requests per slot are pending: enough to put long rows first and keep common prefixes together."""

SMALL_CHUNK = 16
"""If not even this many tokens of a single row fit into memory, the row is too large."""


class StepFailed(Exception):
    """A step raised an exception on at least one rank. None of its results are used."""


class PagedEngine(Scheduling):
    """Implements ``Engine`` on a model that ``check_support`` has passed."""

    def __init__(
        self,
        model: LoadedModel,
        shapes: dict[int, LayerShape],
        config: EngineConfig,
        replica: Replica,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Allocate the cache. All ranks of a replica must do this together.

        Args:
            shapes: what each layer computes for a token, from ``check_support``.
            should_stop: called by the leader before every step; True makes ``step`` return at once.
        """
        self._replica, self._should_stop, self._dtype = replica, should_stop, model.dtype
        shapes = {idx: replace(shape, stored=model.cache_dtype) for idx, shape in shapes.items()}
        backend, self.no_kernel = choose_backend(shapes, replica, config.attention_backend)
        self.fused: str | None = None
        # Before the budget, which measures the largest step as it will be run.
        if config.fused and backend is TRITON and replica.device.type == "cuda":
            from job.engine.paged.cuda.fused import fuse  # needs Triton

            self.fused = fuse(model.module)
        memory = CudaMemory(replica.device) if replica.device.type == "cuda" else None
        budget = decide_budget(model, shapes, config, replica, backend, memory)
        self.smaller_steps = budget.smaller_steps
        cache = allocate(backend, shapes, budget.num_pages, replica)
        if replica.device.type == "cpu":
            keep_freed_memory()
            speed_up(model.module)
        self._executor = Executor(model.module, backend, cache, num_slots=budget.max_rows, device=replica.device)
        self.no_graphs: str | None = None
        if config.records_steps(is_sharded=replica.has_followers):
            self.no_graphs = self._executor.record_steps(replica)
        self._tasks = LogitsTasks(
            {kind: task(model, num_slots=budget.max_rows) for kind, task in servers("paged").items()}
        )
        self.scheduler = Scheduler(
            Pages(budget.num_pages, backend.page_tokens),
            max_rows=budget.max_rows,
            max_tokens=budget.max_tokens,
            share_prefixes=config.share_prefixes,
            holds_rows=self._executor.records_steps,
        )
        self._overlaps = replica.device.type == "cuda" if config.overlap is None else config.overlap
        self._choice: Choice | None = None
        """What has been started, and is not collected yet."""
        self._num_finished_tokens = 0

    @property
    def min_pending(self) -> int:
        """See ``Engine``."""
        return 2 * self.scheduler.max_rows

    @property
    def max_pending(self) -> int:
        """See ``Engine``."""
        return PENDING_FACTOR * self.scheduler.max_rows

    @property
    def num_computed_tokens(self) -> int:
        """See ``Engine``."""
        return self._num_finished_tokens + sum(sequence.num_computed for sequence in self.scheduler.running)

    @property
    def in_flight(self) -> list[Request]:
        """See ``Engine``."""
        return [sequence.request for sequence in list(self.scheduler.running)]

    def partials(self, known: abc.Mapping[PartialKey, int]) -> list[Partial]:
        """See ``Engine``. Rows that have lost their pages are left out."""
        return self._tasks.partials(self.scheduler.running, known)

    def submit(self, request: Request) -> None:
        """See ``Engine``."""
        require_served(request.task, self._tasks.kinds, "paged")
        self.scheduler.submit(self._tasks.begin(request))

    def step(self) -> list[Generation]:
        """Compute one token of every running row, and as much of the prompts as fits into the step."""
        if self._should_stop():
            return []
        work = self.scheduler.next_work()
        # With overlap, later: the rows have not got their latest tokens yet.
        expected = None if self._overlaps else self._tasks.expect(work)
        logits, failure = None, None
        try:
            logits = self._launch(work) if work else None
        except StepFailed as error:
            failure = str(error)
        generations = self._collect(may_keep=failure is None) + self._give_up_on_unfit()
        if failure is not None:
            generations += self._recover(work, failure)
        elif logits is not None:
            generations += self._start(work, logits, self._tasks.expect(work) if expected is None else expected)
        return generations if self._overlaps else generations + self._collect()

    def keep_alive(self) -> None:
        """See ``Engine``."""
        self._replica.broadcast_ints(Step(kind=KEEP_ALIVE).pack())

    def close(self, exit_code: int) -> None:
        """See ``Engine``."""
        self._replica.broadcast_ints(close_step(exit_code).pack())

    def follow(self) -> int:
        """See ``Engine``."""
        while True:
            step = Step.unpack(self._replica.broadcast_ints(None))
            if step.kind == CLOSE:
                return int(step.token_ids[0])
            if step.kind == RUN:
                try:
                    self._execute(step)
                except StepFailed:
                    continue  # the leader has seen it, and decides what comes next

    def _launch(self, work: abc.Sequence[Work]) -> torch.Tensor:
        """Send a step to the replica, and execute it.

        Raises:
            StepFailed: at least one rank failed.
        """
        step = self.scheduler.to_step(work)
        for sequence, start, num_tokens, _ in work:
            sequence.num_cached = start + num_tokens
        self._replica.broadcast_ints(step.pack())
        return self._execute(step, None if self._choice is None else self._choice.tokens)

    def _execute(self, step: Step, chosen: torch.Tensor | None = None) -> torch.Tensor:
        """Execute a step on this rank, then find out whether any rank failed.

        Args:
            chosen: on the leader, the tokens that were chosen last.

        Raises:
            StepFailed: at least one rank failed.
        """
        failure, logits = None, None
        try:
            logits = self._executor.run(step, self._on_all_ranks(step, chosen))
        except JobError:
            raise
        except Exception as error:  # whatever the model's code raises on these rows
            failure = describe_failure(error)
        # Outside the except block, where the traceback would keep the tensors of the failed forward pass alive.
        if self._replica.any_failed(failure is not None):
            torch.cuda.empty_cache()  # does nothing where CUDA is not in use
            statuses = [status for status in self._replica.gather_status(failure) if status is not None]
            raise StepFailed(OUT_OF_MEMORY if OUT_OF_MEMORY in statuses else statuses[0])
        assert logits is not None
        return logits

    def _on_all_ranks(self, step: Step, chosen: torch.Tensor | None) -> torch.Tensor | None:
        """Return the tokens that a step takes from the latest choice, which the leader passes."""
        if not step.num_chosen or not self._replica.has_followers:
            return chosen
        with torch.inference_mode():
            if chosen is None:
                chosen = torch.empty(step.num_chosen, dtype=torch.int64, device=self._replica.device)
            return self._replica.broadcast_tensor(chosen[: step.num_chosen])

    def _start(self, work: abc.Sequence[Work], logits: torch.Tensor, expected: Expected) -> list[Generation]:
        """Start to use a step's logits. If that fails, none of the step's results are used."""
        try:
            self._choice = self._tasks.start(expected, work, logits)
        except Exception as error:  # the leader alone has failed
            return self._recover(work, describe_failure(error))
        for idx, sequence in enumerate(self._choice.sequences):
            sequence.pending = idx
        return []

    def _collect(self, *, may_keep: bool = True) -> list[Generation]:
        """Wait for what was started last, advance the rows, and return the requests that are finished.

        Rows may not keep what they cached if the step failed that was launched meanwhile: it has their last tokens.
        """
        if self._choice is None:
            return []
        choice, self._choice = self._choice, None
        for sequence in choice.sequences:
            sequence.pending = None
        try:
            results = choice.results()
        except Exception as error:
            return self._recover(choice.work, describe_failure(error))
        outcome = choice.take(results)
        for sequence in outcome.inexact:
            self.scheduler.step_back(sequence)
        failures = [failure for sequence in outcome.non_finite for failure in self._recheck(sequence)]
        for sequence in outcome.ended:
            if may_keep and is_continued(sequence.request.task):
                self.scheduler.keep(sequence)  # what it computed counts for the sequence that goes on with it
            else:
                self._num_finished_tokens += len(sequence.token_ids)
                self.scheduler.finish(sequence)
        return failures + outcome.generations

    def _recheck(self, sequence: Sequence) -> list[Generation]:
        """Recompute a row with non-finite logits once, without sharing, before it becomes an error row.

        The fault may lie in another row with the same prefix: 0 times NaN is NaN, so attention masks do not protect
        earlier tokens that are computed in the same step from a NaN, so all rows that share those are corrupted.
        """
        if not self.scheduler.may_share(sequence):
            return self._fail(sequence, "non_finite_logits", not_finite(self._dtype))
        self.scheduler.isolate(sequence)
        return []

    def _fail(self, sequence: Sequence, kind: str, detail: str) -> list[Generation]:
        self._num_finished_tokens += sequence.num_computed
        self.scheduler.drop(sequence)
        return self._tasks.fail(sequence, failed(sequence.request, kind, detail))

    def _give_up_on_unfit(self) -> list[Generation]:
        """Return error rows for the sequences that do not fit even into the whole cache."""
        pages = self.scheduler.pages
        room = pages.num_pages * pages.page_tokens
        detail = f"with its completion it exceeds the {room:,} tokens of the KV cache; use a larger --kv-cache-memory"
        unfit, self.scheduler.unfit = self.scheduler.unfit, []
        return [lost for row in unfit for lost in self._tasks.fail(row, failed(row.request, "kv_cache_full", detail))]

    def _recover(self, work: abc.Sequence[Work], reason: str) -> list[Generation]:
        """Handle a failed step: make steps smaller, search for the row at fault, or turn a row into an error row.

        Rows of the step that have left meanwhile may have been at fault, so one that remains alone is not to blame.
        """
        left = [item for item in work if item.sequence.slot >= 0]
        for item in left:
            item.sequence.num_cached = item.start
        rows = [item.sequence for item in left]
        is_single = len(left) == len(work) == 1
        if reason == OUT_OF_MEMORY:
            if is_single and work[0].num_tokens <= SMALL_CHUNK:
                return self._fail(rows[0], "out_of_memory", OUT_OF_MEMORY)
            self.scheduler.shrink(sum(item.num_tokens for item in work))
            self.scheduler.put_back(rows)
        elif is_single:
            return self._fail(rows[0], "engine_error", reason)
        elif len(left) < len(work):
            self.scheduler.put_back(rows)
        else:
            self.scheduler.separate(rows)
        return []
