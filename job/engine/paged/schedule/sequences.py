"""A request on its way through the paged engine, and the order in which requests wait."""

from collections import abc
from collections.abc import Iterable
from dataclasses import dataclass, field

from job.engine.paged.schedule.pages import num_common
from job.records import Request


@dataclass(slots=True, eq=False)
class Sequence:
    """A request and its progress. The only value here that changes: the scheduler, the engine and its tasks do that."""

    request: Request
    token_ids: list[int]
    """Prompt and completion so far."""
    num_cached: int = 0
    """How many of them have keys and values in the cache."""
    pages: list[int] = field(default_factory=list)
    slot: int = -1
    """Row of the block tables; -1 while it waits."""
    logprobs: list[float] = field(default_factory=list)
    tops: bytearray = field(default_factory=bytearray)
    """The most likely tokens at each place of the completion, packed: as objects, they would take gigabytes."""
    may_share: bool = True
    """Whether it may share pages with others, in both directions."""
    num_forced: int = 0
    """How many tokens after the prompt were given, not generated: those of a choice."""
    wanted_from: int | None = None
    """From this token on, all logits are wanted. None: only those of the last token, to choose the next one."""
    max_length: int | None = None
    """With this many tokens, prompt included, it ends at the latest. None: no token is chosen for it."""
    pending: int | None = None
    """If its next token has been chosen, but only the device knows it yet: the token's place in the latest choice."""
    num_prompt: int = field(init=False)
    """The number of tokens in the prompt, including those that were given after it."""

    def __post_init__(self) -> None:
        self.num_prompt = len(self.request.prompt_ids) + self.num_forced

    @classmethod
    def of(cls, request: Request) -> "Sequence":
        """Return the sequence of a request that needs only one."""
        return cls(request, list(request.prompt_ids))

    @property
    def num_generated(self) -> int:
        """The number of tokens in the completion so far."""
        return len(self.token_ids) - self.num_prompt

    @property
    def completion_ids(self) -> list[int]:
        """The completion so far."""
        return self.token_ids[self.num_prompt :]

    @property
    def num_tokens(self) -> int:
        """The number of tokens so far, including one that is pending."""
        return len(self.token_ids) + (self.pending is not None)

    @property
    def num_computed(self) -> int:
        """How many of its own tokens are computed: the cache may also hold one that was computed after its end."""
        return min(self.num_cached, len(self.token_ids))

    @property
    def first_wanted(self) -> int:
        """The position of the first token whose logits are wanted."""
        return self.num_tokens - 1 if self.wanted_from is None else self.wanted_from

    def limited(self, num_tokens: int, num_wanted: int) -> int:
        """Return how many of its next tokens it may compute, so that at most ``num_wanted`` of them are scored."""
        if self.wanted_from is None:
            return num_tokens
        return min(num_tokens, max(0, self.wanted_from - self.num_cached) + num_wanted)

    @property
    def num_missing(self) -> int:
        """The number of tokens to compute before the next one can be chosen; 0 if the last one is pending."""
        num_tokens = len(self.token_ids)  # not ``num_tokens``: this is called for every row of every step
        if self.pending is not None:
            num_tokens += 1
            if num_tokens == self.max_length:
                return 0
        return num_tokens - self.num_cached


def in_order(waiting: Iterable[Sequence]) -> list[Sequence]:
    """Sort sequences for computation: longest first, but rows that share half of a prompt stay together.

    Long rows come first because they decide when the run ends and whether there is enough memory. A shared prefix is in
    the cache only while a row with it is being computed, so its rows must follow each other.
    """
    by_prefix = sorted(waiting, key=lambda sequence: sequence.token_ids)
    families: list[list[Sequence]] = []
    for sequence in by_prefix:
        if families and _are_family(families[-1][-1].token_ids, sequence.token_ids):
            families[-1].append(sequence)
        else:
            families.append([sequence])
    for family in families:
        family.sort(key=lambda sequence: (-sequence.num_prompt, sequence.request.key))
    families.sort(key=lambda family: (-family[0].num_prompt, family[0].request.key))
    return [sequence for family in families for sequence in family]


def decoding_first(running: abc.Sequence[Sequence]) -> list[tuple[Sequence, int]]:
    """Return rows in the order in which a step serves them, each with its ``num_missing``.

    Decoding rows come first: a chunk of a prompt may take the whole budget, and they would have to wait. The list is
    never ``running`` itself: a preemption takes rows out of that while the list is read.
    """
    rows = [(sequence, sequence.num_missing) for sequence in running]
    decoding = [row for row in rows if row[1] <= 1]
    return rows if len(decoding) == len(rows) else decoding + [row for row in rows if row[1] > 1]


def _are_family(left: abc.Sequence[int], right: abc.Sequence[int]) -> bool:
    return 2 * num_common(left, right) >= max(len(left), len(right))
