"""What a model gives in place of tokens: what its files say of it, and the module that computes it.

The module looks like a causal language model whose "logits" are what is wanted of each token, so that engines serve it
as any other: hidden states, or the logits of a classifier's classes. Heads of classifiers compute in float32.
"""

from types import SimpleNamespace
from typing import Any

import torch

from job.engine.model.kinds import CLASSIFIER, EMBEDDER, ModelKind, is_encoder, reads_ahead
from job.engine.model.sentence_files import read_sentence_files
from job.errors import UsageError
from job.remote.model_files import ModelFiles
from job.tasks.head import MANY_LABELS, ONE_LABEL, SCORE, Head

COUNTS_FROM_PADDING = frozenset(
    {"camembert", "data2vec-text", "longformer", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta"}
    | {"xlm-roberta-xl", "xmod"}
)
"""``model_type`` of models whose first position is the one after the id of their padding."""


def head_of(kind: ModelKind, files: ModelFiles, config: Any) -> Head | None:
    """Return what the files of a model say of its head, without the weights; None if it is a language model's.

    Raises:
        UsageError: it has one that is not served.
    """
    text = config.get_text_config()
    if kind == EMBEDDER:
        size = getattr(text, "word_embed_proj_dim", None) or text.hidden_size
        return read_sentence_files(files, Head(size=int(size), reads_ahead=reads_ahead(config)))
    if kind != CLASSIFIER:
        return None
    labels = tuple(str(config.id2label[idx]) for idx in sorted(config.id2label))
    problem = config.problem_type or (SCORE if len(labels) == 1 else ONE_LABEL)
    if problem == SCORE and len(labels) > 1:
        raise UsageError(
            f"--model {files.name} gives {len(labels)} scores (problem_type is {SCORE!r}), and --task classify writes "
            "one. Use a model with one label, or one that classifies."
        )
    problem = problem if problem in (SCORE, MANY_LABELS) else ONE_LABEL
    if problem == ONE_LABEL and len(set(labels)) < len(labels):
        raise UsageError(f"--model {files.name} has two labels of one name in the id2label of its config.json.")
    pooling = None if is_encoder(config) else "last"
    return Head(size=len(labels), reads_ahead=reads_ahead(config), pooling=pooling, problem=problem, labels=labels)


def num_positions(config: Any, known: int) -> int:
    """Return how many tokens a text may have, of a model whose configuration says ``known``."""
    if config.model_type in COUNTS_FROM_PADDING:
        return known - int(config.pad_token_id or 0) - 1
    return known


class TokenHead(torch.nn.Module):
    """A model without its head, and perhaps the layer that classifies: gives numbers for each token."""

    def __init__(self, base: Any, score: torch.nn.Module | None) -> None:
        """Put a layer on a sharded base model. Without one, hidden states are the result."""
        super().__init__()
        self.base, self.score, self.config = base, None if score is None else score.float(), base.config

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the layers."""
        dtype: torch.dtype = self.base.dtype
        return dtype

    def _can_set_attn_implementation(self) -> bool:
        return bool(self.base._can_set_attn_implementation())

    def set_attn_implementation(self, name: str) -> None:
        """See transformers."""
        self.base.set_attn_implementation(name)

    def forward(
        self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor | None = None, **arguments: Any
    ) -> SimpleNamespace:
        """Return ``logits``, [B, T, D]: of these tokens, or of all. In float32 if they are of classes.

        Args:
            input_ids: [B, T] int64.
            logits_to_keep: [K] int64, the tokens whose logits are wanted.
            arguments: for the base model.
        """
        hidden = self.base(input_ids=input_ids, **arguments).last_hidden_state
        if logits_to_keep is not None:
            hidden = hidden[:, logits_to_keep]
        return SimpleNamespace(logits=hidden if self.score is None else self.score(hidden.float()))


class TextHead(torch.nn.Module):
    """A classifier that makes one vector of a text in its own way, as BERT does of the first token's: gives logits."""

    def __init__(self, model: Any) -> None:
        """Serve a sharded classifier."""
        super().__init__()
        self.model, self.config, self.dtype = model, model.config, model.dtype
        for name, head in model.named_children():
            if name != model.base_model_prefix:
                head.float().register_forward_pre_hook(_in_float32)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        **arguments: Any,
    ) -> SimpleNamespace:
        """Return ``logits``, [B, D] float32.

        Args:
            input_ids: [B, T] int64.
            attention_mask: [B, T], 0 for padding.
            token_type_ids: [B, T], 1 for tokens of a second text. Left out of models that do not tell texts apart.
            arguments: not used.
        """
        told_apart = token_type_ids is not None and getattr(self.config, "type_vocab_size", 0) > 1
        types = {"token_type_ids": token_type_ids} if told_apart else {}
        return SimpleNamespace(logits=self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits)


def with_head(model: Any, kind: ModelKind) -> Any:
    """Return the module that computes what a loaded and sharded model is for."""
    if kind == EMBEDDER:
        return TokenHead(model, None)
    if kind != CLASSIFIER:
        return model
    score = getattr(model, "score", None)
    if isinstance(score, torch.nn.Linear) and not is_encoder(model.config):
        return TokenHead(getattr(model, model.base_model_prefix), score)
    return TextHead(model)


def without_unused(model: Any, kind: ModelKind) -> None:
    """Drop the modules that a kind does not use."""
    for name in kind.unused:
        if getattr(model, name, None) is not None:
            setattr(model, name, None)


def _in_float32(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.float() if isinstance(value, torch.Tensor) else value for value in inputs)
