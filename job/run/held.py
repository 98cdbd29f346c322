"""The model that a process has loaded, and its engine, which the next run may use if it asks for the same."""

from collections.abc import Sequence
from dataclasses import dataclass

from job.config import EngineConfig, ModelConfig, RunConfig
from job.engine.model.loading import LoadedModel
from job.engine.protocol import Engine
from job.observe.watchdog import Heartbeat
from job.remote.model_files import ModelFiles
from job.run.preparation import Prepared


@dataclass(frozen=True, kw_only=True)
class Held:
    """An engine, and what it was built for."""

    engine: Engine
    heartbeat: Heartbeat
    """The engine's sign of life."""
    dtype: str | None
    """The model's; None if the engine has no model."""
    asked: tuple[ModelConfig, EngineConfig, ModelFiles]
    identity: tuple[object, Sequence[int]] | None
    """What the weights are, and the tokens that end a completion. None on followers."""

    @classmethod
    def of(
        cls,
        config: RunConfig,
        files: ModelFiles,
        prepared: Prepared | None,
        model: LoadedModel | None,
        engine: Engine,
        heartbeat: Heartbeat,
    ) -> "Held":
        """Describe what was built for a run."""
        return cls(
            engine=engine,
            heartbeat=heartbeat,
            dtype=None if model is None else str(model.dtype).removeprefix("torch."),
            asked=(config.model, config.engine, files),
            identity=_identity(prepared),
        )

    def fits(self, config: RunConfig, files: ModelFiles, prepared: Prepared | None) -> bool:
        """Whether another run can use it: the same model with the same options, in a dtype that the run may have."""
        if prepared is None or self.asked != (config.model, config.engine, files):
            return False
        info = prepared.model_info
        dtypes = (info.dtype, None if prepared.is_claimed else info.fallback_dtype)
        return self.identity == _identity(prepared) and (self.dtype is None or self.dtype in dtypes)


def _identity(prepared: Prepared | None) -> tuple[object, Sequence[int]] | None:
    if prepared is None:
        return None
    model = prepared.manifest.section("model")
    return (model["fingerprint"], model.get("adapter")), list(prepared.tokenizer.stop_token_ids)
