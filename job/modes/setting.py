"""What a mode is bound to: the tokenizer, the sampling options, and how prompts end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from job.config import SamplingConfig


class Tokens(Protocol):
    """The model's tokenizer, as far as modes use it."""

    inner: Any
    """The transformers tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens at its ends."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The tokens that are not text, with their ids."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    def decode(self, ids: Sequence[Sequence[int]], *, special_tokens: bool = False) -> list[str]:
        """Return texts as they follow a prompt, with or without special tokens."""

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return tokens as they are spelled in the vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a mode is bound to."""

    tokens: Tokens
    sampling: "SamplingConfig"
    prompt_suffix: str
    """What the chat template writes after the user's message; empty without a template."""
    before_answer: str = ""
    """What completions have right before their answer, if something comes before it: the end of their reasoning."""
    begins_answer: bool = False
    """Whether prompts end with the beginning of the answer."""
    stops_at_special_tokens: bool = True
    """Whether a stop string may contain special tokens."""
    serves: Callable[[Mapping[str, Any]], bool] = lambda response_format: False
    """Whether every completion of the run follows a ``response_format`` of OpenAI's API."""
    text_column: str | None = None
    """The column whose text is the prompt; None if it comes from elsewhere."""
    adds_special_tokens: bool = False
    """Whether the tokenizer adds special tokens to prompts."""
