"""Requests with other sampling options than the run's: ``job retry`` asks for them, for some rows, and ``--reuse`` for
those whose own draws were copied to other rows."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from job.records import Request
from job.tasks import Generate, Score


def changed(request: Request, changes: Mapping[str, Any], longest: Callable[[int], int]) -> Request:
    """Return a request with these sampling options. A longer answer is still limited by what the model has room for.

    Args:
        longest: returns the most tokens that an answer may have after a prompt of this length.
    """
    if not changes:
        return request
    if isinstance(request.task, Score) and request.task.reason is not None:
        reasoned = changed(replace(request, task=request.task.reason), changes, longest)
        assert isinstance(reasoned.task, Generate)
        return replace(request, task=replace(request.task, reason=reasoned.task))
    assert isinstance(request.task, Generate), "job retry refuses changes where nothing is drawn"
    own = request.task.params
    room = max(own.max_new_tokens, longest(len(request.prompt_ids)))
    most = max(own.min_new_tokens, min(changes.get("max_new_tokens", own.max_new_tokens), room))
    params = replace(own, **{**changes, "max_new_tokens": most})
    return replace(request, task=replace(request.task, params=params))
