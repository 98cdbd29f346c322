"""All modes: kinds of answers, and what adds columns or changes a row's task (such as sampling settings per row).

A new one needs a file and a line in ``MODES``.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from job.modes.aggregate import AggregateMode
from job.modes.choices import ChoicesMode
from job.modes.classify import ClassifyMode
from job.modes.completion import CompletionMode
from job.modes.embed import EmbedMode
from job.modes.extraction import ExtractionMode
from job.modes.mode import Mode
from job.modes.reasoning import ReasoningMode
from job.modes.redraw import RedrawMode
from job.modes.row_params import RowParamsMode
from job.modes.scores import ScoresMode
from job.modes.structured import StructuredMode
from job.tasks.head import GENERATE

MODES: tuple[type[Mode], ...] = (
    ReasoningMode,
    CompletionMode,
    ChoicesMode,
    ScoresMode,
    ClassifyMode,
    EmbedMode,
    ExtractionMode,
    AggregateMode,
    StructuredMode,
    RowParamsMode,
    RedrawMode,
)
"""In the order in which they refine the task, build the answer, and add columns."""


def active(modes: Iterable[Mode], task: str = GENERATE) -> tuple[Mode, ...]:
    """Return the modes that are asked for, plus plain completion if none of them decides what the engine computes.

    Args:
        task: what the model is for. The mode of that name is asked for, too, if there is one.
    """
    asked = [mode for mode in modes if mode.is_asked]
    if task not in (mode.name for mode in asked):
        asked += [mode() for mode in MODES if mode.name == task]
    if not any(mode.answers for mode in asked):
        asked.append(CompletionMode())
    return tuple(sorted(asked, key=lambda mode: MODES.index(type(mode))))


def modes_of(values: Mapping[str, Mapping[str, Any]]) -> tuple[Mode, ...]:
    """Return the active modes of a run.

    Args:
        values: from its manifest: the options of each mode. Those unknown to this version are ignored.
    """
    return active(mode.of(values[mode.name]) for mode in MODES if mode.name in values)
