"""Majority vote: writes next to each sample what most samples of its row agree on, their completion or their answer."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from job.errors import UsageError
from job.modes.extraction import ANSWER
from job.modes.mode import LabelColumn, Mode
from job.modes.options import option
from job.records import Completion

if TYPE_CHECKING:
    import pyarrow as pa

    from job.config import RunConfig

AGGREGATES = ("majority",)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateMode(Mode):
    """The majority vote over the samples of each row."""

    name: ClassVar[str] = "aggregate"

    aggregate: str | None = option(
        None,
        "With --num-samples: write the completion (with --extract, the answer) that most samples of a row agree on, "
        "and their share.",
        choices=AGGREGATES,
    )

    def check(self, config: "RunConfig") -> None:
        """See ``Mode``."""
        if self.aggregate not in AGGREGATES:
            raise UsageError(f"--aggregate is {self.aggregate!r}; it must be one of {', '.join(AGGREGATES)}.")
        if config.sampling.num_samples == 1:
            modes = config.active_modes
            undrawn = next((mode for mode in modes if mode.draws_nothing), None)
            if undrawn is not None and not any(mode.always_generates for mode in modes):
                raise UsageError(
                    f"--aggregate and {undrawn.flag} were given together. Leave out --aggregate: nothing is drawn."
                )
            raise UsageError(f"--aggregate {self.aggregate} needs several samples. Set --num-samples.")

    def derived(self) -> "list[pa.Field]":
        """See ``Mode``."""
        import pyarrow as pa

        return [pa.field("majority", pa.string()), pa.field("majority_share", pa.float64())]

    def derive(self, completions: Sequence[Completion], earlier: "Mapping[str, pa.Array]") -> "Mapping[str, pa.Array]":
        """See ``Mode``."""
        import pyarrow as pa

        winners = majorities(completions, earlier[ANSWER].to_pylist() if ANSWER in earlier else None)
        text, share = zip(*(winners[completion.row_idx] for completion in completions), strict=True)
        return {"majority": pa.array(text, pa.string()), "majority_share": pa.array(share, pa.float64())}

    def label_columns(self) -> Sequence[LabelColumn]:
        """See ``Mode``."""
        return [LabelColumn(name="majority", confidence="majority_share", is_of_row=True, rank=3)]


def majorities(
    completions: Sequence[Completion], answers: Sequence[str | None] | None = None
) -> dict[int, tuple[str | None, float | None]]:
    """Return each row's most frequent answer, and the share of its samples that have it.

    Ties go to the lowest sample_idx. Samples with an error, with no or an empty answer, or cut do not vote,
    but count in the share. (None, None) if no sample votes.

    Args:
        answers: of each completion. None: the completions are the answers.
    """
    if answers is None:
        answers = [completion.completion for completion in completions]
    votes: dict[int, Counter[str]] = {}
    num_samples = Counter[int]()
    for completion, answer in sorted(zip(completions, answers, strict=True), key=lambda pair: pair[0].key):
        counted = votes.setdefault(completion.row_idx, Counter())
        num_samples[completion.row_idx] += 1
        if answer and completion.finish_reason == "stop":
            counted[answer] += 1
    return {row_idx: _winner(counted, num_samples[row_idx]) for row_idx, counted in votes.items()}


def _winner(votes: Counter[str], num_samples: int) -> tuple[str | None, float | None]:
    if not votes:
        return None, None
    text, number = votes.most_common(1)[0]  # in a tie, the one that was counted first
    return text, number / num_samples
