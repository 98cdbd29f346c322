"""What an engine is: requests in, generations out. Token ids on both sides; no text, no files, no rows of a dataset.

The leader calls these. Followers call ``follow`` once and return from it when the leader closes its engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from job.records import Generation, Partial, PartialKey, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much an engine has to do at the moment."""

    num_running: int = 0
    """Rows that are being computed."""
    num_cache_tokens: int = 0
    """Tokens that the KV cache of a process has room for; 0: the engine has no cache of a fixed size."""
    num_used_cache_tokens: int = 0
    """Those that rows hold, or that are kept for the next rows, in whole pages."""
    num_preemptions: int = 0
    """How often a row has lost its place in the cache, and was recomputed later, since the engine was built."""


class Engine(Protocol):
    """Completes requests in any order it chooses."""

    @property
    def num_pending(self) -> int:
        """The number of requests submitted and not yet returned."""

    @property
    def min_pending(self) -> int:
        """With fewer pending requests than this, the next step is not full: it is time to claim more work."""

    @property
    def max_pending(self) -> int:
        """Above this many pending requests the engine gets no faster; more only cost memory."""

    @property
    def num_computed_tokens(self) -> int:
        """Prompt and completion tokens computed so far, including those of unfinished requests."""

    @property
    def in_flight(self) -> list[Request]:
        """The requests that are being computed. Other threads may read this."""

    @property
    def load(self) -> Load:
        """How full it is. To be read between two steps."""

    def partials(self, known: Mapping[PartialKey, int]) -> list[Partial]:
        """Return what has been generated of unfinished requests, beyond their first ``known`` tokens (0 if they are not
        there). Requests that cannot be continued from their tokens are left out, as are those with nothing new.
        """

    def submit(self, request: Request) -> None:
        """Add a request."""

    def withdraw(self) -> list[Request]:
        """Take back the requests that have not been begun, and return them. To be called between two steps."""

    def step(self) -> list[Generation]:
        """Work for a while and return the requests that finished, if any. Returns soon once a stop is requested.

        A request that cannot be completed is returned with its error. Raises only if the engine itself is broken.
        """

    def keep_alive(self) -> None:
        """Let the followers know that the leader is alive while there is nothing to compute."""

    def close(self, exit_code: int) -> None:
        """Release the followers; their ``follow`` returns ``exit_code``."""

    def follow(self) -> int:
        """Execute what the leader sends until it closes its engine; return the exit code."""
