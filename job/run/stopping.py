"""When a launch stops early, by ``--stop-after``: from then on no rows are begun; those that are, are finished.

So which rows are finished does not depend on how long they took, but for where the line is drawn. In random order, rows
that wait in the engine count as begun: it takes those with long prompts first, so the others must not be left out.
"""

import time
from collections.abc import Callable

import numpy as np

from job.config.stopping import Bound
from job.engine.protocol import Engine
from job.errors import EXIT_LIMIT, EXIT_STOPPED
from job.launch.stop import StopFlag
from job.output.parts.counts import Counts
from job.output.parts.finished_keys import FinishedKeys
from job.output.parts.order import Rows, shuffled
from job.run.preparation import Prepared

COUNT_SECS, COUNT_AT_ONCE_SECS = 10.0, 0.2
"""How often the tokens of all workers are counted, and how long that may take: the model waits meanwhile."""

READ_SECS = 5.0
"""How long counting may take before the start."""


class Limit:
    """How far this launch goes."""

    def __init__(self, prepared: Prepared) -> None:
        """Begin to measure the time."""
        self._bound: Bound | None = prepared.config.launch.stop_bound
        self._finished, self._is_random = prepared.finished, prepared.config.launch.is_random
        self.num_rows = _num_rows(prepared)
        """The number of rows that are begun; None: all of them."""
        self._start = self._counted = time.monotonic()
        self._counted -= COUNT_SECS
        self._num_tokens = 0
        """Of all finished rows, but for those that this worker has finished since they were counted."""
        self._is_reached = False
        self._keys = None if self.num_rows is None else FinishedKeys(prepared.directory, prepared.plan)

    @property
    def text(self) -> str:
        """The option, as it was typed."""
        return "" if self._bound is None else text_of(self._bound)

    @property
    def is_set(self) -> bool:
        """Whether there is one, before the end of the run."""
        return self._bound is not None and (self._bound.num_rows(1) is None or self.num_rows is not None)

    def is_reached(self, own: Counts) -> bool:
        """Whether to begin no more rows. (A limit on rows is kept by handing out no more than that.)

        Args:
            own: what this worker has finished.
        """
        self._is_reached = self._is_reached or self._is_reached_now(own)
        return self._is_reached

    def has_all_rows(self) -> bool:
        """Whether the rows of a limit on rows are finished, whoever has computed them, in the order of the dataset."""
        if self.num_rows is None or self._keys is None:
            return False
        self._keys.look()
        return bool(self._keys.are_done(np.arange(self.num_rows)).all())

    def _is_reached_now(self, own: Counts) -> bool:
        if self._bound is None:
            return False
        if self._bound.secs is not None:
            return time.monotonic() - self._start >= self._bound.secs
        if self._bound.tokens is None:
            return False
        num_own = own.num_prompt_tokens + own.num_completion_tokens
        if time.monotonic() - self._counted >= COUNT_SECS:
            self._finished.look(budget_secs=COUNT_AT_ONCE_SECS)
            self._num_tokens = num_tokens(self._finished.counts()) - num_own
            self._counted = time.monotonic()
        return self._num_tokens + num_own >= self._bound.tokens

    def max_pending(self, engine: Engine) -> int:
        """Return how many requests may be pending. For a sample, and up to a number of tokens or a time, only as many
        as keep the engine busy, since the engine begins them in another order."""
        is_anywhere = self.is_set and self.num_rows is None
        return engine.min_pending if self._is_random or is_anywhere else engine.max_pending

    def exit_code_of(self, stop: StopFlag) -> int:
        """Return the exit code of a launch that was stopped."""
        return EXIT_LIMIT if self.is_set and stop.signal_name == self.text else EXIT_STOPPED


def text_of(bound: Bound) -> str:
    """Return the option, as it was typed."""
    return f"--stop-after {bound.text}"


def num_tokens(counts: Counts) -> int:
    """Return what a limit of tokens counts."""
    return counts.num_prompt_tokens + counts.num_completion_tokens


def _num_rows(prepared: Prepared) -> int | None:
    bound, total = prepared.config.launch.stop_bound, prepared.plan.num_rows
    wanted = None if bound is None else bound.num_rows(total)
    return wanted if wanted is not None and wanted < total else None


def advice_at_limit(prepared: Prepared) -> str:
    """Return what to say at the end of a launch that was stopped by its limit."""
    bound = prepared.config.launch.stop_bound
    assert bound is not None
    return (
        f"{text_of(bound)} is reached. Finished rows are safe: job report {prepared.config.output.output} looks at "
        "them, and the same command with more, or without --stop-after, goes on"
    )


def leave_early(prepared: Prepared, note: Callable[[str], None]) -> int | None:
    """Report that a limit is reached before a model is loaded, and return the exit code; None if it is not."""
    if not _is_reached_already(prepared):
        return None
    note(advice_at_limit(prepared))
    return EXIT_LIMIT


def _is_reached_already(prepared: Prepared) -> bool:
    bound, wanted = prepared.config.launch.stop_bound, _num_rows(prepared)
    if bound is None or not prepared.is_restart:
        return False
    if bound.tokens is not None:
        prepared.finished.look(budget_secs=READ_SECS)
        return num_tokens(prepared.finished.counts()) >= bound.tokens
    if wanted is None:
        return False
    keys = FinishedKeys(prepared.directory, prepared.plan)
    keys.look()
    order = np.arange(wanted) if not prepared.config.launch.is_random else order_of(prepared)[:wanted]
    return bool(keys.are_done(order).all())


def order_of(prepared: Prepared) -> Rows:
    """Return all rows in the random order of the run."""
    return shuffled(prepared.plan.num_rows, prepared.config.sampling.seed)
