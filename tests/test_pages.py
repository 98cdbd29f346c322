"""Pages: who holds which, and that what is found by its contents is what it is taken for."""

import random

import pytest

from job.engine.paged.schedule.pages import MIN_COPIED_TOKENS, NUM_DONORS, Match, Pages

P = 8
"""Tokens per page."""


def tokens(*groups: int) -> list[int]:
    """Return a page's worth of tokens for each number."""
    return [group * 100 + place for group in groups for place in range(P)]


def enter(pages: Pages, token_ids: list[int]) -> list[int]:
    """Do what the scheduler does with a sequence: share what is known, take the rest, say what it holds."""
    match = pages.match(token_ids)
    pages.hold(match.pages)
    held = list(match.pages) + [pages.take() for _ in range(pages.num_needed(len(token_ids)) - len(match.pages))]
    pages.describe(held, token_ids, len(match.pages))
    return held


def test_the_lowest_free_page_is_given_out_first() -> None:
    pages = Pages(5, P)
    assert [pages.take() for _ in range(4)] == [0, 1, 2, 3]
    pages.release([2, 0])
    assert [pages.take() for _ in range(3)] == [0, 2, 4]
    assert pages.num_free == 0


def test_a_page_is_free_when_nobody_holds_it() -> None:
    pages = Pages(3, P)
    page = pages.take()
    pages.hold([page])
    pages.release([page])
    assert pages.num_free == 2
    pages.release([page])
    assert pages.num_free == 3


@pytest.mark.parametrize(("num_tokens", "num_pages"), [(0, 0), (1, 1), (P, 1), (P + 1, 2), (10 * P, 10)])
def test_tokens_need_whole_pages(num_tokens: int, num_pages: int) -> None:
    assert Pages(1, P).num_needed(num_tokens) == num_pages


def test_nothing_is_known_at_first() -> None:
    assert Pages(3, P).match(tokens(1, 2)) == Match(())
    assert Pages(3, P).match([]) == Match(())


def test_whole_pages_of_a_common_beginning_are_shared() -> None:
    pages = Pages(10, P)
    first = enter(pages, tokens(1, 2, 3))
    assert pages.match(tokens(1, 2, 4)) == Match(tuple(first[:2]))
    assert pages.match(tokens(1)) == Match(tuple(first[:1]))
    assert pages.match(tokens(1, 2, 3, 4)) == Match(tuple(first))
    assert pages.match(tokens(2, 3)) == Match(())


def test_prefixes_may_branch_again_and_again() -> None:
    pages = Pages(20, P)
    trunk = enter(pages, tokens(1, 2))
    left = enter(pages, tokens(1, 2, 3, 4))
    right = enter(pages, tokens(1, 2, 5, 4))
    assert left[:2] == right[:2] == trunk and len({*left, *right}) == 6
    assert pages.match(tokens(1, 2, 3, 4, 9)).pages == tuple(left)
    assert pages.match(tokens(1, 2, 5, 4, 9)).pages == tuple(right)
    assert pages.match(tokens(1, 2, 4)).pages == tuple(trunk)


def test_a_page_is_found_by_all_that_stands_before_it() -> None:
    """Keys and values depend on the whole beginning, not on the page's own tokens."""
    pages = Pages(10, P)
    enter(pages, tokens(1, 7))
    other = enter(pages, tokens(2, 7))
    assert other == [2, 3]
    assert pages.match(tokens(2, 7, 8)).pages == (2, 3)
    assert pages.match(tokens(3, 7)) == Match(())


def test_a_page_that_goes_on_differently_gives_its_first_tokens() -> None:
    pages = Pages(10, P)
    first = enter(pages, tokens(1, 2))
    wanted = [*tokens(1), *tokens(2)[:5], -1, -2]
    assert pages.match(wanted) == Match((first[0],), first[1], 5)


def test_a_page_that_is_not_full_gives_what_it_has() -> None:
    pages = Pages(10, P)
    first = enter(pages, tokens(1, 2)[: P + 6])
    assert pages.match(tokens(1, 2)) == Match((first[0],), first[1], 6)
    assert pages.match(tokens(1, 2)[: P + 5]) == Match((first[0],), first[1], 5)


@pytest.mark.parametrize("num_common", [MIN_COPIED_TOKENS - 1, MIN_COPIED_TOKENS])
def test_few_tokens_are_not_worth_a_copy(num_common: int) -> None:
    pages = Pages(10, P)
    enter(pages, tokens(1))
    wanted = [*tokens(1)[:num_common], -1]
    expected = Match((), 0, num_common) if num_common == MIN_COPIED_TOKENS else Match(())
    assert pages.match(wanted) == expected


def test_the_donor_that_shares_the_most_is_taken() -> None:
    pages = Pages(10, P)
    for num_common in (5, 7, 4, 6):
        pages.describe([pages.take()], [*tokens(1)[:num_common], *[-num_common] * (P - num_common)], 0)
    assert pages.match(tokens(1)) == Match((), 1, 7)


def test_only_the_latest_pages_are_compared() -> None:
    pages = Pages(20, P)
    for number in (7, *[5] * NUM_DONORS):
        pages.describe([pages.take()], [*tokens(1)[:number], *[-number] * (P - number)], 0)
    assert pages.match(tokens(1)).num_donated == 5


def test_a_growing_page_is_found_with_what_it_has_by_now() -> None:
    pages = Pages(10, P)
    held = [pages.take(), pages.take()]
    wanted = tokens(1, 2, 3)
    for num_known, expected in (
        (3, Match(())),
        (5, Match((), 0, 5)),
        (P, Match((0,))),
        (P + 6, Match((0,), 1, 6)),
        (2 * P, Match((0, 1))),
    ):
        pages.describe(held, wanted[:num_known], (num_known - 1) // P)
        assert pages.match(wanted) == expected


def test_what_is_released_is_forgotten() -> None:
    pages = Pages(10, P)
    first = enter(pages, tokens(1, 2))
    pages.release(first)
    assert pages.match(tokens(1, 2)) == Match(())
    assert pages.num_free == 10


def test_what_another_one_holds_is_remembered() -> None:
    pages = Pages(10, P)
    first = enter(pages, tokens(1, 2))
    second = enter(pages, tokens(1, 3))
    pages.release(first)
    assert pages.match(tokens(1, 2)) == Match((first[0],))
    pages.release(second)
    assert pages.match(tokens(1, 3)) == Match(()) and pages.num_free == 10


def test_a_page_that_is_used_again_is_not_taken_for_what_it_was() -> None:
    """Its number is the parent of what stood behind it."""
    pages = Pages(2, P)
    pages.release(enter(pages, tokens(1, 2)))
    again = enter(pages, tokens(3, 4))
    assert again == [0, 1]
    assert pages.match(tokens(1, 2)) == Match(()) and pages.match(tokens(3, 2)) == Match((0,))
    assert pages.match(tokens(3, 4)) == Match((0, 1))


def test_of_two_pages_with_the_same_contents_one_is_found_while_it_lasts() -> None:
    """Two rows that are computed side by side, neither of which could share."""
    pages = Pages(4, P)
    first, second = [pages.take(), pages.take()], [pages.take(), pages.take()]
    pages.describe(first, tokens(1, 2), 0)
    pages.describe(second, tokens(1, 2), 0)
    assert pages.match(tokens(1, 2)) == Match((0, 1))
    pages.release(second)
    assert pages.match(tokens(1, 2)) == Match((0, 1))
    pages.release(first)
    assert pages.match(tokens(1, 2)) == Match(())


NUM_PAGES = 40


class Model:
    """Sequences and what each of their pages holds, kept in the plainest way, beside the real thing."""

    def __init__(self, seed: int) -> None:
        """Begin with NUM_PAGES free pages."""
        self.rng = random.Random(seed)
        self.pages = Pages(NUM_PAGES, P)
        self.sequences: list[tuple[list[int], list[int], int]] = []
        """Tokens, pages, and how many tokens are described."""
        self.num_shared = self.num_donated = 0

    def contents(self) -> dict[int, tuple[list[int], list[int]]]:
        """Return for every described page what stands before it and what it holds."""
        found: dict[int, tuple[list[int], list[int]]] = {}
        for token_ids, pages, num_known in self.sequences:
            for idx in range(self.pages.num_needed(num_known)):
                here = (token_ids[: idx * P], token_ids[idx * P : min(num_known, (idx + 1) * P)])
                assert pages[idx] not in found or found[pages[idx]] == here, "two sequences share what differs"
                found[pages[idx]] = here
        return found

    def check(self) -> None:
        """Compare the free pages: holders balance if and only if these agree."""
        held = {page for _, pages, _ in self.sequences for page in pages}
        assert self.pages.num_free == NUM_PAGES - len(held)

    def new_tokens(self) -> list[int]:
        """Return tokens that often begin as those of another sequence do."""
        beginning: list[int] = []
        if self.sequences and self.rng.random() < 0.7:
            other = self.rng.choice(self.sequences)[0]
            beginning = other[: self.rng.randint(len(other) // 2, len(other))]
        return beginning + [self.rng.randrange(2) for _ in range(self.rng.randrange(1, 2 * P))]

    def begin(self) -> None:
        """Admit a sequence, and describe a part of it or all."""
        token_ids = self.new_tokens()
        match = self.pages.match(token_ids)
        self.check_match(match, token_ids)
        num_new = self.pages.num_needed(len(token_ids)) - len(match.pages)
        if num_new > self.pages.num_free:
            return
        self.pages.hold(match.pages)
        held = {page for _, pages, _ in self.sequences for page in pages}
        pages = list(match.pages)
        for _ in range(num_new):
            page = self.pages.take()
            assert page == min(set(range(NUM_PAGES)) - held - set(pages)), "not the lowest free page"
            pages.append(page)
        self.sequences.append((token_ids, pages, len(match.pages) * P))
        self.describe_more(len(self.sequences) - 1)

    def describe_more(self, idx: int) -> None:
        """Describe some tokens more of a sequence, as a chunk of its prompt is scheduled."""
        token_ids, pages, num_known = self.sequences[idx]
        end = len(token_ids) if self.rng.random() < 0.7 else self.rng.randint(num_known, len(token_ids))
        if end > num_known:
            self.pages.describe(pages, token_ids[:end], num_known // P)
            self.sequences[idx] = (token_ids, pages, end)

    def end(self) -> None:
        """Release a sequence."""
        _, pages, _ = self.sequences.pop(self.rng.randrange(len(self.sequences)))
        self.pages.release(pages)

    def check_match(self, match: Match, token_ids: list[int]) -> None:
        """Compare what was found with what is there."""
        contents = self.contents()
        for idx, page in enumerate(match.pages):
            assert contents[page] == (token_ids[: idx * P], token_ids[idx * P : (idx + 1) * P])
        start = len(match.pages) * P
        if match.donor is None:
            assert match.num_donated == 0
        else:
            before, inside = contents[match.donor]
            assert before == token_ids[:start] and match.num_donated >= MIN_COPIED_TOKENS
            assert inside[: match.num_donated] == token_ids[start:][: match.num_donated]
            assert len(token_ids[start:][: match.num_donated]) == match.num_donated
        self.num_shared += len(match.pages)
        self.num_donated += match.num_donated


@pytest.mark.parametrize("seed", range(20))
def test_random_holders_balance_and_no_match_is_wrong(seed: int) -> None:
    model = Model(seed)
    for _ in range(400):
        action = model.rng.random()
        if action < 0.5:
            model.begin()
        elif action < 0.7 and model.sequences:
            model.describe_more(model.rng.randrange(len(model.sequences)))
        elif model.sequences:
            model.end()
        model.check()
    assert model.num_shared > 50 and model.num_donated > 50
    while model.sequences:
        model.end()
        model.check()
    assert model.pages.num_free == NUM_PAGES
    assert all(model.pages.match(model.new_tokens()) == Match(()) for _ in range(20))
