"""Ends a run whose first rows all fail in the same way: the rest would take the night, and fail as well."""

from collections.abc import Sequence
from pathlib import Path

from job.errors import JobError
from job.records import Generation

NUM_ROWS = 1000
"""How many rows must have failed, and none ended well."""

KINDS = frozenset({"non_finite_logits", "engine_error", "constraint_failed"})
"""What says something about the model and the run. Rows that are too long for the memory say nothing about others, and
the engine gives them back first."""


class FirstRows:
    """What became of the first rows that a worker's engine has returned."""

    def __init__(self, output: Path) -> None:
        """Wait for the first rows of a run in this directory."""
        self._output = output
        self._num_failed = 0
        self._kinds: set[str] = set()
        self._is_hopeful = False

    def check(self, generations: Sequence[Generation]) -> None:
        """Look at what the engine has returned.

        Raises:
            JobError: all rows so far have failed in the same way, and they are enough to tell.
        """
        for error in (generation.error for generation in generations):
            if self._is_hopeful or error is None:
                self._is_hopeful = True
                return
            if error.kind in KINDS:
                self._num_failed += 1
                self._kinds.add(error.kind)
                self._is_hopeful = len(self._kinds) > 1
            if self._num_failed == NUM_ROWS and not self._is_hopeful:
                raise JobError(
                    f"The first {NUM_ROWS:,} rows are all errors, such as: {error}. They are kept; no more are "
                    "computed. Fix the cause and run the same command, or use a new --output. Once the run is done, "
                    f"`job retry {self._output}` lets it compute these again."
                )
