"""What the attention kernels compute, in plain operations: the interpreter takes minutes for a whole engine.

``use`` puts them in the place of the kernels' launches, so that everything around the kernels is tested as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from job.engine.paged import engine as paged_engine
from job.engine.paged.attention.backends import TRITON
from job.engine.paged.attention.interface import AttentionArgs
from job.engine.paged.cuda import launches, steps
from job.engine.paged.cuda.graphs import Work
from job.engine.paged.cuda.launches import Pool
from job.engine.paged.cuda.numbers import StepShape
from job.engine.paged.cuda.steps import RecordedStep


def attend_by_loop(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, position: int, args: AttentionArgs
) -> torch.Tensor:
    """Attend in float64 with [q, H * G, K] to [k, H, K] and [k, H, V]; the first query is at ``position``."""
    group = query.shape[1] // key.shape[1]
    query, key, value = (tensor.double() for tensor in (query, key, value))
    key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * args.scale
    if args.softcap is not None:
        scores = torch.tanh(scores / args.softcap) * args.softcap
    at, own = torch.arange(len(key)), position + torch.arange(len(query))[:, None]
    hidden = at > own if args.window is None else (at > own) | (at <= own - args.window)
    scores = scores.masked_fill(hidden, -torch.inf)
    if args.sinks is not None:
        sinks = args.sinks.cpu().double()[:, None, None].expand(-1, len(query), 1)
        scores = torch.cat([scores, sinks], dim=-1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1)[..., : len(key)], value)


@dataclass(frozen=True, slots=True)
class PlainLaunch:
    """Runs a function."""

    run: Callable[[], None]


def attend_launches(
    output: torch.Tensor,
    query: torch.Tensor,
    pool: Pool,
    tiles: torch.Tensor,
    tables: torch.Tensor,
    args: AttentionArgs,
    **_: Any,
) -> list[PlainLaunch]:
    """See ``launches.attend_launches``."""

    def run() -> None:
        for slot, first, count, position in tiles.tolist():
            if count == 0:
                continue
            pages = tables[slot, : -(-(position + count) // pool.page_tokens)].long()
            key, value = (
                pages_of[pages].transpose(1, 2).flatten(0, 1)[: position + count]
                for pages_of in (pool.keys, pool.values)
            )
            output[first : first + count] = attend_by_loop(query[first : first + count], key, value, position, args)

    return [PlainLaunch(run)]


def store_launch(pool: Pool, key: torch.Tensor, value: torch.Tensor, places: torch.Tensor) -> PlainLaunch:
    """See ``launches.store_launch``."""

    def run() -> None:
        pages, within = places.long() // pool.page_tokens, places.long() % pool.page_tokens
        pool.keys[pages, :, within], pool.values[pages, :, within] = key, value

    return PlainLaunch(run)


def replace(patch: pytest.MonkeyPatch) -> None:
    """Use these instead of the kernels."""
    patch.setattr(launches, "attend_launches", attend_launches)
    patch.setattr(launches, "store_launch", store_launch)


def use(patch: pytest.MonkeyPatch) -> None:
    """Let engines take the way of CUDA, with these."""
    replace(patch)
    patch.setattr(paged_engine, "choose_backend", lambda *args: (TRITON, None))


def record(patch: pytest.MonkeyPatch) -> list[StepShape]:
    """Let engines take the way of CUDA, and record their steps. Returns the shapes that are replayed."""
    replayed: list[StepShape] = []

    class Repetitions:
        """Replays work by doing it again. It reads what it has read, so it must find the new numbers there."""

        def record(self, work: Work) -> Work:
            work()
            return work

    fill = RecordedStep.fill

    def remember(self: RecordedStep, numbers: Any) -> Any:
        if self.replay is not None:
            replayed.append(self.padding.shape)
        return fill(self, numbers)

    patch.setattr(steps, "Graphs", Repetitions)
    patch.setattr(RecordedStep, "fill", remember)
    use(patch)
    return replayed
