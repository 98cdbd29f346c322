"""Scores: how likely the model finds a text that exists, in a column of the dataset. Nothing is generated.

After a prompt, these are the log-likelihoods of lm-evaluation-harness' ``loglikelihood``; alone, those of its
``loglikelihood_rolling``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from job.errors import UsageError, require
from job.modes.mode import Answer, AnswerLength, BoundMode, Mode, Outcome, Section, Setting, Tokens
from job.modes.options import option
from job.records import Generation, Prompt, Request, RowRejected
from job.tasks import ScoreText

if TYPE_CHECKING:
    import pyarrow as pa

    from job.config import PromptConfig, RunConfig

NUMBERS = ("logprob", "num_scored_tokens", "num_scored_bytes", "perplexity", "bits_per_byte")
"""Columns."""

SCORES, PER_NAT = "scores", 1_000_000
"""The name of its tally: sums over all rows. Tallies are integers, so log-likelihoods are counted in millionths."""

PROMPT_OPTIONS = ("prompt_column", "messages_column", "prompt_template", "system_prompt", "examples", "prefill")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoresMode(Mode):
    """The log-likelihood of a text."""

    name: ClassVar[str] = "scores"
    serves_encoder_decoders: ClassVar[bool] = False
    answers: ClassVar[bool] = True
    decides_end: ClassVar[bool] = True
    follows_reasoning: ClassVar[bool] = False
    follow: ClassVar[frozenset[str]] = frozenset(["perplexity", "bits_per_byte"])
    ignores: ClassVar[frozenset[str]] = frozenset(
        [
            *("max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "logit_bias"),
            *("repetition_penalty", "presence_penalty", "frequency_penalty", "bad_words", "repetition_detection"),
        ]
    )

    score_column: str | None = option(
        None,
        "Generate nothing: write the log-likelihood of the text in this column, after the prompt, or alone if no "
        "option says what the prompt is.",
    )
    score_window: int | None = option(
        None,
        "With --score-column: read at most N tokens at once; longer texts are scored in windows [default: the model's "
        "context].",
        metavar="N",
    )
    score_stride: int | None = option(
        None,
        "With --score-column: score N tokens in every window but the first; the other tokens in it are context "
        "[default: all of them, so that windows do not overlap].",
        metavar="N",
    )
    token_logprobs: bool = option(
        False, "With --score-column: write the token ids of each text and their log probabilities."
    )

    def check(self, config: "RunConfig") -> None:
        """See ``Mode``."""
        if self.score_column is None:
            raise UsageError(f"{self.flag} was given without --score-column. Give both, or leave it out.")
        if config.sampling.num_samples > 1:
            raise UsageError(
                f"--num-samples {config.sampling.num_samples} and --score-column were given together. Leave out "
                "--num-samples: nothing is drawn."
            )
        if self.score_stride is not None:
            require(self.score_stride > 0, "score-stride", self.score_stride, "at least 1")
        if self.score_window is not None:
            require(self.score_window > 1, "score-window", self.score_window, "at least 2")
        if self._is_alone(config.prompt):
            if config.prompt.chat:
                raise UsageError(
                    "--chat and --score-column were given, but nothing that says what the prompt is. Set "
                    "--prompt-column, --prompt-template or --messages-column, or leave out --chat."
                )
        elif config.prompt.special_tokens_in_text == "escape":
            raise UsageError(
                "--special-tokens-in-text escape and --score-column were given together with a prompt. Use allow or "
                "error."
            )

    def prompts(self, config: "PromptConfig") -> "PromptConfig":
        """Without another prompt, the text takes its place, and is read without a chat template."""
        if self.score_column is not None and config.prompt_column == self.score_column and config.chat is not False:
            raise UsageError(
                f"--prompt-column and --score-column both name {self.score_column!r}. Leave out --prompt-column to "
                "score the text alone, or name another column."
            )
        return replace(config, prompt_column=self.score_column, chat=False) if self._is_alone(config) else config

    def settled(self, config: "RunConfig", tokens: Tokens, template: str | None, found: Sequence[Mode] | None) -> Self:
        """Take the size of windows from the model, if it is not given."""
        most = config.model.max_model_len
        if self.score_column is None or most is None:
            return self
        settled = replace(self, score_window=self.score_window or most)
        for name, limit in (("score_window", most), ("score_stride", settled.score_window)):
            value = getattr(self, name)
            if value is not None and limit is not None and value > limit:
                flag = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{flag} {value} is more than the {limit} tokens that are read at once. Use {limit} or less."
                )
        return settled

    def columns(self) -> tuple[str, ...]:
        """See ``Mode``."""
        return () if self.score_column is None else (self.score_column,)

    def check_schema(self, schema: "pa.Schema") -> None:
        """See ``Mode``. (In JSON lines, each row has its own types.)"""
        import pyarrow as pa

        from job.arrow.types import is_text

        data_type = schema.field(self.score_column).type
        if not (is_text(data_type) or pa.types.is_string_view(data_type) or pa.types.is_null(data_type)):
            raise UsageError(
                f"--score-column {self.score_column!r} is a column of {data_type}, not of text. Name another column."
            )

    def bind(self, setting: Setting) -> BoundMode:
        """See ``Mode``."""
        assert self.score_column is not None and self.score_window is not None, "settled"
        return BoundScores(
            setting,
            self.score_column,
            window=self.score_window,
            stride=self.score_stride or self.score_window,
            token_logprobs=self.token_logprobs,
        )

    def measured(self) -> "list[pa.Field]":
        """See ``Mode``."""
        import pyarrow as pa

        types = [pa.float64(), pa.int32(), pa.int32(), pa.float64(), pa.float64()]
        columns = [pa.field(name, data_type) for name, data_type in zip(NUMBERS, types, strict=True)]
        if not self.token_logprobs:
            return columns
        lists = {"token_ids": pa.int32(), "token_logprobs": pa.float32()}
        return [*columns, *(pa.field(name, pa.list_(data_type)) for name, data_type in lists.items())]

    def rules(self, batch: "pa.RecordBatch", is_error: "pa.Array") -> "Iterator[tuple[str, pa.Array]]":
        """See ``Mode``."""
        import pyarrow.compute as pc

        for name in NUMBERS:
            yield f"neither {name} nor error, or both", pc.equal(pc.is_null(batch[name]), is_error)
        num_tokens = pc.if_else(is_error, -1, batch["num_completion_tokens"])
        scored = pc.fill_null(batch["num_scored_tokens"], -1)
        yield "num_scored_tokens is not num_completion_tokens", pc.equal(scored, num_tokens)
        for name in ("token_ids", "token_logprobs") if self.token_logprobs else ():
            length = pc.fill_null(pc.list_value_length(batch[name]), -1)
            yield f"not one of {name} for each scored token", pc.equal(length, num_tokens)

    def tally(self, batch: "pa.RecordBatch | pa.Table") -> Mapping[str, Mapping[str, int]]:
        """Add up log-likelihoods, tokens and bytes."""
        import pyarrow.compute as pc

        names = {"tokens": "num_scored_tokens", "bytes": "num_scored_bytes"}
        sums = {key: int(pc.sum(batch[name]).as_py() or 0) for key, name in names.items()}
        return {SCORES: {**sums, "micronats": round(-PER_NAT * (pc.sum(batch["logprob"]).as_py() or 0.0))}}

    def describe(self, outcome: Outcome) -> Sequence[tuple[str, str]]:
        """Say how likely all texts together are."""
        sums = outcome.tallies.get(SCORES, {})
        if not (num_tokens := sums.get("tokens", 0)):
            return []
        logprob = -sums["micronats"] / PER_NAT
        per_token, per_byte = _perplexity(logprob, num_tokens), _bits_per_byte(logprob, sums["bytes"])
        return [(SCORES, f"perplexity {per_token:,.4g} over {num_tokens:,} tokens, {per_byte:.4g} bits per byte")]

    def _is_alone(self, prompt: "PromptConfig") -> bool:
        """Whether a text is scored without a prompt."""
        ways = [getattr(prompt, name) for name in PROMPT_OPTIONS]
        return not any(way is not None for way in ways) or prompt.text_column == self.score_column


class BoundScores(BoundMode):
    """Tokenizes texts as they follow their prompts, and adds up what the engine says of their tokens."""

    def __init__(self, setting: Setting, column: str, *, window: int, stride: int, token_logprobs: bool) -> None:
        """Score the texts of ``column``; see ``ScoreText`` for the numbers."""
        self._tokens, self._column, self._token_logprobs = setting.tokens, column, token_logprobs
        self._window, self._stride = window, stride
        self._is_alone = setting.text_column == column
        front, back = _added_ids(setting.tokens) if setting.adds_special_tokens else ([], [])
        self._front, self._num_back = front, len(back)
        inner = setting.tokens.inner
        first = inner.eos_token_id if inner.bos_token_id is None else inner.bos_token_id
        self._first: list[int] = front or ([] if first is None else [int(first)])
        """What comes before a text that has nothing before it."""

    def given(self, request: Request, prompt: Prompt) -> Request:
        """Return the request to score the row's text after its prompt."""
        prompt_ids = list(request.prompt_ids)
        if self._num_back:
            prompt_ids = prompt_ids[: -self._num_back]
        if self._is_alone:
            text, ids = str(prompt.text), prompt_ids
            num_prompt = len(self._front)
        else:
            text = self._text_of(prompt.values[self._column])
            ids = [*self._front, *self._tokens.encode(str(prompt.text) + text)]
            # Where the tokenizer joins the end of the prompt and the beginning of the text, those tokens are scored.
            num_prompt = _num_common(prompt_ids, ids)
        if not num_prompt:
            ids, num_prompt = [*self._first, *ids], len(self._first) or 1
        if len(ids) <= num_prompt:
            raise RowRejected("empty_text", f"column {self._column!r} has no token that could be scored")
        if num_prompt >= self._window:
            raise RowRejected("prompt_too_long", f"{num_prompt} tokens, the limit is {self._window - 1}")
        task = ScoreText(
            text_ids=tuple(ids[num_prompt:]), num_bytes=len(text.encode()), window=self._window, stride=self._stride
        )
        return replace(request, prompt_ids=ids[:num_prompt], task=task)

    def complete(self, answer: Answer, generation: Generation) -> Answer:
        """See ``BoundMode``."""
        task, logprobs = generation.request.task, generation.logprobs
        assert isinstance(task, ScoreText) and logprobs is not None
        logprob, num_tokens = math.fsum(logprobs), len(logprobs)
        numbers = (
            logprob,
            num_tokens,
            task.num_bytes,
            _perplexity(logprob, num_tokens),
            _bits_per_byte(logprob, task.num_bytes),
        )
        values: dict[str, Any] = dict(zip(NUMBERS, numbers, strict=True))
        if self._token_logprobs:
            values |= {"token_ids": list(task.text_ids), "token_logprobs": logprobs}
        return replace(answer, values={**answer.values, **values})

    def length(self, length: AnswerLength) -> AnswerLength:
        """See ``BoundMode``. Texts are read in windows, and need no room but that of a token after the prompt."""
        return AnswerLength(
            num_tokens=1, what="What --score-column needs, in tokens,", limits_prompt=not self._is_alone
        )

    def sections(self) -> Sequence[Section]:
        """Say what is scored."""
        where = "alone" if self._is_alone else "after the prompt"
        windows = f"texts of more than {self._window:,} tokens in windows, {self._stride:,} tokens apart"
        return [Section(title=SCORES, lines=[f"the text of column {self._column!r}, {where}", windows])]

    def _text_of(self, value: Any) -> str:
        where = f"column {self._column!r}"
        if value is None:
            raise RowRejected("null_text", f"{where} is null")
        if not isinstance(value, str):
            raise RowRejected("not_a_string", f"{where} is a {type(value).__name__}")
        if not value:
            raise RowRejected("empty_text", f"{where} is empty")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowRejected(
                "invalid_unicode", f"{where} contains a lone surrogate, which is not a character"
            ) from None
        return value


def _added_ids(tokens: Tokens) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer adds before and after a text."""
    text = "a"
    ids, bare = list(tokens.inner(text)["input_ids"]), tokens.encode(text)
    start = next((idx for idx in range(len(ids)) if ids[idx : idx + len(bare)] == bare), 0)
    return ids[:start], ids[start + len(bare) :]


def _num_common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the length of the common beginning."""
    differs = (idx for idx, (one, other) in enumerate(zip(left, right, strict=False)) if one != other)
    return next(differs, min(len(left), len(right)))


def _perplexity(logprob: float, num_tokens: int) -> float:
    nats = -logprob / num_tokens
    return math.exp(nats) if nats < 700 else math.inf


def _bits_per_byte(logprob: float, num_bytes: int) -> float:
    return -logprob / (num_bytes * math.log(2))
