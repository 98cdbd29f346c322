"""Looks for the tokens that a run may have chosen where only their text is known.

The completion that comes out now is followed up to the first token from which the text in the part cannot follow. Which
tokens could have been there instead, and by how much they have missed being chosen now, says whether that was a tie. If
it was, the row is generated again with that token in its place, and so on to its end: a fault behind a tie is found,
too. If no tie leads to the text in the part, the run may have left what comes out now earlier, by tokens that have the
same text: then all places are looked at.

Of the ways that leave a completion, the one with the smallest gap is tried first; if it leads nowhere, the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from job.engine.logits.margin import Margin
from job.records import Generation, Partial
from job.run.computer import Computer, generates, generating
from job.run.row_texts import RowTexts
from job.tasks import Generate, Score

MAX_WAYS = 100
"""After this many completions that have been tried, the rest is not known."""

MAX_BETTER = 8
"""Once a way is found, this many more are tried: one may have a smaller gap, or the run's number of tokens."""

MOST_PLACES = 4000
"""At how many places of a row, at most, other tokens with the same text are looked for."""

NUM_RANKED = 64
"""Where what comes out now cannot be the run's, the run may have chosen a token that the rest of the text begins with,
or one of this many with the largest logits that have no text, or part of a character."""

NUM_RANKED_EARLIER = 8
"""The same at places before that."""

MOST_BACK = 4
"""How many tokens before the one that cannot be the run's are looked at first: they may differ from it already."""


@dataclass(frozen=True, slots=True)
class Tie:
    """A place where the run chose another token."""

    position: int
    gap: float
    token_ids: tuple[int, ...]
    """The token, or what is written in place of an end."""
    is_guess: bool = False
    """Whether the text in the part does not say so: a token without text, or with part of a character."""
    is_end: bool = False
    """Whether the completion ends with it."""


@dataclass(frozen=True, slots=True)
class Way:
    """From what comes out now towards the text in the part."""

    generation: Generation
    ties: tuple[Tie, ...]
    """The last of them is a place in ``generation``, the others have led to it."""

    @property
    def gap(self) -> float:
        """The largest on the way."""
        return max(tie.gap for tie in self.ties)

    @property
    def token_ids(self) -> list[int]:
        """The tokens up to the last tie."""
        tie = self.ties[-1]
        return [*self.generation.token_ids[: tie.position], *tie.token_ids]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the search has led to."""

    generation: Generation | None = None
    """A completion with the text in the part, or one that failed; None if no way was found."""
    ties: tuple[Tie, ...] = ()
    """Those that lead there; or to the choice that is nearest to being a tie, which is the last of them."""
    is_known: bool = True
    """Whether there is no other way. False: the search was cut off."""
    is_exact: bool = True
    """Whether the completion has as many tokens as the run's. False: the same text, but the run split it otherwise."""
    is_followed: bool = True
    """Whether the row was generated behind the last tie: not every engine goes on from given tokens."""

    @property
    def has_failed(self) -> bool:
        """Whether a completion could not be computed."""
        return self.generation is not None and self.generation.error is not None


@dataclass(kw_only=True)
class Splits:
    """The ways from one completion to the text in the part."""

    computer: Computer
    texts: RowTexts
    tie_gap: float
    _waiting: list[Way] = field(default_factory=list)
    _earlier: list[tuple[Generation, tuple[Tie, ...], int]] = field(default_factory=list)
    _nearest: Way | None = None
    _num_places: int = 0

    def search(self, first: Generation) -> Found:
        """Look for a way from what comes out now: one that is found fast, and then for a few that are better."""
        best: Found | None = None
        num_left = MAX_WAYS
        self._look(first, ())
        while num_left > 0:
            while not self._waiting and self._earlier and (best is None or not best.is_exact):
                self._look_earlier(*self._earlier.pop(0))
            if not self._waiting:
                break
            way = self._waiting.pop()
            if best is not None and best.is_exact and way.gap >= max(tie.gap for tie in best.ties):
                continue
            num_left -= 1
            found = self._followed(way)
            if found is None or (best is not None and (found.has_failed or best.is_exact > found.is_exact)):
                continue
            if found.has_failed:
                return found
            num_left = min(num_left, MAX_BETTER) if best is None else num_left
            best = found
        is_known = not self._waiting and not self._earlier and self._num_places < MOST_PLACES
        ties = self._nearest.ties if self._nearest is not None else ()
        return best or Found(ties=ties, is_known=is_known)

    def _followed(self, way: Way) -> Found | None:
        """Generate the row with another token at one place. Return the outcome if its text is that in the part."""
        again = self._go_on(way)
        if again is None:
            return Found(generation=way.generation, ties=way.ties, is_followed=False)
        if again.error is not None:
            return Found(generation=again, ties=way.ties)
        completion = self.computer.complete(again, self.texts.prompt)
        if self.texts.is_same(completion):
            return Found(generation=again, ties=way.ties)
        if not way.ties[-1].is_end:
            self._look(again, way.ties)
        if self.texts.has_same_text(completion):
            return Found(generation=again, ties=way.ties, is_exact=False)
        return None

    def _go_on(self, way: Way) -> Generation | None:
        """Return the completion that begins with a way's tokens; None if the engine begins again instead."""
        generation, ids = way.generation, way.token_ids
        request, task = generation.request, _without_scores(generates(generation.request))
        asked: Generate | Score = task
        if isinstance(request.task, Score):
            asked = replace(request.task, reason=task)
            if self.texts.has_answer(generation, ids):
                return self.computer.score_after(request, ids)
        elif (reason := self.computer.finish_reason(request, ids)) is not None:
            return replace(
                generation, token_ids=ids, finish_reason=reason, logprobs=None, top_ids=None, top_logprobs=None
            )
        begun = Partial(row_idx=request.row_idx, sample_idx=request.sample_idx, attempt=request.attempt, token_ids=ids)
        again = self.computer.again(replace(request, task=asked, begun=begun))
        has_gone_on = again.error is not None or list(again.token_ids[: len(ids)]) == ids
        return replace(again, request=replace(again.request, task=request.task)) if has_gone_on else None

    def _look(self, generation: Generation, ties: tuple[Tie, ...]) -> None:
        """Add the ways on which the run may leave a completion where their texts part.

        Args:
            ties: those that have led to this completion.
        """
        ids = list(generation.token_ids)
        if len(generation.text_ids) < len(ids) or (generation.finish_reason == "stop" and ids):
            ids = ids[:-1]  # the end of this completion is a choice, too
        last = self.texts.num_agreed(generation, ids)
        begin = _begin_of(ties)
        # The last of these tokens may be the beginning of the one that the run chose, as a line end is of two of them.
        first = max(last - MOST_BACK, begin)
        ways: list[Way] = []
        for position in range(last, first - 1, -1):
            [margin] = self.computer.margins(
                generating(generation.request), ids[:position], range(position, position + 1)
            )
            if margin is None:
                return
            found = self._ties_at(generation, margin, position, NUM_RANKED, measures_all=position == last or not ties)
            ways += [Way(generation, (*ties, tie)) for tie in found]
            if any(tie.gap <= self.tie_gap for tie in found):
                first = position
                break
        self._add(ways)
        if first > begin:
            self._earlier.append((generation, ties, first))

    def _look_earlier(self, generation: Generation, ties: tuple[Tie, ...], last: int) -> None:
        """Add the ways on which the run may leave a completion before that, by other tokens with the same text."""
        places = range(_begin_of(ties), last)[: MOST_PLACES - self._num_places]
        self._num_places += len(places)
        found = self.computer.margins(generating(generation.request), generation.token_ids, places)
        ways: list[Way] = []
        for position, margin in zip(places, found, strict=False):
            if margin is not None:
                more = self._ties_at(generation, margin, position, NUM_RANKED_EARLIER)
                ways += [Way(generation, (*ties, tie)) for tie in more]
        self._add(ways)

    def _add(self, ways: Sequence[Way]) -> None:
        near = [way for way in ways if way.ties[-1].gap <= self.tie_gap]
        self._waiting += sorted(near, key=lambda way: _promise(way.ties[-1]))
        others = [way for way in ways if way.ties[-1].gap > self.tie_gap]
        self._nearest = min([*others, *([self._nearest] if self._nearest else [])], key=_miss, default=None)

    def _ties_at(
        self, generation: Generation, margin: Margin, position: int, num_ranked: int, *, measures_all: bool = False
    ) -> list[Tie]:
        """Return the choices with which the text in the part could go on.

        Args:
            measures_all: whether those are needed, too, that are no ties: to say what differs.
        """
        texts, ids, ends = self.texts, list(generation.token_ids[:position]), self.computer.ends_of(generation.request)
        now = gap_at(self.computer, texts, generation, margin, position)
        if now.gap > self.tie_gap and not measures_all:
            return []
        visible, not_here = texts.candidates(generation, ids), generation.token_ids[position : position + 1]
        others = [
            each for each in dict.fromkeys([*visible, *margin.ranked(num_ranked)]) if each not in {*ends, *not_here}
        ]
        near = margin.near(others, self.tie_gap)
        tried = [[*near, *(each for each in others if each in visible)], others] if measures_all else [near]
        agreeing = (
            [token for token in dict.fromkeys(each) if texts.agree(generation, [*ids, token])] for each in tried
        )
        found = [
            Tie(position, max(now.gap, margin.gap(token)), (token,), is_guess=token not in visible)
            for token in next(filter(None, agreeing), [])
        ]
        closing = texts.closing(generation, ids)
        if closing and ends and not now.closes and texts.agree(generation, [*ids, *closing]):
            found.append(Tie(position, max(now.gap, min(map(margin.gap, ends))), closing))
        elif not closing and not texts.is_scored and texts.is_whole(generation, ids):
            gaps = {end: max(now.gap, margin.gap(end)) for end in ends.difference(not_here)}
            found += [Tie(position, gap, (end,), is_end=True) for end, gap in gaps.items()]
        return found


@dataclass(frozen=True, slots=True)
class Gap:
    """By how much the token of a completion misses being chosen."""

    gap: float
    closes: bool = False
    """Whether the end of the reasoning is written there."""
    is_drawn: bool = False
    """Whether that is in place of an end that was drawn, so that the tokens after it were not chosen."""


def gap_at(computer: Computer, texts: RowTexts, generation: Generation, margin: Margin, position: int) -> Gap:
    """Look at the token of a completion at some position.

    The token of what comes out now may miss being chosen, too: these logits are those of one step for all tokens, which
    may be rounded like the run's, and not like the ones that have been computed token by token.
    """
    if position >= len(generation.token_ids):
        return Gap(0.0)
    gap, closing = (
        margin.gap(generation.token_ids[position]),
        texts.closing(generation, generation.token_ids[:position]),
    )
    if not closing or tuple(generation.token_ids[position : position + len(closing)]) != closing:
        return Gap(gap)
    ends = computer.ends_of(generation.request) if gap > 0 else ()
    drawn = min(map(margin.gap, ends), default=gap)
    return Gap(min(gap, drawn), closes=True, is_drawn=drawn < gap)


def _begin_of(ties: Sequence[Tie]) -> int:
    """Return the first place behind some ties."""
    return ties[-1].position + len(ties[-1].token_ids) if ties else 0


def _promise(tie: Tie) -> tuple[bool, float, int]:
    """Return what orders the ties that leave a completion: the largest is tried first."""
    return not tie.is_guess, -tie.gap, tie.position


def _miss(way: Way) -> tuple[float, int]:
    """Return what orders the ways that are none: the smallest says best what differs."""
    return way.gap, -way.ties[-1].position


def _without_scores(task: Generate | None) -> Generate:
    assert task is not None
    return replace(task, params=replace(task.params, logprobs=False, num_top_logprobs=0))
