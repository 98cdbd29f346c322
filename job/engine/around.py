"""What all engines around another engine have in common."""

from collections.abc import Mapping

from job.engine.protocol import Engine, Load
from job.records import Generation, Partial, PartialKey, Request


class Around:
    """Implements ``Engine`` by another one. Exists on all ranks; only the leader's has requests."""

    def __init__(self, engine: Engine) -> None:
        """Wrap an engine."""
        self._engine = engine

    @property
    def num_pending(self) -> int:
        """See ``Engine``."""
        return self._engine.num_pending

    @property
    def min_pending(self) -> int:
        """See ``Engine``."""
        return self._engine.min_pending

    @property
    def max_pending(self) -> int:
        """See ``Engine``."""
        return self._engine.max_pending

    @property
    def num_computed_tokens(self) -> int:
        """See ``Engine``."""
        return self._engine.num_computed_tokens

    @property
    def in_flight(self) -> list[Request]:
        """See ``Engine``."""
        return self._engine.in_flight

    @property
    def load(self) -> Load:
        """See ``Engine``."""
        return self._engine.load

    def partials(self, known: Mapping[PartialKey, int]) -> list[Partial]:
        """See ``Engine``."""
        return self._engine.partials(known)

    def submit(self, request: Request) -> None:
        """See ``Engine``."""
        self._engine.submit(request)

    def withdraw(self) -> list[Request]:
        """See ``Engine``."""
        return self._engine.withdraw()

    def step(self) -> list[Generation]:
        """See ``Engine``."""
        return self._engine.step()

    def keep_alive(self) -> None:
        """See ``Engine``."""
        self._engine.keep_alive()

    def close(self, exit_code: int) -> None:
        """See ``Engine``."""
        self._engine.close(exit_code)

    def follow(self) -> int:
        """See ``Engine``."""
        return self._engine.follow()
