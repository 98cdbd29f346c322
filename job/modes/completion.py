"""Generated text, up to a stop string: the answer of a run that asks for nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from job.modes.mode import Answer, BoundMode, Mode, Outcome, Setting
from job.modes.options import option
from job.modes.stop_texts import StopTexts
from job.records import Generation
from job.tasks import Generate, Task

if TYPE_CHECKING:
    import pyarrow as pa


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
        stops = StopTexts.of(setting, setting.sampling.stop) if setting.sampling.stop else None
        return BoundCompletion(stops, logprobs=self.logprobs)

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
        most = outcome.max_new_tokens
        limit = "their own max_new_tokens" if most is None else f"--max-new-tokens {most}"
        num_loops = outcome.finish_reasons.get("repetition", 0)
        loops = f", {num_loops:,} ended in a loop" if num_loops else ""
        return [("cut", f"{num_cut:,} of {num_known:,} completions reached {limit}{loops}")]

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
    """Ends completions at stop strings: those of the run, or those that a later mode puts into a row's task."""

    def __init__(self, stops: StopTexts | None, *, logprobs: bool) -> None:
        """End them at ``stops``, if there are any."""
        self._stops, self._logprobs = stops, logprobs

    def refine(self, task: Task, values: Mapping[str, Any]) -> Task:
        """See ``BoundMode``."""
        assert isinstance(task, Generate), "the first task of a run is to generate"
        return replace(task, params=replace(task.params, logprobs=self._logprobs), ends_text=self._stops)

    def complete(self, answer: Answer, generation: Generation) -> Answer:
        """Cut the text before the first stop string that counts."""
        task, text, has_ended = generation.request.task, str(answer.completion), False
        if isinstance(task, Generate) and isinstance(task.ends_text, StopTexts):
            num_before = len(generation.text_ids) - len(answer.token_ids)
            num_skipped = max(0, task.params.min_new_tokens - num_before)
            text, has_ended = task.ends_text.cut(text, answer.token_ids, num_skipped)
        values = {}
        if generation.logprobs is not None:
            values = {
                "token_ids": list(generation.token_ids),
                "token_logprobs": generation.logprobs,
                "cumulative_logprob": sum(generation.logprobs),
            }
        reason = "stop" if has_ended else answer.finish_reason
        return replace(answer, completion=text, finish_reason=reason, values={**answer.values, **values})
