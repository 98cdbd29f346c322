"""The engines that a user can name. Imports nothing heavy: the command line lists them.

A new engine is one more entry here; no other code looks at the name of an engine.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from job.config import EngineConfig
    from job.engine.model.loading import LoadedModel
    from job.engine.protocol import Engine
    from job.launch.replica import Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """What is known about an engine before it is built."""

    needs_model: bool
    """Whether it needs the model's weights, which tensor parallelism may shard."""
    module: str
    """The module of its builder, imported only when the engine is built."""
    builder: str
    """A function with the parameters of ``build``."""
    ignores: tuple[str, ...] = ()
    """Names of the options that have no effect on it."""

    def build(
        self,
        model: "LoadedModel | None",
        config: "EngineConfig",
        replica: "Replica",
        *,
        should_stop: Callable[[], bool],
        note: Callable[[str], None],
    ) -> "Engine":
        """Build the engine. All ranks of a replica must do this together.

        Args:
            model: None if the engine does not need one.
            should_stop: called by the leader; True makes ``step`` return soon.
            note: prints a line for the user.
        """
        builder = getattr(import_module(self.module), self.builder)
        engine: Engine = builder(model, config, replica, should_stop=should_stop, note=note)
        return engine


OF_PAGES = ("kv_cache_memory", "kv_cache_dtype", "attention_backend", "fused", "cuda_graphs", "overlap")

ENGINES: Mapping[str, EngineKind] = {
    "paged": EngineKind(needs_model=True, module="job.engine.build", builder="build_paged"),
    "static": EngineKind(needs_model=True, module="job.engine.build", builder="build_static", ignores=OF_PAGES),
    "fake": EngineKind(needs_model=False, module="job.engine.fake", builder="build_fake", ignores=OF_PAGES),
}
