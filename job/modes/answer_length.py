"""How much room a mode needs for its answers, beside prompts."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLength:
    """How many tokens of the model's context an answer may use."""

    num_tokens: int
    what: str
    """The option that decides it, as the subject at the start of a sentence."""
    limits_prompt: bool = True
    """Whether prompt and answer must fit into the model's context together."""
    num_reasoning: int = 0
    """How many of the tokens may be reasoning, with its markers, whatever comes after it."""
    what_reasoning: str = ""
    """The same for these."""
