"""The kinds of models, by what they have on top of their layers. Each is loaded with a class of transformers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelKind:
    """What a model is for."""

    auto_class: str
    """The class of transformers that loads it."""
    phrase: str
    """What it is, in a message: "a causal language model"."""


CAUSAL = ModelKind(auto_class="AutoModelForCausalLM", phrase="a causal language model")
