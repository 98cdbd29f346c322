"""Process groups, and the one channel over which a leader sends its followers what comes next (law 1).

There are four kinds of groups. The model's own (NCCL on CUDA, gloo on CPU) carries the reductions of DeepSpeed's layers
and the tokens of each step. A gloo group per replica carries the leader's commands, so that followers wait on a socket,
not on a GPU; a second one, with a shorter timeout, carries the status of each rank after a step. A gloo group of all
processes carries what they must agree on before the work begins.
"""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from job.errors import EXIT_STOPPED, JobError, PeerFailed, first_line
from job.launch.devices import choose_device
from job.launch.environment import ProcessInfo
from job.launch.peers import Peers
from job.launch.rendezvous import Rendezvous
from job.launch.stop import StopFlag

COMMAND_TIMEOUT = timedelta(hours=6)
"""How long followers wait for the next command: a large dataset may be converted in the meantime. A leader that dies
closes its sockets, which ends the wait immediately."""

STATUS_TIMEOUT = timedelta(minutes=2)
"""How long ranks wait to hear from each other after a step in which one of them failed."""


MESSAGE_INTS = 4096
"""Length of the leader's usual message in 32-bit integers: a decode step of 512 rows needs about 2,600."""


class Replica:
    """The processes that share one copy of the model, seen from one of them."""

    def __init__(
        self,
        info: ProcessInfo,
        stop: StopFlag | None = None,
        note: Callable[[str], None] = lambda text: None,
        device: str = "auto",
    ) -> None:
        """Join the launch. Every process of the launch must call this.

        Args:
            stop: its requests are passed on to the other processes: a signal may reach only one of them.
            note: tells the user for whom this process is waiting.
            device: one of ``config.DEVICES``.

        Raises:
            JobError: the processes cannot find each other.
        """
        self.info = info
        self.device = choose_device(info, device)
        self.tensor_group: dist.ProcessGroup | None = None
        self._commands: dist.ProcessGroup | None = None
        self._status: dist.ProcessGroup | None = None
        self._world: dist.ProcessGroup | None = None
        self._peers: Peers | None = None
        self.launch_id = uuid.uuid4().hex[:12]
        if info.world_size > 1:
            self._join(stop or StopFlag(), note)

    def _join(self, stop: StopFlag, note: Callable[[str], None]) -> None:
        rendezvous = Rendezvous(self.info, note)
        rendezvous.sign_in()
        try:
            self._peers = Peers(self.info, stop)  # first: a signal may come while the others are still missing
            store = rendezvous.wait_for_all()
            # NCCL would otherwise serialize recorded all-reduces with others, which makes the host wait for the device.
            os.environ.setdefault("NCCL_GRAPH_MIXING_SUPPORT", "0")
            dist.init_process_group(self.backend, store=store, rank=self.info.rank, world_size=self.info.world_size)
        except (RuntimeError, ValueError) as error:
            raise JobError(
                f"rank {self.info.rank}: cannot join {self.info.world_size} processes at {self.info.master_addr}:"
                f"{self.info.master_port}: {first_line(error)}. Can all nodes reach each other?"
            ) from None
        self._world = dist.new_group(backend="gloo", timeout=COMMAND_TIMEOUT)
        self.launch_id = self.agree_in_world(self.launch_id)
        size = self.info.tensor_parallel_size
        for first in range(0, self.info.world_size, size):  # every process takes part in making every group
            ranks = list(range(first, first + size))
            tensor = dist.new_group(ranks)
            commands = dist.new_group(ranks, backend="gloo", timeout=COMMAND_TIMEOUT)
            status = dist.new_group(ranks, backend="gloo", timeout=STATUS_TIMEOUT)
            if self.info.rank in ranks:
                self.tensor_group, self._commands, self._status = tensor, commands, status

    @property
    def backend(self) -> str:
        """What carries tensors between devices."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    @property
    def leader_rank(self) -> int:
        """Global rank of the leader."""
        return self.info.replica_idx * self.info.tensor_parallel_size

    @property
    def has_followers(self) -> bool:
        """Whether the replica has processes besides the leader."""
        return self.info.tensor_parallel_size > 1

    def agree_in_world(self, value: Any) -> Any:
        """Return what rank 0 passed, on every process of the launch."""
        box = [value]
        if self._world is not None:
            with self._connection():
                dist.broadcast_object_list(box, src=0, group=self._world)
        return box[0]

    def gather_in_world(self, value: Any) -> list[Any]:
        """Return every process's value, on every process of the launch."""
        values: list[Any] = [value] * self.info.world_size
        if self._world is not None:
            with self._connection():
                dist.all_gather_object(values, value, group=self._world)
        return values

    def check_world(self, failure: JobError | None) -> None:
        """Wait for all processes of the launch, and raise if one of them has failed.

        Raises:
            JobError: ``failure``, if there is one.
            PeerFailed: another process has failed.
        """
        codes = self.gather_in_world(failure and failure.exit_code)
        if failure is not None:
            raise failure
        failed = [code for code in codes if code is not None]
        if failed:
            raise PeerFailed(failed[0])

    def command(self, value: Any = None) -> Any:
        """Return what the leader passed, on every process of the replica."""
        if not self.has_followers:
            return value
        box = [value]
        with self._connection():
            dist.broadcast_object_list(box, src=self.leader_rank, group=self._commands)
        return box[0]

    def broadcast_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Overwrite ``tensor`` with the leader's. Same shape and dtype on all."""
        if self.has_followers:
            dist.broadcast(tensor, self.leader_rank, group=self.tensor_group)
        return tensor

    def broadcast_ints(self, values: np.ndarray[Any, np.dtype[np.int32]] | None) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Return the leader's numbers, on every process of the replica. The first number is their count.

        Sends one message of fixed length, and a second one only if there is more: no pickling, no sizes sent ahead.
        """
        if values is not None and not self.has_followers:
            return values
        head = torch.zeros(MESSAGE_INTS, dtype=torch.int32)
        if values is not None:
            head[: len(values)] = torch.from_numpy(values[:MESSAGE_INTS])
        with self._connection():
            dist.broadcast(head, self.leader_rank, group=self._commands)
            total = int(head[0])
            if total <= MESSAGE_INTS:
                return head[:total].numpy()
            rest = torch.empty(total - MESSAGE_INTS, dtype=torch.int32)
            if values is not None:
                rest.copy_(torch.from_numpy(values[MESSAGE_INTS:]))
            dist.broadcast(rest, self.leader_rank, group=self._commands)
        return torch.cat([head, rest]).numpy()

    def any_failed(self, failed: bool) -> bool:
        """Return whether a step failed on any process of the replica: one number, cheap enough for every step."""
        if not self.has_followers:
            return failed
        flag = torch.tensor([int(failed)], dtype=torch.int32)
        with self._connection("a step failed" if failed else None):
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._status)
        return bool(flag)

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, on every process of the replica."""
        values: list[Any] = [value] * self.info.tensor_parallel_size
        if self.has_followers:
            with self._connection():
                dist.all_gather_object(values, value, group=self._commands)
        return values

    def gather_status(self, value: str | None) -> list[str | None]:
        """Return the status of the step that has just ended, from every process of the replica; None means success.

        If one process fails alone, the others are still inside a collective of the model. They never get here, the wait
        times out, and the replica ends: nothing else would be safe.
        """
        if not self.has_followers:
            return [value]
        statuses: list[str | None] = [None] * self.info.tensor_parallel_size
        with self._connection(value):
            dist.all_gather_object(statuses, value, group=self._status)
        return statuses

    @contextlib.contextmanager
    def _connection(self, failure: str | None = None) -> Iterator[None]:
        """Turn a lost connection into a one-line error, with what failed here before, if anything did.

        Raises:
            PeerFailed: the other process was asked to stop, and so is this one.
            JobError: the other process has died for an unknown reason.
        """
        try:
            yield
        except RuntimeError as error:
            if self._peers is not None and self._peers.were_stopped():
                raise PeerFailed(EXIT_STOPPED) from None
            if failure is not None:
                raise JobError(
                    f"rank {self.info.rank}: {failure}, on this process alone, so the replica cannot continue. Run the "
                    "same command to continue, with a smaller --max-batch-tokens if memory was short."
                ) from error
            raise JobError(
                f"rank {self.info.rank}: another process of this launch has died ({first_line(error)}). "
                "Its own message says why; run the same command to continue."
            ) from error

    def say_ended(self) -> None:
        """Let the others of the launch know that its end was reported; see ``wait_for_report``."""
        if self._peers is not None:
            self._peers.say_ended()

    def wait_for_report(self, secs: float) -> None:
        """Wait until rank 0 has reported the end of the launch."""
        if self._peers is not None:
            self._peers.wait_for_report(secs)

    def close(self) -> None:
        """Wait until all processes of the replica are done: one that exits early breaks the others' connections."""
        if self.has_followers:
            with contextlib.suppress(RuntimeError):  # one has died, so there is nothing left to wait for
                dist.barrier(group=self._status)
