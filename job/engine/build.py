"""Which engine serves a model: the paged one if the model supports it, else the static one, with one line saying so."""

from collections.abc import Callable, Sequence

from job.config import EngineConfig, SamplingParams
from job.engine.duplicates import SharedCompletions
from job.engine.logits.trie import ChoiceTrie
from job.engine.model.loading import LoadedModel
from job.engine.paged.engine import PagedEngine
from job.engine.paged.support import check_support
from job.engine.protocol import EndsText, Engine
from job.engine.static.engine import StaticEngine
from job.engine.static.scoring import StaticScorer
from job.launch.replica import Replica
from job.records import Grammar


def build_engine(
    model: LoadedModel,
    params: SamplingParams,
    config: EngineConfig,
    replica: Replica,
    *,
    should_stop: Callable[[], bool],
    ends_text: EndsText | None,
    note: Callable[[str], None],
    choice_ids: Sequence[Sequence[int]] | None = None,
    grammar: Grammar | None = None,
) -> Engine:
    """Build the engine on a loaded model. All ranks of a replica must do this together.

    Args:
        should_stop: see the engines.
        ends_text: finds the stop strings; needed by the leader alone.
        note: tells the user.
        choice_ids: the choices to score instead of generating.
        grammar: what every completion must be; for the leader alone.
    """
    engine: Engine
    trie = None if choice_ids is None else ChoiceTrie(choice_ids)
    reason: str | None = "--engine static was given"
    if config.engine == "paged":
        shapes, reason = check_support(model, replica)
        if reason is not None:
            model_type = model.module.config.model_type
            note(f"model type {model_type!r} is served by static batches, which are slower: {reason}")
    if reason is None:
        engine = PagedEngine(model, shapes, params, config, replica, should_stop, ends_text, trie, grammar)
        if engine.no_kernel is not None:
            note(f"attention runs in plain torch operations, which are slower: {engine.no_kernel}")
        if engine.no_graphs is not None:
            note(f"decode steps are launched kernel by kernel, which is slower: {engine.no_graphs}")
    elif trie is not None:
        engine = StaticScorer(model, trie, config, replica, should_stop)
    else:
        engine = StaticEngine(model, params, config, replica, should_stop, ends_text, grammar)
    return SharedCompletions(engine) if params.temperature == 0 or trie is not None else engine
