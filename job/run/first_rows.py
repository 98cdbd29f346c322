"""Ends a run whose first rows all fail in the same way: the rest could take all night, and would fail, too."""

from collections.abc import Sequence
from pathlib import Path

from job.errors import JobError
from job.records import Generation

NUM_ROWS = 1000
"""How many rows must have failed, before any has succeeded."""

KINDS = frozenset({"non_finite_logits", "engine_error", "constraint_failed"})
"""Errors that say something about the model or the run. Rows that are too long for memory say nothing about the others,
and the engine returns them first."""


class FirstRows:
    """Watches the first rows that a worker's engine returns."""

    def __init__(self, output: Path) -> None:
        """Watch a run; ``output``, its directory, is for the message."""
        self._output = output
        self._num_failed = 0
        self._kinds: set[str] = set()
        self._prompts: set[tuple[int, ...]] = set()
        self._is_hopeful = False

    def check(self, generations: Sequence[Generation]) -> None:
        """Check rows that the engine has returned.

        Raises:
            JobError: ``NUM_ROWS`` rows have failed in the same way, and none has succeeded.
        """
        if self._is_hopeful:  # nearly always: this is asked after every step
            return
        errors = [(generation.error, generation.request) for generation in generations]
        self._is_hopeful = any(error is None for error, _ in errors)
        for error, request in errors:
            if self._is_hopeful or error is None:
                return
            prompt = tuple(request.prompt_ids)
            if error.kind in KINDS and prompt not in self._prompts:  # copies of a prompt show nothing new
                self._prompts.add(prompt)
                self._num_failed += 1
                self._kinds.add(error.kind)
                self._is_hopeful = len(self._kinds) > 1
            if self._num_failed == NUM_ROWS and not self._is_hopeful:
                raise JobError(
                    f"The first {NUM_ROWS:,} rows are all errors, such as: {error}. They are kept, and the run stops "
                    "here. Fix the cause and run the same command, or use a new --output. Once the run is done, use "
                    f"`job retry {self._output}` to have these rows recomputed."
                )
