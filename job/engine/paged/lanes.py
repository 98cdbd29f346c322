"""Two halves of a decode step at the same time, on a CPU: each in a thread of its own, with half of the cores.

A layer multiplies matrices, which the cores limit, and then reads the cache, which the memory limits. With all cores in
step, each waits for the other; two halves out of step use both. Prompts are not split: rows of one step may share them.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise

import torch

from job.engine.paged.step import Step

NUM_LANES = 2

MIN_ROWS = 64
"""Fewer rows make halves too small for the products."""


class Lanes:
    """Runs halves of steps side by side."""

    def __init__(self) -> None:
        """Start the threads."""
        num_threads = torch.get_num_threads()
        self._threads = ThreadPoolExecutor(
            NUM_LANES, "lane", initializer=torch.set_num_threads, initargs=(num_threads // NUM_LANES,)
        )
        list(self._threads.map(lambda _: torch.get_num_threads(), range(NUM_LANES)))
        torch.set_num_threads(num_threads)  # the threads have set it for those that come later, too

    @staticmethod
    def fits(step: Step) -> bool:
        """Whether a step is decode alone, of enough rows, none of which may read what another one writes in it."""
        is_decode = len(step.token_ids) == len(step.sequences) >= MIN_ROWS
        shares_nothing_new = not len(step.copies) and len(step.gained) == len(step.fresh)
        return is_decode and shares_nothing_new

    def run(self, step: Step, run: Callable[[Step], torch.Tensor]) -> torch.Tensor:
        """Run a step that fits: [N, V], as ``run`` returns it for each half."""
        ends = [len(step.token_ids) * lane // NUM_LANES for lane in range(NUM_LANES + 1)]
        halves = [
            Step(token_ids=step.token_ids[begin:end], sequences=step.sequences[begin:end])
            for begin, end in pairwise(ends)
        ]
        running = [self._threads.submit(run, half) for half in halves]
        wait(running)  # both, also if one fails: the next step must not meet a half of this one
        return torch.cat([half.result() for half in running])
