"""The kinds of models, by what they have on top of their layers. Each is loaded with a class of transformers."""

from dataclasses import dataclass
from typing import Any

from job.errors import UsageError
from job.tasks.head import CLASSIFY, EMBED, GENERATE


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelKind:
    """What a model is for."""

    auto_class: str
    """The class of transformers that loads it."""
    phrase: str
    """What it is, in a message: "a causal language model"."""
    unused: tuple[str, ...] = ()
    """Modules of that class that are not used. They are dropped, and their weights may be missing."""


CAUSAL = ModelKind(auto_class="AutoModelForCausalLM", phrase="a causal language model")
EMBEDDER = ModelKind(auto_class="AutoModel", phrase="a model without a head", unused=("pooler",))
ENCODER_DECODER = ModelKind(auto_class="AutoModelForSeq2SeqLM", phrase="an encoder-decoder that writes text")
CLASSIFIER = ModelKind(auto_class="AutoModelForSequenceClassification", phrase="a sequence classifier")

_KINDS = {GENERATE: CAUSAL, CLASSIFY: CLASSIFIER, EMBED: EMBEDDER}


MAY_WRITE = frozenset({"flaubert", "reformer", "xlm"})
"""``model_type`` of encoders that some checkpoints use as language models, without a word in their configuration."""


def kind_of(task: str, name: str, config: Any) -> ModelKind:
    """Return the kind of a model that does a task.

    Args:
        task: the value of ``--task``.
        name: the model's, for messages.
        config: transformers' configuration.

    Raises:
        UsageError: its configuration says that it is of another kind.
    """
    stored = (getattr(config, "architectures", None) or [""])[0]
    if task == GENERATE and stored.endswith("ForSequenceClassification"):
        raise UsageError(f"--model {name} is a {stored}, which writes no text. Set --task classify.")
    if task == GENERATE and reads_ahead(config) and config.model_type not in MAY_WRITE:
        raise UsageError(
            f"--model {name} is an encoder ({config.model_type}), which writes no text. Set --task embed or classify."
        )
    if task == CLASSIFY and stored.endswith(("ForCausalLM", "ForMaskedLM")):
        raise UsageError(
            f"--model {name} is a {stored}: it has no head that classifies. Name a classifier or a reward model. (A "
            "causal model can choose between texts: --choices, without --task.)"
        )
    if task != GENERATE and config.is_encoder_decoder:
        raise UsageError(
            f"--model {name} ({config.model_type}) is an encoder-decoder, which --task {task} cannot use. "
            "Use a decoder, or an encoder such as BERT."
        )
    if config.is_encoder_decoder:
        return ENCODER_DECODER
    return _KINDS[task]


def is_encoder(config: Any) -> bool:
    """Whether a model is an encoder such as BERT, whose class for classifiers pools a text in a way of its own."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    is_known = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_encoder_decoder
    return is_known and not getattr(config, "is_decoder", False)


def reads_ahead(config: Any) -> bool:
    """Whether each token of a model sees those after it, as in an encoder or in a decoder that was changed to do so."""
    text = config.get_text_config()
    is_changed = getattr(text, "use_bidirectional_attention", None) is True or getattr(text, "is_causal", None) is False
    return is_encoder(config) or (is_changed and not config.is_encoder_decoder)
