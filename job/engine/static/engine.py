"""The simple engine: static batches on the sharded module, each of one kind of task.

Works for every architecture that transformers can generate with, and is the oracle and the fallback for faster engines.

A batch lasts as long as its longest row, so pending requests are sorted by length, longest first: the rows of a batch
are similar, and a batch that does not fit into memory fails at the start and not at four in the morning.
"""

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from job.config import EngineConfig
from job.engine.failures import OUT_OF_MEMORY, BatchFailed, OutOfMemory, failed
from job.engine.model.loading import LoadedModel
from job.engine.protocol import Load
from job.engine.static.batch_task import BatchTask, Room
from job.engine.static.limits import batch_limits
from job.engine.task_kinds import require_served, servers
from job.launch.replica import Replica
from job.records import Generation, Partial, PartialKey, Request

PENDING_BATCHES = 16
"""This many batches' worth of requests are sorted together: enough to find rows of similar length."""

KEEP_ALIVE = "keep alive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The leader's last command."""

    exit_code: int


class StaticEngine:
    """Implements ``Engine`` on a loaded model."""

    def __init__(
        self,
        model: LoadedModel,
        config: EngineConfig,
        replica: Replica,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Serve all kinds of tasks with a loaded model.

        Args:
            should_stop: called by the leader before every batch and every token; True makes ``step`` return without
                finishing the batch.
        """
        self._replica, self._should_stop = replica, should_stop
        self._max_rows, max_tokens = batch_limits(model, config, replica.device)
        limits = {"max_rows": self._max_rows, "max_tokens": max_tokens}
        self._tasks: dict[type, BatchTask] = {
            kind: task(model, replica, should_stop, **limits) for kind, task in servers("static").items()
        }
        self._pending: deque[Request] = deque()
        self._is_sorted = True
        self._batch: list[Request] = []

    @property
    def num_pending(self) -> int:
        """See ``Engine``."""
        return len(self._pending)

    @property
    def min_pending(self) -> int:
        """See ``Engine``."""
        return self._max_rows

    @property
    def max_pending(self) -> int:
        """See ``Engine``."""
        return PENDING_BATCHES * self._max_rows

    @property
    def num_computed_tokens(self) -> int:
        """See ``Engine``."""
        return sum(task.num_computed_tokens for task in self._tasks.values())

    @property
    def in_flight(self) -> list[Request]:
        """See ``Engine``."""
        return self._batch

    @property
    def load(self) -> Load:
        """See ``Engine``."""
        return Load(num_running=len(self._batch))

    def partials(self, known: Mapping[PartialKey, int]) -> list[Partial]:
        """See ``Engine``. Between two steps, no request has begun, unless a stop has left a batch unfinished."""
        left = (partial for task in self._tasks.values() for partial in task.unfinished)
        return [rest for partial in left if (rest := partial.after(known.get(partial.key, 0))).token_ids]

    def submit(self, request: Request) -> None:
        """See ``Engine``."""
        require_served(request.task, self._tasks, "static")
        self._put_back([request])

    def withdraw(self) -> list[Request]:
        """See ``Engine``. Between two steps, no request has begun."""
        waiting, self._pending = list(self._pending), deque()
        return waiting

    def step(self) -> list[Generation]:
        """Compute one batch of the longest pending requests."""
        if not self._pending or self._should_stop():
            return []
        self._batch = self._next_batch()
        return self._attempt(self._batch)

    def keep_alive(self) -> None:
        """See ``Engine``."""
        self._replica.command(KEEP_ALIVE)

    def close(self, exit_code: int) -> None:
        """See ``Engine``."""
        self._replica.command(Closed(exit_code=exit_code))

    def follow(self) -> int:
        """See ``Engine``."""
        tasks = {task.command_type: task for task in self._tasks.values()}
        while True:
            command = self._replica.command()
            if isinstance(command, Closed):
                return command.exit_code
            if command != KEEP_ALIVE:
                # All ranks agree on the failure; the leader decides what to do about it and sends that.
                with contextlib.suppress(OutOfMemory, BatchFailed):
                    tasks[type(command)].obey(command)

    def _next_batch(self) -> list[Request]:
        """Take the longest requests of one kind that fit the budget, but at least one, whatever its size."""
        if not self._is_sorted:
            kinds = list(self._tasks)
            self._pending = deque(sorted(self._pending, key=lambda r: (kinds.index(type(r.task)), -self._length(r))))
            self._is_sorted = True
        batch = [self._pending.popleft()]
        task = self._task_of(batch)
        room = task.room(batch[0])
        while self._pending and type(self._pending[0].task) is type(batch[0].task):
            room = room.merged_with(task.room(self._pending[0]))
            if room.num_rows > task.max_rows or room.num_tokens > task.max_tokens:
                break
            batch.append(self._pending.popleft())
        return batch

    def _task_of(self, batch: Sequence[Request]) -> BatchTask:
        return self._tasks[type(batch[0].task)]

    def _length(self, request: Request) -> int:
        """Return the tokens of the longest row of a request."""
        room = self._task_of([request]).room(request)
        return room.num_prompt_tokens + room.num_other_tokens

    def _put_back(self, requests: Sequence[Request]) -> None:
        self._pending.extend(requests)
        self._is_sorted = False

    def _attempt(self, batch: list[Request]) -> list[Generation]:
        """Compute a batch, or as much of it as possible; requests that a stop left unfinished stay pending."""
        try:
            generations = self._task_of(batch).compute(batch)
        except OutOfMemory:
            return self._shrink(batch)
        except BatchFailed as error:
            return self._bisect(batch, str(error))
        finished = {generation.request.key for generation in generations}
        if len(finished) < len(batch):
            self._put_back([request for request in batch if request.key not in finished])
        return generations

    def _shrink(self, batch: list[Request]) -> list[Generation]:
        """Limit all later batches to the size of half of this one: memory that ran out once will run out again."""
        if len(batch) == 1:
            return [failed(batch[0], "out_of_memory", OUT_OF_MEMORY)]
        task = self._task_of(batch)
        rooms = [task.room(request) for request in batch[: len(batch) // 2]]
        task.max_tokens = functools.reduce(Room.merged_with, rooms).num_tokens
        self._put_back(batch)
        return []

    def _bisect(self, batch: list[Request], reason: str) -> list[Generation]:
        """Find the row that the model fails on: once it is alone in a batch, it becomes an error row."""
        if len(batch) == 1:
            return [failed(batch[0], "engine_error", reason)]
        half = len(batch) // 2
        return [generation for part in (batch[:half], batch[half:]) for generation in self._attempt(part)]
