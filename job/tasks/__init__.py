"""What an engine is asked to do for a request: sampling parameters, grammar, choices.

Frozen values that travel with each ``Request``.

An engine has no sampling settings of its own: two requests in one batch may differ in all of this. The engine knows no
text (law 6), so anything that depends on text comes as a function over token ids.

A new kind of task is one more class here, with ``served_by`` and
``is_deterministic``, one more member of ``Task``, and the engine's module that ``served_by`` names.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from job.errors import require
from job.modes.options import option
from job.tasks.head import Pool as Pool
from job.tasks.reasoning import Reasoning as Reasoning
from job.tasks.scored_text import ScoreText as ScoreText

EndsText = Callable[[Sequence[Sequence[int]]], Sequence[bool]]
"""Takes several completions as token ids and returns, for each, whether its last token completed a stop string."""


MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-20, 1e20
"""Logits divided by a temperature beyond these are infinite or not a number. Within them, nothing changes any more: the
smallest difference between two logits decides, or none does."""

MIN_PENALTY, MAX_PENALTY = 1e-4, 1e4
"""The same for the repetition penalty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one completion are chosen. The default is greedy decoding."""

    max_new_tokens: int = option(256, "Maximum number of tokens to generate per completion.")
    temperature: float = option(0.0, "Sampling temperature (0: greedy).")
    top_p: float = option(1.0, "Sample from the most likely tokens whose probabilities sum to this (1: off).")
    top_k: int = option(0, "Sample from the K most likely tokens (0: off).")
    min_p: float = option(0.0, "Drop tokens less likely than this times the most likely one (0: off).")
    repetition_penalty: float = option(1.0, "Above 1, make tokens that were already seen less likely (1: off).")
    presence_penalty: float = option(
        0.0, "Take this off the logit of each token that was generated already: -2 to 2 (0: off)."
    )
    frequency_penalty: float = option(0.0, "The same, once for each time that the token was generated.")
    min_new_tokens: int = option(0, "Do not end a completion before it has this many tokens.")
    stop_token_ids: tuple[int, ...] = option((), "Token that ends a completion, by its id; repeat for several.")
    repetition_detection: int = option(
        0,
        "End a completion whose end, at most 64 tokens, is repeated this many times in a row, as soon as that makes at "
        "least 64 tokens (0: off). Its finish_reason is repetition.",
        metavar="TIMES",
    )
    no_repeat_ngram_size: int | None = option(
        None,
        "Let no sequence of this many tokens occur twice [default: none is ruled out; for encoder-decoders, what the "
        "model's generation_config.json says].",
        metavar="N",
    )
    biases: tuple[tuple[int, float], ...] = ()
    """Tokens, and what is added to their logits."""
    bad_token_ids: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that the completion may not contain."""
    logprobs: bool = False
    """Return the log probabilities of the generated tokens, in the model's own distribution."""
    num_top_logprobs: int = 0
    """Return the most likely tokens at each place, too: this many, with their log probabilities in the same
    distribution. Above 0, the generated tokens' are returned in any case."""
    seed: int = option(0, "Random seed. Every draw depends only on it, row_idx, sample_idx and position.")
    ignore_eos: bool = option(False, "Always generate max-new-tokens tokens; for benchmarks.")

    def __post_init__(self) -> None:
        require(self.max_new_tokens > 0, "max-new-tokens", self.max_new_tokens, "at least 1")
        require(0 <= self.temperature < float("inf"), "temperature", self.temperature, "0 (greedy) or more")
        require(0 < self.top_p <= 1, "top-p", self.top_p, "above 0 and at most 1")
        require(self.top_k >= 0, "top-k", self.top_k, "0 (off) or more")
        require(0 <= self.min_p <= 1, "min-p", self.min_p, "between 0 and 1")
        require(0 < self.repetition_penalty < float("inf"), "repetition-penalty", self.repetition_penalty, "above 0")
        require(-2 <= self.presence_penalty <= 2, "presence-penalty", self.presence_penalty, "between -2 and 2")
        require(-2 <= self.frequency_penalty <= 2, "frequency-penalty", self.frequency_penalty, "between -2 and 2")
        at_most = f"between 0 and --max-new-tokens {self.max_new_tokens}"
        require(0 <= self.min_new_tokens <= self.max_new_tokens, "min-new-tokens", self.min_new_tokens, at_most)
        for token in self.stop_token_ids:
            require(token >= 0, "stop-token-ids", token, "an id, 0 or more")
        is_count = self.repetition_detection == 0 or self.repetition_detection >= 2
        require(is_count, "repetition-detection", self.repetition_detection, "0 (off), or 2 or more")
        size = self.no_repeat_ngram_size
        require(size is None or size >= 0, "no-repeat-ngram-size", size, "0 (off) or more")
        require(0 <= self.seed < 2**63, "seed", self.seed, "between 0 and 2**63 - 1")
        require(self.num_top_logprobs >= 0, "top-logprobs", self.num_top_logprobs, "0 (none) or more")

    @property
    def scores_tokens(self) -> bool:
        """Whether the log probability of each token is returned."""
        return self.logprobs or self.num_top_logprobs > 0

    @property
    def needs_steps(self) -> bool:
        """Whether each token needs a step of its own, even if no other one is possible: for its log probability, or
        because the row may end there.
        """
        rules_out = bool(self.bad_token_ids) or bool(self.no_repeat_ngram_size)
        return self.scores_tokens or rules_out or self.repetition_detection > 0

    def eos_of(self, eos_token_ids: frozenset[int]) -> frozenset[int]:
        """Return which of the model's end-of-sequence tokens end a completion."""
        return frozenset() if self.ignore_eos else eos_token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """A constraint on a completion, compiled for the model's tokenizer by the mode that knows the text."""

    compile: Callable[[], Any]
    """Returns an llguidance LLMatcher in its initial state, before the first token."""
    vocab_size: int
    """The tokenizer's; the model's may be larger."""
    eos_token_id: int
    """The token that ends a completion for the matcher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """Generate a completion."""

    served_by: ClassVar[Mapping[str, str]] = {
        "paged": "job.engine.paged.tasks.decoding:Decoding",
        "static": "job.engine.static.generating:Generating",
        "fake": "job.engine.fake:reverse_prompt",
    }
    """For each engine that serves this kind of task: ``module:name`` of the ``LogitsTask`` of the paged engine, the
    ``BatchTask`` of the static engine, or the function of the fake engine."""

    params: SamplingParams
    grammar: Grammar | None = None
    """The constraint on the answer. None: any text."""
    ends_text: EndsText | None = None
    """Finds stop strings, in the tokens of the answer. None: there are none."""
    reasoning: Reasoning | None = None
    """How the completion may reason before the answer. None: all of it is the answer."""
    ends_at_answer: bool = False
    """Whether the completion ends where its answer begins: it is asked for the reasoning alone."""

    @property
    def is_deterministic(self) -> bool:
        """Whether equal prompts get equal answers."""
        return self.params.temperature == 0


EARLY_STOPPING = ("true", "false", "never")


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearch(Generate):
    """Generate the completion with the best score that a beam search finds, as transformers' ``generate`` does it.

    It has no grammar, stop strings or reasoning, its temperature is 0, and its log probabilities are not returned.
    """

    served_by: ClassVar[Mapping[str, str]] = {
        "static": "job.engine.static.searching:Searching",
        "fake": "job.engine.fake:reverse_prompt",
    }
    """See ``Generate``."""

    num_beams: int
    """Hypotheses that are followed at a time, 2 or more."""
    length_penalty: float = 1.0
    """A hypothesis' score is the sum of its log probabilities divided by its length to this power."""
    early_stopping: str = "false"
    """When a row is done, once it has as many finished hypotheses as beams. ``true``: at once. ``false``: when the best
    beam would not be better if it ended now. ``never``: when it could not become better at any length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Return the log-likelihood of each choice after the prompt, or after the reasoning that the prompt leads to."""

    served_by: ClassVar[Mapping[str, str]] = {
        "paged": "job.engine.paged.tasks.scoring:Scoring",
        "static": "job.engine.static.scoring:Scoring",
        "fake": "job.engine.fake:score_choices",
    }
    """See ``Generate``."""

    choice_ids: tuple[tuple[int, ...], ...]
    """Token ids of each choice, none of them empty."""
    reason: Generate | None = None
    """Generates the reasoning, which is closed if it ends too early. None: choices follow the prompt. Engines are
    wrapped in ``ReasonedScores``, so what serves this class never sees it."""
    gap_ids: tuple[int, ...] = ()
    """Token ids of the text between the reasoning and a choice."""

    @property
    def is_deterministic(self) -> bool:
        """Whether equal prompts get equal answers."""
        return self.reason is None or self.reason.is_deterministic


def is_continued(task: "Task") -> bool:
    """Whether the next request will go on with what was generated."""
    return isinstance(task, Generate) and task.ends_at_answer


Task = Generate | BeamSearch | Score | ScoreText | Pool
