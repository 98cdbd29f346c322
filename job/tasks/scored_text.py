"""A text whose likelihood is asked for, and the windows in which a model reads it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreText:
    """Return the log probability of each token of a text after the prompt. Nothing is generated.

    The answer has the text as its tokens, as if the model had generated it.
    """

    served_by: ClassVar[Mapping[str, str]] = {
        "paged": "job.engine.paged.tasks.text_scoring:TextScoring",
        "static": "job.engine.static.text_scoring:TextScoring",
        "fake": "job.engine.fake:score_text",
    }
    """See ``Generate``."""

    text_ids: tuple[int, ...]
    """At least one."""
    num_bytes: int
    """The size of the text in UTF-8. Engines do not use it."""
    window: int
    """The most tokens that the model may read at once."""
    stride: int
    """How many tokens every window but the first scores; at most ``window``. The others in it are context."""

    @property
    def is_deterministic(self) -> bool:
        """Whether equal prompts get equal answers."""
        return True


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens that are read at once: the last ``num_scored`` of them each come right before a token that is scored."""

    token_ids: Sequence[int]
    begin: int
    """The index of the first token that is scored, in the text."""
    num_scored: int

    @property
    def end(self) -> int:
        """The index after the last token that is scored, in the text."""
        return self.begin + self.num_scored

    @property
    def first_wanted(self) -> int:
        """The index of the first token whose logits are wanted, in the window."""
        return len(self.token_ids) - self.num_scored


def windows_of(prompt_ids: Sequence[int], task: ScoreText) -> Iterator[Window]:
    """Yield the windows of a text, which score each of its tokens once.

    All but the first are full, so that tokens have as much context as there is room for. With a stride as large as the
    window, these are the windows of lm-evaluation-harness' ``loglikelihood_rolling``.

    Args:
        prompt_ids: at least one, and fewer than ``task.window``.

    >>> task = ScoreText(text_ids=(1, 2, 3, 4, 5, 6, 7), num_bytes=7, window=4, stride=2)
    >>> for window in windows_of([0], task):
    ...     print(window.token_ids, window.begin, window.num_scored)
    [0, 1, 2, 3] 0 4
    [2, 3, 4, 5] 4 2
    [3, 4, 5, 6] 6 1
    """
    token_ids, num_prompt = [*prompt_ids, *task.text_ids], len(prompt_ids)
    assert 0 < num_prompt < task.window and task.text_ids
    begin, end = num_prompt, min(len(token_ids), task.window + 1)
    while True:
        yield Window(token_ids[max(0, end - 1 - task.window) : end - 1], begin - num_prompt, end - begin)
        if end == len(token_ids):
            return
        begin, end = end, min(len(token_ids), end + task.stride)
