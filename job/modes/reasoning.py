"""Reasoning: what a model writes between its markers before the answer goes into a column of its own.

The markers are found in the tokenizer and the chat template, or given. They are looked for by token ids, never as text:
an answer may quote them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from job.errors import UsageError, require
from job.modes.mode import Answer, AnswerLength, BoundMode, Mode, Outcome, Setting, Tokens
from job.modes.options import option
from job.records import Generation
from job.tasks import Generate, Score, Task
from job.tasks.reasoning import Reasoning, Thought

if TYPE_CHECKING:
    import pyarrow as pa

    from job.config import RunConfig

REASONING, REASONING_CUT = "reasoning", "reasoning_cut"
"""Columns, and the tallies of their values."""

KNOWN = (
    ("<think>", "</think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
)
"""Markers of public models, as far as both are tokens of their own."""

CHANNELS = ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")
CHANNEL_TOKENS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>")
CHANNEL_CLOSING = "<|end|><|start|>assistant"
"""gpt-oss reasons in one channel and answers in another; this comes between them."""

GAPS = {"</think>": "\n\n"}
"""What public models write between their end marker and the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningMode(Mode):
    """Reasoning in a column of its own."""

    name: ClassVar[str] = "reasoning"
    serves_encoder_decoders: ClassVar[bool] = False
    always_generates: ClassVar[bool] = True

    reasoning: bool | None = option(
        None,
        "Write what the model writes between its reasoning markers to a column of its own; a schema, regex, grammar "
        "or stop text holds only for the answer [default: if the chat template has such markers].",
    )
    reasoning_markers: str | None = option(
        None,
        "What begins and what ends the reasoning, such as '<think>,</think>' [default: found in the tokenizer].",
        metavar="START,END",
    )
    max_reasoning_tokens: int | None = option(
        None,
        "Force the end of the reasoning after N tokens, so that the answer begins (0: no reasoning) [default: no "
        "limit but --max-new-tokens].",
        metavar="N",
    )

    @property
    def is_asked(self) -> bool:
        """See ``Mode``."""
        return bool(self.reasoning) or self.reasoning_markers is not None or self.max_reasoning_tokens is not None

    @property
    def before_answer(self) -> str:
        """See ``Mode``. It is known when the markers are."""
        _, _, end = (self.reasoning_markers or "").partition(",")
        return end + GAPS.get(end, "")

    def check(self, config: "RunConfig") -> None:
        """See ``Mode``."""
        if self.reasoning is False:
            [wrong, *_] = [name for name in self.given() if name != self.name]
            flag = "--" + wrong.replace("_", "-")
            raise UsageError(f"--no-reasoning and {flag} were given together. Leave out one of them.")
        if alone := [mode.flag for mode in config.active_modes if not mode.follows_reasoning]:
            raise UsageError(f"{self.flag} and {alone[0]} were given together. Texts are scored without reasoning.")
        if self.reasoning_markers is not None:
            start, _, end = self.reasoning_markers.partition(",")
            is_pair = bool(start and end and start != end)
            require(
                is_pair, "reasoning-markers", self.reasoning_markers, "two different texts, such as <think>,</think>"
            )
        if self.max_reasoning_tokens is not None:
            most = config.sampling.max_new_tokens
            require(self.max_reasoning_tokens >= 0, "max-reasoning-tokens", self.max_reasoning_tokens, "0 or more")
            if self.max_reasoning_tokens >= most and not _scores(config):
                raise UsageError(
                    f"--max-reasoning-tokens {self.max_reasoning_tokens} leaves no token for the answer: "
                    f"--max-new-tokens is {most} and counts both. Set a larger --max-new-tokens."
                )

    def settled(self, config: "RunConfig", tokens: Tokens, template: str | None, found: Sequence[Mode] | None) -> Self:
        """Find the markers. A run that was started without this mode goes on without it."""
        if found is not None:
            recorded = next((mode for mode in found if isinstance(mode, ReasoningMode)), None)
            if recorded is not None and self.reasoning is not False and self.reasoning_markers is None:
                return replace(self, reasoning=True, reasoning_markers=recorded.reasoning_markers)
            if not self.is_asked:
                return self
        if not self.is_asked and (self.reasoning is False or template is None or _scores(config)):
            return self
        markers = self.reasoning_markers or _markers_of(tokens, template, is_asked=self.is_asked)
        if markers is None and self.is_asked:
            raise UsageError(
                f"{self.flag} needs the markers of the model's reasoning, and its tokenizer has none of those that are "
                f"known ({', '.join(start for start, _ in (*KNOWN, CHANNELS))}). Set --reasoning-markers START,END, or "
                "leave it out."
            )
        return self if markers is None else replace(self, reasoning=True, reasoning_markers=markers)

    def bind(self, setting: Setting) -> BoundMode:
        """See ``Mode``."""
        assert self.reasoning_markers is not None, "settled"
        start, _, end = self.reasoning_markers.partition(",")
        start_ids, end_ids = _marker_ids(setting.tokens, start), _marker_ids(setting.tokens, end)
        is_channels = (start, end) == CHANNELS
        added = setting.tokens.inner.added_tokens_decoder.items()
        reasoning = Reasoning(
            start_ids=start_ids,
            end_ids=end_ids,
            closing_ids=(*(setting.tokens.encode(CHANNEL_CLOSING) if is_channels else ()), *end_ids),
            border_ids=frozenset(int(idx) for idx, token in added if str(token.content).strip()),
            max_tokens=self.max_reasoning_tokens,
        )
        note = (
            f"what the model writes from {start} to {end} goes to the column reasoning; --no-reasoning leaves it in "
            "the completion"
        )
        not_begun = (
            "prompts end with the beginning of the answer, so the model does not reason before it; with "
            f"{start} at the beginning of that, it would"
        )
        return BoundReasoning(setting.tokens, reasoning, note, not_begun if setting.begins_answer else None)

    def measured(self) -> "list[pa.Field]":
        """See ``Mode``."""
        import pyarrow as pa

        columns = [pa.field(REASONING, pa.string()), pa.field("num_reasoning_tokens", pa.int32())]
        return columns if self.max_reasoning_tokens is None else [*columns, pa.field(REASONING_CUT, pa.bool_())]

    def rules(self, batch: "pa.RecordBatch", is_error: "pa.Array") -> "Iterator[tuple[str, pa.Array]]":
        """See ``Mode``."""
        import pyarrow.compute as pc

        number = batch["num_reasoning_tokens"]
        yield "neither num_reasoning_tokens nor error, or both", pc.equal(pc.is_null(number), is_error)
        counted = pc.fill_null(number, 0)
        yield "more reasoning than completion tokens", pc.less_equal(counted, batch["num_completion_tokens"])
        yield "no reasoning, but tokens of it", pc.or_(pc.is_valid(batch[REASONING]), pc.equal(counted, 0))
        if self.max_reasoning_tokens is not None:
            within = pc.less_equal(counted, self.max_reasoning_tokens)
            yield "more reasoning tokens than --max-reasoning-tokens", within
            yield "neither reasoning_cut nor error, or both", pc.equal(pc.is_null(batch[REASONING_CUT]), is_error)

    def tally(self, batch: "pa.RecordBatch | pa.Table") -> Mapping[str, Mapping[str, int]]:
        """Count the completions with and without reasoning, and those whose reasoning was cut."""
        import pyarrow.compute as pc

        from job.arrow.values import count_values

        is_row = pc.is_valid(batch["num_reasoning_tokens"])
        counted = {REASONING: count_values(pc.filter(pc.is_valid(batch[REASONING]), is_row))}
        if self.max_reasoning_tokens is not None:
            counted[REASONING_CUT] = count_values(batch[REASONING_CUT])
        return {
            name: {str(value).lower(): number for value, number in values.items() if value is not None}
            for name, values in counted.items()
        }

    def describe(self, outcome: Outcome) -> Sequence[tuple[str, str]]:
        """Say how many completions have reasoning, and how much of it was cut."""
        counted = outcome.tallies.get(REASONING, {})
        if not (total := sum(counted.values())):
            return []
        line = f"{counted.get('true', 0):,} of {total:,} completions"
        if self.max_reasoning_tokens is not None:
            num_cut = outcome.tallies.get(REASONING_CUT, {}).get("true", 0)
            line += f", {num_cut:,} cut at --max-reasoning-tokens {self.max_reasoning_tokens}"
        return [(REASONING, line)]


class BoundReasoning(BoundMode):
    """Lets completions reason before they answer, and splits them."""

    def __init__(self, tokens: Tokens, reasoning: Reasoning, note: str, not_begun: str | None = None) -> None:
        """Split what ``tokens`` decodes.

        Args:
            not_begun: a note on prompts that do not end within reasoning; None: completions may begin it.
        """
        self._tokens, self._reasoning, self.notes, self._not_begun = tokens, reasoning, (note,), not_begun

    def notes_on(self, first_prompt: Callable[[], str | None]) -> tuple[str, ...]:
        """See ``BoundMode``."""
        prompt = None if self._not_begun is None else first_prompt()
        if prompt is None or self._reasoning.is_open_after(self._tokens.encode(prompt)):
            return self.notes
        return (*self.notes, str(self._not_begun))

    def refine(self, task: Task, values: Mapping[str, Any]) -> Task:
        """See ``BoundMode``."""
        assert isinstance(task, Generate), "this mode is the first"
        return replace(task, reasoning=self._reasoning)

    def length(self, length: AnswerLength) -> AnswerLength:
        """See ``BoundMode``."""
        budget, num_markers = self._reasoning.max_tokens, self._reasoning.num_marker_tokens
        if budget is None:
            return replace(length, num_reasoning=length.num_tokens + num_markers, what_reasoning=length.what)
        return replace(length, num_reasoning=budget + num_markers, what_reasoning="--max-reasoning-tokens")

    def complete(self, answer: Answer, generation: Generation) -> Answer:
        """Split the completion; white space beside the markers is left out. An answer that never began is empty."""
        asked, ids = generation.request.task, list(answer.token_ids)
        task = asked.reason if isinstance(asked, Score) else asked
        assert isinstance(task, Generate) and task.reasoning is not None
        is_constrained = task.grammar is not None or task.ends_at_answer
        thought = Thought(task.reasoning, generation.request.prompt_ids, is_constrained=is_constrained)
        for token in generation.token_ids:
            thought.accept(token)
        values: dict[str, Any] = {REASONING: None, "num_reasoning_tokens": thought.num_reasoning_tokens}
        if self._reasoning.max_tokens is not None:
            values[REASONING_CUT] = thought.is_cut
        if thought.answer_begin != 0:
            ids = [] if thought.answer_begin is None else ids[thought.answer_begin :]
            reasoning_ids = list(generation.token_ids[thought.begin : thought.end]) if thought.begin is not None else []
            reasoning, text = self._tokens.decode([reasoning_ids, ids])
            values[REASONING] = None if thought.begin is None else reasoning.strip()
            answer = replace(answer, token_ids=ids, completion=text.lstrip())
        if thought.is_cut and self._reasoning.max_tokens is None:  # it had as many tokens as a completion may have
            answer = replace(answer, finish_reason="length")
        return replace(answer, values={**answer.values, **values})


def _scores(config: "RunConfig") -> bool:
    """Whether the answer is not generated."""
    return any(mode.answers and mode.decides_end for mode in config.active_modes)


def _markers_of(tokens: Tokens, template: str | None, *, is_asked: bool) -> str | None:
    """Return the markers of a model, those in its chat template first; None if there are none.

    Args:
        is_asked: whether those that are not in the template will do.
    """
    added = {str(token.content) for token in tokens.inner.added_tokens_decoder.values()}
    pairs = [pair for pair in KNOWN if added.issuperset(pair)]
    if added.issuperset(CHANNEL_TOKENS):
        pairs.append(CHANNELS)
    used = [pair for pair in pairs if any(marker in (template or "") for marker in pair)]
    chosen = next(iter(used or (pairs if is_asked else ())), None)
    return None if chosen is None else ",".join(chosen)


def _marker_ids(tokens: Tokens, marker: str) -> tuple[int, ...]:
    """Return the ids of a marker, which are the same at a line of its own as anywhere.

    Raises:
        UsageError: they are not: the tokenizer joins the marker with the text around it.
    """
    before, ids, between = tokens.encode("\n"), tokens.encode(f"\n{marker}"), tokens.encode(f"\n{marker}\n")
    num_before = len(before)
    found = tuple(ids[num_before:])
    if not found or ids[:num_before] != before or between[: len(ids)] != ids or len(between) == len(ids):
        raise UsageError(
            f"--reasoning-markers: {marker!r} is not one sequence of tokens: this tokenizer joins it with the text "
            "around it. Use a marker that is a token of its own."
        )
    return found
