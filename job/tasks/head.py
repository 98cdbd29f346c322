"""What a model gives in place of tokens: a vector of each text, or its classes. Known before weights are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

GENERATE, CLASSIFY, EMBED = "generate", "classify", "embed"

MODEL_TASKS = (GENERATE, CLASSIFY, EMBED)
"""Values of ``--task``."""

POOLINGS = ("mean", "weighted-mean", "last", "cls")
"""How the vectors of a text's tokens become one: their mean, one in which the n-th token counts n times, or that of its
last or first token."""

MEANS = ("mean", "weighted-mean")
"""Those that need the vectors of all tokens."""

SCORE, ONE_LABEL, MANY_LABELS = "regression", "single_label_classification", "multi_label_classification"
"""Transformers' names for what a classifier says: a number, one of its labels, or any of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseLayer:
    """A linear layer that sentence-transformers puts after the pooling."""

    folder: str
    """Where its files are in the model's directory."""
    num_in: int
    num_out: int
    has_bias: bool
    activation: str
    """A class of torch, such as Tanh."""

    @property
    def weights(self) -> str:
        """The name of the file with its weights."""
        return f"{self.folder}/model.safetensors"

    def __str__(self) -> str:
        """Return it in words."""
        after = "" if self.activation == "Identity" else f", then {self.activation}"
        return f"a dense layer of {self.num_in:,} to {self.num_out:,} numbers{after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What the files of a model say about its vectors or classes."""

    size: int
    """How many numbers it gives for a text: those of a vector, or one for each label."""
    reads_ahead: bool = False
    """Whether each token sees those after it, as in BERT. No token of a decoder does."""
    pooling: str | None = None
    """One of ``POOLINGS``. None: its files do not say, or it is a classifier that pools in its own way."""
    dense: tuple[DenseLayer, ...] = ()
    """What is applied to the pooled vector, in this order. ``size`` is what the last one gives."""
    normalizes: bool = False
    """Whether vectors get the length 1."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Texts that may be put before a text, by name."""
    usual_prompt: str | None = None
    """The name of the one that is used unless another is asked for."""
    pools_prompt: bool = True
    """Whether the tokens of such a text count in a mean."""
    lowers_case: bool = False
    """Whether texts are read in lower case."""
    problem: str = ONE_LABEL
    """What a classifier says: ``SCORE``, ``ONE_LABEL`` or ``MANY_LABELS``."""
    labels: tuple[str, ...] = ()
    """The names of its classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Return one vector of the prompt: of its hidden states, or of the logits of its classes. Nothing is generated."""

    served_by: ClassVar[Mapping[str, str]] = {
        "paged": "job.engine.paged.tasks.pooling:Pooling",
        "static": "job.engine.static.pooling:Pooling",
        "fake": "job.engine.fake:pool",
    }
    """See ``Generate``."""

    size: int
    """How many numbers it has."""
    pooling: str
    """One of ``POOLINGS``. Without effect if a classifier pools in its own way."""
    second_from: int | None = None
    """The index of the first token of the second text of a pair. None: there is one text."""

    @property
    def is_deterministic(self) -> bool:
        """Whether equal prompts get equal answers."""
        return True
