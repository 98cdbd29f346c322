"""Generated text, up to a stop string: the answer of a run that asks for nothing else."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from job.modes.mode import Answer, BoundMode, Mode, Outcome, Setting, Tokens
from job.modes.options import option
from job.records import Generation
from job.tasks import Generate, Task

if TYPE_CHECKING:
    import pyarrow as pa

SPARE_TAIL_TOKENS = 4
"""Tokens beyond those of a stop string: for special tokens among them, and because decoding may change the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionMode(Mode):
    """Generated text."""

    name: ClassVar[str] = "completion"
    answers: ClassVar[bool] = True
    task_category: ClassVar[str | None] = "text-generation"

    logprobs: bool = option(
        False, "Write the generated token ids and their log probabilities (the model's own, before temperature)."
    )

    def bind(self, setting: Setting) -> BoundMode:
        """See ``Mode``."""
        special = setting.tokens.special_tokens if setting.stops_at_special_tokens else ()
        return BoundCompletion(setting.tokens, setting.sampling.stop, special, logprobs=self.logprobs)

    def measured(self) -> "list[pa.Field]":
        """See ``Mode``."""
        import pyarrow as pa

        if not self.logprobs:
            return []
        return [
            pa.field("token_ids", pa.list_(pa.int32())),
            pa.field("token_logprobs", pa.list_(pa.float32())),
            pa.field("cumulative_logprob", pa.float64()),
        ]

    def describe(self, outcome: Outcome) -> Sequence[tuple[str, str]]:
        """Say how many completions were cut."""
        num_cut = outcome.finish_reasons.get("length", 0)
        num_known = sum(outcome.finish_reasons.values())  # parts of older versions do not say
        if not num_known:
            return []
        return [("cut", f"{num_cut:,} of {num_known:,} completions reached --max-new-tokens {outcome.max_new_tokens}")]

    def rules(self, batch: "pa.RecordBatch", is_error: "pa.Array") -> "Iterator[tuple[str, pa.Array]]":
        """See ``Mode``."""
        import pyarrow.compute as pc

        if not self.logprobs:
            return
        for name in ("token_ids", "token_logprobs"):
            length = pc.fill_null(pc.list_value_length(batch[name]), -1)
            expected = pc.if_else(is_error, -1, batch["num_completion_tokens"])
            yield f"not one of {name} for each completion token", pc.equal(length, expected)
        yield "no cumulative_logprob", pc.equal(pc.is_null(batch["cumulative_logprob"]), is_error)


class BoundCompletion(BoundMode):
    """Ends completions at stop strings."""

    def __init__(
        self, tokens: Tokens, stop: Sequence[str], special_tokens: Collection[str] = (), *, logprobs: bool
    ) -> None:
        """Look for the strings ``stop`` in what ``tokens`` decodes; some may contain some of ``special_tokens``."""
        self._tokens, self._stop, self._logprobs = tokens, tuple(stop), logprobs
        self._reads_special = any(token in text for text in self._stop for token in special_tokens)
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)))
        # The last token completes the stop string, and every token but a special one is at least one byte of text.
        self._num_tail_tokens = max((len(text.encode()) for text in self._stop), default=0) + SPARE_TAIL_TOKENS

    def refine(self, task: Task, values: Mapping[str, Any]) -> Task:
        """See ``BoundMode``."""
        assert isinstance(task, Generate), "the first task of a run is to generate"
        params = replace(task.params, logprobs=self._logprobs)
        return replace(task, params=params, ends_text=self.ends_text if self._stop else None)

    def ends_text(self, completions: Sequence[Sequence[int]]) -> list[bool]:
        """Return, for the ids of each completion, whether the last token completed a stop string."""
        ends = [list(ids[-self._num_tail_tokens :]) for ids in completions]
        tails = self._tokens.decode(ends, special_tokens=self._reads_special)
        return [any(text in tail for text in self._stop) for tail in tails]

    def complete(self, answer: Answer, generation: Generation) -> Answer:
        """Cut the text before the first stop string."""
        text = str(answer.completion)
        if self._reads_special:  # they are not part of the completion before the stop string, either
            [text] = self._tokens.decode([list(answer.token_ids)], special_tokens=True)
        end = min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=None)
        text = self._special.sub("", text[:end]) if self._reads_special else text[:end]
        values = {}
        if generation.logprobs is not None:
            values = {
                "token_ids": list(generation.token_ids),
                "token_logprobs": generation.logprobs,
                "cumulative_logprob": sum(generation.logprobs),
            }
        reason = answer.finish_reason if end is None else "stop"
        return replace(answer, completion=text, finish_reason=reason, values={**answer.values, **values})
