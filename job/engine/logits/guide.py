"""What a row may say next: its reasoning comes first, and the grammar of its answer holds from there on.

Exists on the leader only. Both engines keep one guide for each row that needs one; it stays valid when a step fails.
"""

from collections.abc import Collection, Sequence

from job.engine.logits.constraint import Allowed, Constraints, Matcher
from job.tasks import Generate
from job.tasks.reasoning import Thought


def guides(task: Generate) -> bool:
    """Whether the rows of a task need a guide."""
    return task.grammar is not None or task.reasoning is not None


class Guide:
    """The position of one completion in its reasoning and in the grammar of its answer."""

    def __init__(
        self, task: Generate, prompt_ids: Sequence[int], eos_token_ids: Collection[int], constraints: Constraints
    ) -> None:
        """Begin after a prompt.

        Args:
            eos_token_ids: tokens that end the completion.
        """
        self._grammar, self._eos_token_ids, self._constraints = task.grammar, eos_token_ids, constraints
        self._thought: Thought | None = None
        self._start_id: int | None = None
        if task.reasoning is not None:
            is_constrained = task.grammar is not None or task.ends_at_answer
            self._thought = Thought(task.reasoning, prompt_ids, is_constrained=is_constrained)
            self._start_id = task.reasoning.start_ids[0]
        self._matcher: Matcher | None = None
        """Begun when the first token of the answer may come."""
        self._ends_at_answer = task.ends_at_answer

    @property
    def failure(self) -> str | None:
        """Why the grammar cannot be followed."""
        return None if self._matcher is None else self._matcher.failure

    @property
    def has_ended(self) -> bool:
        """Whether no token can follow."""
        if not self.is_answering:
            return False
        return self._ends_at_answer or (self._matcher is not None and self._matcher.has_ended)

    @property
    def is_closing(self) -> bool:
        """Whether the end of the reasoning is being written by force, which the tokens so far need not show."""
        return self._thought is not None and bool(self._thought.forced)

    @property
    def is_answering(self) -> bool:
        """Whether the answer has begun, or may begin with the next token."""
        return self._thought is None or self._thought.answer_begin is not None

    def answer_ids(self, completion_ids: list[int]) -> list[int]:
        """Return the part of the completion that is the answer; empty before that begins."""
        if self._thought is None or self._thought.answer_begin == 0:
            return completion_ids
        return [] if self._thought.answer_begin is None else completion_ids[self._thought.answer_begin :]

    def allowed(self) -> Allowed | None:
        """Return which tokens may come next; None: any."""
        thought = self._thought
        if thought is not None and thought.forced:
            return Allowed(only=thought.forced[0])
        if self._grammar is None or self._is_thinking:
            return None
        matcher = self._begun()
        only = matcher.forced[0] if matcher.forced else None
        return Allowed(matcher, only, None if self.is_answering else self._start_id)

    def closes_before(self, token: int) -> bool:
        """Force the end of the reasoning if a token would end the completion there, before an answer with a grammar.

        Returns:
            Whether it is forced. Then the token must be chosen again.
        """
        if self._grammar is None or self._thought is None or not self._is_thinking or token not in self._eos_token_ids:
            return False
        self._thought.close()
        return True

    def accept(self, token: int) -> None:
        """Advance by the token that was chosen. Never raises; see ``Matcher.accept``."""
        if self._is_thinking and token in self._eos_token_ids:
            return  # nothing is forced after the end, not even at the budget
        if self._thought is not None and not self.is_answering:
            self._thought.accept(token)
            if self._thought.answer_begin != 0:
                return  # a token of the reasoning or of its markers
        if self._matcher is not None:
            self._matcher.accept(token)

    def go_through(self, token_ids: Sequence[int]) -> None:
        """Advance by the tokens of a completion that another guide has led, from its first one."""
        for token in token_ids:
            self.allowed()  # begins the grammar where the answer may begin
            self.accept(token)

    def take_forced(self, most: int) -> list[int]:
        """Return at most ``most`` of the tokens that must come next, and treat them as accepted."""
        taken: list[int] = []
        while self._thought is not None and self._thought.forced and len(taken) < most:
            taken.append(self._thought.forced[0])
            self._thought.accept(taken[-1])
        if self._grammar is not None and self.is_answering:
            taken += self._begun().take_forced(most - len(taken))
        return taken

    @property
    def _is_thinking(self) -> bool:
        thought = self._thought
        return thought is not None and thought.begin is not None and thought.answer_begin is None

    def _begun(self) -> Matcher:
        if self._matcher is None:
            assert self._grammar is not None
            self._matcher = self._constraints.begin(self._grammar, self._eos_token_ids)
        return self._matcher
