"""When waiting rows are admitted: together, where a step that computes a prompt costs more than one that does not.

Decode steps are recorded and replayed on a GPU; a step with a prompt in it is launched kernel by kernel, or padded.
With 512 rows of 128 new tokens, four rows end in every step: if each slot were filled at once, no step would be
replayed. ``scripts/bench admission`` shows what waiting costs.
"""

QUIET_STEPS = 10
"""Steps without prompts after each step with prompts: 10 of 11 steps are replayed."""

MAX_EMPTY_SHARE = 1 / 8
"""Share of the slots that are kept empty for that at most. With S new tokens per row, a share of k / 2S of the slots is
empty on average if rows are admitted every k steps. Beyond this share, the prompts are so long that their products take
longer than launching them, and waiting gains nothing."""


class Admission:
    """Decides in which steps rows may be admitted: in rounds. Nothing is held back while no row runs."""

    def __init__(self, num_slots: int, *, is_held: bool) -> None:
        """Begin with a round.

        Args:
            is_held: whether to hold rows back at all.
        """
        self._num_slots, self._is_held = num_slots, is_held
        self._num_left = num_slots  # rows that may still be admitted in this round
        self._num_unusable = 0
        self._num_prompt_steps = self._num_quiet_steps = 0

    @property
    def is_open(self) -> bool:
        """Whether another row may be admitted in this step."""
        return not self._is_held or self._num_left > 0

    def begin_step(self, *, num_running: int) -> None:
        """Begin a round if it is time."""
        if self._num_left > 0:
            return
        num_free = self._num_slots - num_running
        is_time = self._num_quiet_steps >= QUIET_STEPS * self._num_prompt_steps
        num_usable = self._num_slots - self._num_unusable
        if is_time or not num_running or num_free - self._num_unusable >= MAX_EMPTY_SHARE * num_usable:
            self._num_left = max(1, num_free)  # slots that become free meanwhile are for the next round
            self._num_prompt_steps = self._num_quiet_steps = self._num_unusable = 0

    def count(self) -> None:
        """Count a row that was admitted."""
        self._num_left -= 1

    def close(self, *, num_running: int, lacks_pages: bool) -> None:
        """End the round early.

        Args:
            lacks_pages: rows are waiting, but cannot use the free slots. Otherwise, no row is waiting.
        """
        self._num_left = 0
        self._num_unusable = self._num_slots - num_running if lacks_pages else 0

    def end_step(self, *, has_prompts: bool) -> None:
        """Tell whether the step computes more than one token of any row."""
        if has_prompts:
            self._num_prompt_steps += 1
        else:
            self._num_quiet_steps += 1
