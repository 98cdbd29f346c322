"""Generated text, up to a stop string: the answer of a run that asks for nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from job.errors import UsageError, require
from job.modes.mode import Answer, BoundMode, Mode, Outcome, Setting
from job.modes.options import option
from job.modes.stop_texts import StopTexts
from job.records import Generation
from job.tasks import Generate, Task

if TYPE_CHECKING:
    import pyarrow as pa

    from job.config import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionMode(Mode):
    """Generated text."""

    name: ClassVar[str] = "completion"
    answers: ClassVar[bool] = True
    serves_beams: ClassVar[bool] = False  # scores are those after penalties, and nothing keeps the tokens' own
    task_category: ClassVar[str | None] = "text-generation"

    logprobs: bool = option(
        False, "Write the generated token ids and their log probabilities (the model's own, before temperature)."
    )
    top_logprobs: int = option(
        0, "The same, and of the K most likely tokens at each place, for distillation (0: none).", metavar="K"
    )

    def bind(self, setting: Setting) -> BoundMode:
        """See ``Mode``."""
        stops = StopTexts.of(setting, setting.sampling.stop) if setting.sampling.stop else None
        if self.top_logprobs and self.top_logprobs > (vocab_size := len(setting.tokens.inner)):
            raise UsageError(
                f"--top-logprobs {self.top_logprobs} is more than the {vocab_size:,} tokens of the model's vocabulary."
            )
        return BoundCompletion(stops, logprobs=self.logprobs, top_logprobs=self.top_logprobs)

    @property
    def _scores_tokens(self) -> bool:
        return self.logprobs or self.top_logprobs > 0

    def check(self, config: "RunConfig") -> None:
        """See ``Mode``."""
        require(self.top_logprobs >= 0, "top-logprobs", self.top_logprobs, "0 (none) or more")

    def measured(self) -> "list[pa.Field]":
        """See ``Mode``."""
        import pyarrow as pa

        if not self._scores_tokens:
            return []
        columns = [
            pa.field("token_ids", pa.list_(pa.int32())),
            pa.field("token_logprobs", pa.list_(pa.float32())),
            pa.field("cumulative_logprob", pa.float64()),
        ]
        # float16 keeps three digits. Logits of models in 16 bits have no more, and half of the bytes are saved.
        types = {"top_token_ids": pa.int32(), "top_logprobs": pa.float16()} if self.top_logprobs else {}
        tops = {name: pa.list_(pa.list_(data_type, self.top_logprobs)) for name, data_type in types.items()}
        return [*columns, *(pa.field(name, data_type) for name, data_type in tops.items())]

    def describe(self, outcome: Outcome) -> Sequence[tuple[str, str]]:
        """Say how many completions were cut."""
        num_cut = outcome.finish_reasons.get("length", 0)
        num_known = sum(outcome.finish_reasons.values())  # parts of older versions do not say
        if not num_known:
            return []
        limit = f"--max-new-tokens {outcome.max_new_tokens}"
        if outcome.has_own_limits:
            limit += " or a limit of their own"
        num_loops = outcome.finish_reasons.get("repetition", 0)
        loops = f", {num_loops:,} ended in a loop" if num_loops else ""
        return [("cut", f"{num_cut:,} of {num_known:,} completions reached {limit}{loops}")]

    def rules(self, batch: "pa.RecordBatch", is_error: "pa.Array") -> "Iterator[tuple[str, pa.Array]]":
        """See ``Mode``."""
        import pyarrow.compute as pc

        if not self._scores_tokens:
            return
        tops = ("top_token_ids", "top_logprobs") if self.top_logprobs else ()
        for name in ("token_ids", "token_logprobs", *tops):
            length = pc.fill_null(pc.list_value_length(batch[name]), -1)
            expected = pc.if_else(is_error, -1, batch["num_completion_tokens"])
            yield f"not one of {name} for each completion token", pc.equal(length, expected)
        yield "no cumulative_logprob", pc.equal(pc.is_null(batch["cumulative_logprob"]), is_error)


class BoundCompletion(BoundMode):
    """Ends completions at stop strings: those of the run, or those that a later mode puts into a row's task."""

    def __init__(self, stops: StopTexts | None, *, logprobs: bool, top_logprobs: int = 0) -> None:
        """End them at ``stops``, if there are any."""
        self._stops, self._logprobs, self._top_logprobs = stops, logprobs, top_logprobs

    def refine(self, task: Task, values: Mapping[str, Any]) -> Task:
        """See ``BoundMode``."""
        assert isinstance(task, Generate), "the first task of a run is to generate"
        params = replace(task.params, logprobs=self._logprobs, num_top_logprobs=self._top_logprobs)
        return replace(task, params=params, ends_text=self._stops)

    def complete(self, answer: Answer, generation: Generation) -> Answer:
        """Cut the text before the first stop string that counts."""
        task, text, has_ended = generation.request.task, str(answer.completion), False
        if isinstance(task, Generate) and isinstance(task.ends_text, StopTexts):
            num_before = len(generation.text_ids) - len(answer.token_ids)
            num_skipped = max(0, task.params.min_new_tokens - num_before)
            text, has_ended = task.ends_text.cut(text, answer.token_ids, num_skipped)
        values: dict[str, Any] = {}
        if generation.logprobs is not None:
            values = {
                "token_ids": list(generation.token_ids),
                "token_logprobs": generation.logprobs,
                "cumulative_logprob": sum(generation.logprobs),
            }
        if self._top_logprobs:
            values |= self._tops(generation)
        reason = "stop" if has_ended else answer.finish_reason
        return replace(answer, completion=text, finish_reason=reason, values={**answer.values, **values})

    def _tops(self, generation: Generation) -> dict[str, Any]:
        """Return the values of the columns, [T, K]. Those that a row with a smaller K lacks are masked: null."""
        import numpy as np

        number, num_tokens = self._top_logprobs, len(generation.token_ids)
        found = {} if generation.top_ids is None else {"top_token_ids": generation.top_ids}
        if found:
            found["top_logprobs"] = generation.top_logprobs.astype("float16")
        if found and found["top_logprobs"].shape[1] == number:
            return found
        tops: dict[str, Any] = {}
        for name, dtype in (("top_token_ids", np.int32), ("top_logprobs", np.float16)):
            tops[name] = np.ma.array(np.zeros((num_tokens, number), dtype), mask=True)
            if name in found:
                tops[name][:, : found[name].shape[1]] = found[name]
        return tops
