"""Classes: the labels of a model that was trained to classify, or the score of a reward model."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from job.errors import UsageError, shorten
from job.modes.choices import LABELS, MAX_SHOWN, MAX_TALLIED
from job.modes.headed import (
    SAMPLING,
    check_alone,
    cut_columns,
    cut_tally,
    cut_values,
    cuts_texts,
    describe_cut,
    prompts_of_texts,
)
from job.modes.mode import Answer, AnswerLength, BoundMode, LabelColumn, Mode, Outcome, Section, Setting, Tokens
from job.modes.options import option
from job.records import Generation, Prompt, Request, RowRejected
from job.tasks import Pool, Task
from job.tasks.head import CLASSIFY, MANY_LABELS, ONE_LABEL, SCORE, Head

if TYPE_CHECKING:
    import pyarrow as pa

    from job.config import PromptConfig, RunConfig

SCORES, PER_UNIT = "class_scores", 1_000_000
"""The name of the tally of scores, in millionths: tallies are integers, and those below 0 are counted apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyMode(Mode):
    """The labels of a classifier, or the score of a reward model."""

    name: ClassVar[str] = CLASSIFY
    answers: ClassVar[bool] = True
    decides_end: ClassVar[bool] = True
    follows_reasoning: ClassVar[bool] = False
    ignores: ClassVar[frozenset[str]] = SAMPLING
    task_category: ClassVar[str | None] = "text-classification"
    content: ClassVar[str | None] = "Classes"
    empty_preview: ClassVar[Mapping[str, Any]] = {"classes": None}

    text_pair_column: str | None = option(
        None,
        "With --task classify: a column with a second text, such as the document for a query. The model, a "
        "cross-encoder, reads both at once.",
    )
    longest_pair: int | None = None
    """The most tokens of both texts together. From the model."""
    cuts: bool = False
    """Whether texts that are too long are cut. From ``--on-long-prompt``."""
    problem: str = ""
    """``SCORE``, ``ONE_LABEL`` or ``MANY_LABELS``. From the model."""
    labels: tuple[str, ...] = ()
    """The names of the classes. From the model."""
    reads_ahead: bool = False
    """Whether it pools in its own way, and not by the last token. From the model."""

    @property
    def flag(self) -> str:
        """See ``Mode``."""
        return f"--task {CLASSIFY}"

    def check(self, config: "RunConfig") -> None:
        """See ``Mode``."""
        check_alone(self, config)
        odd = {"--chat": config.prompt.chat or config.prompt.messages_column is not None}
        odd["--on-long-prompt truncate-left"] = config.prompt.on_long_prompt == "truncate-left"
        odd["--special-tokens-in-text escape"] = config.prompt.special_tokens_in_text == "escape"
        if self.text_pair_column is not None and (
            flag := next((flag for flag, is_given in odd.items() if is_given), "")
        ):
            raise UsageError(
                f"--text-pair-column and {flag} were given together. Leave out {flag}: a pair is read as two texts, "
                "from their beginnings."
            )

    def prompts(self, config: "PromptConfig") -> "PromptConfig":
        """See ``Mode``."""
        return prompts_of_texts(config)

    def headed(self, head: Head) -> Self:
        """Take the labels from the model. (A run of another task asks nothing.)"""
        if not head.labels:
            return self
        pools_itself = head.pooling is None
        if self.text_pair_column is not None and not pools_itself:
            raise UsageError(
                "--text-pair-column: the model is a decoder, which reads one text. Leave it out, and write both texts "
                "into --prompt-template."
            )
        return replace(self, problem=head.problem, labels=head.labels, reads_ahead=pools_itself)

    def settled(self, config: "RunConfig", tokens: Tokens, template: str | None, found: Sequence[Mode] | None) -> Self:
        """Take the length of pairs from the model."""
        if not self.labels:
            return self
        lengths = (config.model.max_model_len, config.prompt.max_prompt_tokens)
        longest = min((length for length in lengths if length is not None), default=None)
        is_pair = self.text_pair_column is not None
        return replace(self, cuts=cuts_texts(config), longest_pair=longest if is_pair else None)

    def columns(self) -> tuple[str, ...]:
        """See ``Mode``."""
        return () if self.text_pair_column is None else (self.text_pair_column,)

    def bind(self, setting: Setting) -> BoundMode:
        """See ``Mode``."""
        return BoundClassify(self, setting)

    def measured(self) -> "list[pa.Field]":
        """See ``Mode``."""
        import pyarrow as pa

        cut = cut_columns(cuts=self.cuts)
        if self.problem == SCORE:
            return [pa.field("score", pa.float32()), *cut]
        probs = pa.field("label_probs", pa.list_(pa.float32(), len(self.labels)))
        if self.problem == MANY_LABELS:
            return [pa.field("labels", pa.list_(pa.string())), probs, *cut]
        return [pa.field("label", pa.string()), pa.field("label_prob", pa.float32()), probs, *cut]

    def rules(self, batch: "pa.RecordBatch", is_error: "pa.Array") -> "Iterator[tuple[str, pa.Array]]":
        """See ``Mode``."""
        import pyarrow as pa
        import pyarrow.compute as pc

        for column in self.measured():
            yield f"neither {column.name} nor error, or both", pc.equal(pc.is_null(batch[column.name]), is_error)
        if self.problem == ONE_LABEL:
            is_known = pc.is_in(batch["label"], pa.array([*self.labels, None], pa.string()))
            yield "a label that the model does not have", is_known

    def tally(self, batch: "pa.RecordBatch | pa.Table") -> Mapping[str, Mapping[str, int]]:
        """Count the labels, if there are few enough to be of use, or add up the scores; and what was cut."""
        return {**self._tally(batch), **cut_tally(batch, cuts=self.cuts)}

    def _tally(self, batch: "pa.RecordBatch | pa.Table") -> Mapping[str, Mapping[str, int]]:
        import pyarrow.compute as pc

        from job.arrow.values import count_values

        if self.problem == SCORE:
            scores = [score for score in batch["score"].to_pylist() if score is not None]
            parts = {"rows": len(scores), "above": 0, "below": 0}
            for score in scores:
                parts["below" if score < 0 else "above"] += round(PER_UNIT * abs(score))
            return {SCORES: parts}
        if len(self.labels) > MAX_TALLIED:
            return {}
        if self.problem == MANY_LABELS:
            return {LABELS: count_values(pc.list_flatten(batch["labels"]))}
        return {LABELS: count_values(batch["label"])}

    def describe(self, outcome: Outcome) -> Sequence[tuple[str, str]]:
        """Say how often each label was given, the most frequent first, or the mean score; and what was cut."""
        return [*self._results(outcome), *describe_cut(outcome)]

    def _results(self, outcome: Outcome) -> Sequence[tuple[str, str]]:
        sums = outcome.tallies.get(SCORES, {})
        if num_rows := sums.get("rows", 0):
            mean = (sums.get("above", 0) - sums.get("below", 0)) / PER_UNIT / num_rows
            return [("scores", f"mean {mean:,.4g}")]
        labels = sorted(outcome.tallies.get(LABELS, {}).items(), key=lambda item: -item[1])
        shown = [f"{shorten(text)} {number:,}" for text, number in labels[:MAX_SHOWN]]
        more = [f"{len(labels) - MAX_SHOWN:,} others"] if len(labels) > MAX_SHOWN else []
        return [("labels", ", ".join([*shown, *more]))] if labels else []

    def label_columns(self) -> Sequence[LabelColumn]:
        """See ``Mode``. With several labels for a row, or a score, there is none."""
        if self.problem != ONE_LABEL:
            return ()
        return [LabelColumn(name="label", classes=self.labels, probs="label_probs", confidence="label_prob", rank=2)]

    def card_values(self) -> Mapping[str, Any]:
        """See ``Mode``."""
        pair = {} if self.text_pair_column is None else {"text_pair_column": self.text_pair_column}
        return {**pair, **({"labels": self.labels} if self.problem != SCORE else {})}

    def part_metadata(self) -> dict[bytes, bytes]:
        """See ``Mode``. Probabilities are in the order of these labels."""
        return {b"job.labels": json.dumps(self.labels).encode()}


class BoundClassify(BoundMode):
    """Asks for the logits of the classes, and names them."""

    def __init__(self, mode: ClassifyMode, setting: Setting) -> None:
        """Serve a mode that knows the model."""
        assert mode.labels, "headed"
        self._mode, self._inner = mode, setting.tokens.inner
        self._task = Pool(size=len(mode.labels), pooling="cls" if mode.reads_ahead else "last")

    def refine(self, task: Task, values: Mapping[str, Any]) -> Task:
        """See ``BoundMode``."""
        return self._task

    def given(self, request: Request, prompt: Prompt) -> Request:
        """Put the second text of a pair behind the first, as the tokenizer joins them."""
        column = self._mode.text_pair_column
        if column is None:
            return request
        second = prompt.values[column]
        if second is None:
            raise RowRejected("null_text", f"column {column!r} is null")
        if not isinstance(second, str):
            raise RowRejected("not_a_string", f"column {column!r} is a {type(second).__name__}")
        try:
            second.encode()
        except UnicodeEncodeError:
            detail = f"column {column!r} contains a lone surrogate, which is not a character"
            raise RowRejected("invalid_unicode", detail) from None
        joined = self._inner(str(prompt.text), second, return_token_type_ids=True, verbose=False)
        num_tokens, longest = len(joined["input_ids"]), self._mode.longest_pair
        if longest is not None and num_tokens > longest:
            if not self._mode.cuts:
                raise RowRejected("prompt_too_long", f"{num_tokens} tokens in both texts, the limit is {longest}")
            joined = self._cut(str(prompt.text), second, longest)
        ids, types = list(joined["input_ids"]), list(joined["token_type_ids"])
        second_from = types.index(1) if 1 in types else None
        return replace(
            request,
            prompt_ids=ids,
            task=replace(self._task, second_from=second_from),
            num_cut_tokens=request.num_cut_tokens + num_tokens - len(ids),
        )

    def _cut(self, first: str, second: str, longest: int) -> Any:
        """Join two texts, of which the longer one loses its last token until both fit, as cross-encoders do it."""
        options = {"truncation": "longest_first", "max_length": longest}
        try:
            return self._inner(first, second, return_token_type_ids=True, verbose=False, **options)
        finally:
            if (backend := getattr(self._inner, "backend_tokenizer", None)) is not None:
                backend.no_truncation()  # it would be kept for all that comes after

    def complete(self, answer: Answer, generation: Generation) -> Answer:
        """Turn logits into probabilities. The completion is what a person would read: the label, or the score."""
        import numpy as np

        mode, logits = self._mode, generation.vector
        assert logits is not None and logits.shape == (self._task.size,), "the engine pools"
        if mode.problem == SCORE:
            score = float(logits[0])
            scored = {**answer.values, "score": score, **cut_values(generation.request, cuts=mode.cuts)}
            return replace(answer, completion=f"{score:.6g}", values=scored)
        logits = logits.astype(np.float64)
        values: dict[str, Any]
        if mode.problem == MANY_LABELS:
            probs = np.exp(-np.logaddexp(0, -logits))
            labels = [label for label, prob in zip(mode.labels, probs, strict=True) if prob > 0.5]
            completion, values = ", ".join(labels), {"labels": labels}
        else:
            probs = np.exp(logits - np.logaddexp.reduce(logits))
            idx = int(logits.argmax())
            completion = mode.labels[idx]
            values = {"label": completion, "label_prob": float(probs[idx])}
        values["label_probs"] = probs.astype(np.float32)
        values |= cut_values(generation.request, cuts=mode.cuts)
        return replace(answer, completion=completion, values={**answer.values, **values})

    def length(self, length: AnswerLength) -> AnswerLength:
        """See ``BoundMode``. Nothing comes after a text."""
        return AnswerLength(num_tokens=0, what="What --task classify needs, in tokens,")

    def sections(self) -> list[Section]:
        """Say what the classes are."""
        mode = self._mode
        names = ", ".join(shorten(label) for label in mode.labels[:MAX_SHOWN])
        more = f" and {len(mode.labels) - MAX_SHOWN:,} others" if len(mode.labels) > MAX_SHOWN else ""
        lines = {
            SCORE: "one score, the raw logit",
            ONE_LABEL: f"one of {len(mode.labels):,} labels: {names}{more}",
            MANY_LABELS: f"any of {len(mode.labels):,} labels with more than 0.5: {names}{more}",
        }
        values = {"problem": mode.problem, "labels": list(mode.labels)}
        pair = [] if mode.text_pair_column is None else [f"of pairs: each prompt with column {mode.text_pair_column!r}"]
        return [Section(title="classes", lines=[lines[mode.problem], *pair], values={"classes": values})]
