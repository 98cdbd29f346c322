"""Which sampling options have no effect on any answer of a run."""

from collections.abc import Sequence

from job.modes.mode import Mode


def ignored_by(modes: Sequence[Mode]) -> frozenset[str]:
    """Return the sampling options that no answer depends on. Reasoning depends on all, but for the length if it has a
    budget.
    """
    if not any(mode.always_generates for mode in modes):
        return frozenset().union(*(mode.ignores for mode in modes))
    is_scored = any(mode.answers and mode.decides_end for mode in modes)
    has_budget = any("max_reasoning_tokens" in mode.given() for mode in modes)
    return frozenset(["max_new_tokens"]) if is_scored and has_budget else frozenset()
