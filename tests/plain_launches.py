"""What the attention kernels compute, in plain operations: the interpreter takes minutes for a whole engine.

``use`` puts them in the place of the kernels' launches, so that everything around the kernels is tested as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from job.engine.paged.attention.backends import _plain
from job.engine.paged.attention.interface import AttentionArgs
from job.engine.paged.cuda import launches
from job.engine.paged.cuda.launches import Pool


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
            output[first : first + count] = _plain(query[first : first + count], key, value, position, args)

    return [PlainLaunch(run)]


def store_launch(pool: Pool, key: torch.Tensor, value: torch.Tensor, places: torch.Tensor) -> PlainLaunch:
    """See ``launches.store_launch``."""

    def run() -> None:
        pages, within = places.long() // pool.page_tokens, places.long() % pool.page_tokens
        pool.keys[pages, :, within], pool.values[pages, :, within] = key, value

    return PlainLaunch(run)


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute attention with these."""
    monkeypatch.setattr(launches, "attend_launches", attend_launches)
    monkeypatch.setattr(launches, "store_launch", store_launch)
