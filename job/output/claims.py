"""Which shard this worker takes next: those not done, not leased by a living worker, in ascending order."""

from job.output.leases import Leases
from job.output.paths import RunPaths
from job.output.plan import Plan


class Claims:
    """Hands out shards. Ascending order lets a source that can only stream go through its data once."""

    def __init__(self, paths: RunPaths, plan: Plan, leases: Leases) -> None:
        """List what is done."""
        self._paths, self._leases = paths, leases
        done = paths.done_shards()
        self._remaining = [shard_idx for shard_idx in range(plan.num_shards) if shard_idx not in done]
        self._next = 0

    def claim(self) -> int | None:
        """Return a shard that is ours now, or None if there is none to be had at the moment."""
        while self._next < len(self._remaining):
            shard_idx = self._remaining[self._next]
            self._next += 1
            if self._paths.part(shard_idx).exists() or not self._leases.acquire(shard_idx):
                continue
            if not self._paths.part(shard_idx).exists():
                return shard_idx
            self._leases.release(shard_idx)  # another worker finished it between our two looks
        return None

    def release(self, shard_idx: int) -> None:
        """Give a shard back, finished or not."""
        self._leases.release(shard_idx)

    def look_again(self) -> bool:
        """Go through what is left once more: a lease may have become stale. False if everything is done."""
        done = self._paths.done_shards()
        self._remaining = [shard_idx for shard_idx in self._remaining if shard_idx not in done]
        self._next = 0
        return bool(self._remaining)
