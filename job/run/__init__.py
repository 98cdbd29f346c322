"""The order of things: how the stages become a run.

The package can be called, since ``from job import run`` gives the package once any of its modules is imported. See
``job.run.api``.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from job.run.api import RunConfig, RunResult


class _Callable(ModuleType):
    """A package that can be called."""

    def __call__(self, config: "RunConfig | None" = None, /, **options: Any) -> "RunResult":
        """Complete every row of a dataset; see ``job.run.api.run``."""
        from job.run.api import run

        return run(config, **options)


sys.modules[__name__].__class__ = _Callable
