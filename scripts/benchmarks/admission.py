"""How many steps compute no prompt, if rows are admitted at once or held back: a simulation with the real scheduler.

Usage: scripts/bench admission [ROWS]

Only a step without prompts is sure to be replayed on a GPU. Prompts are an instruction and questions of the lengths of
200 real ones; completions have those of 200 real solutions, scaled, or end at any token with the same probability, or
are all as long as they may be.
Prints a table: the share of generated tokens that come from steps without prompts, the share of slots that were used,
and the most steps that a free slot waited for a row.
"""

import json
import random
import sys
from collections.abc import Callable

from _workload import MODEL, QUESTIONS, load_prompt_ids
from transformers import AutoTokenizer

from job.engine.paged.schedule.pages import Pages, num_common
from job.engine.paged.schedule.scheduler import Scheduler
from job.engine.paged.schedule.sequences import Sequence
from job.records import Request
from job.tasks import Generate, SamplingParams

MAX_TOKENS, PAGE_TOKENS = 8192, 64
TASK = Generate(params=SamplingParams())


def solution_lengths() -> list[int]:
    """Return the numbers of tokens of 200 real solutions."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    solutions = [json.loads(line)["answer"] for line in QUESTIONS.open(encoding="utf-8")]
    return [len(tokenizer(solution)["input_ids"]) for solution in solutions]


def simulate(
    num_slots: int, rows: list[tuple[list[int], int]], *, holds_rows: bool, num_pages: int
) -> dict[str, float]:
    """Run rows of (prompt, new tokens); return shares, without the beginning and the end of the run."""
    pages = Pages(num_pages, PAGE_TOKENS)
    scheduler = Scheduler(pages, max_rows=num_slots, max_tokens=MAX_TOKENS, holds_rows=holds_rows)
    wanted: dict[Sequence, int] = {}
    for row_idx, (prompt, num_new) in enumerate(rows):
        sequence = Sequence.of(Request(row_idx=row_idx, sample_idx=0, prompt_ids=prompt, task=TASK))
        wanted[sequence] = len(prompt) + num_new
        scheduler.submit(sequence)
    replayed = total = used = steps = waited = longest = 0
    num_done = 0
    while scheduler.num_pending:
        work = scheduler.next_work()
        has_prompts = any(item.num_tokens > 1 for item in work)
        decoded = sum(item.num_tokens == 1 for item in work)
        is_middle = num_done > num_slots and scheduler.num_pending > 2 * num_slots
        if is_middle:
            total += decoded
            replayed += 0 if has_prompts else decoded
            used += len(scheduler.running)
            steps += 1
            waited = 0 if has_prompts else waited + 1
            longest = max(longest, waited if len(scheduler.running) < num_slots else 0)
        scheduler.to_step(work)
        for item in work:
            sequence = item.sequence
            sequence.num_cached = item.end
            if item.num_wanted:
                sequence.token_ids.append(0)
                if len(sequence.token_ids) >= wanted[sequence]:
                    scheduler.finish(sequence)
                    num_done += 1
    return {"replayed": replayed / total, "used": used / steps / num_slots, "longest wait": longest, "steps": steps}


def completion_lengths(kind: str, most: int, num_rows: int, solutions: list[int]) -> list[int]:
    """Return the numbers of new tokens of rows, at most ``most`` each."""
    rng = random.Random(1)
    draw: dict[str, Callable[[], int]] = {
        "solutions": lambda: round(rng.choice(solutions) * most / 128),
        "any token": lambda: 1 + int(rng.expovariate(2 / most)),
        "all": lambda: most,
    }
    return [max(1, min(most, draw[kind]())) for _ in range(num_rows)]


def main(num_slots: int) -> None:
    """Simulate and report."""
    examples = load_prompt_ids(200)
    num_shared = min(num_common(examples[0], ids) for ids in examples[1:])
    rng = random.Random(0)
    solutions = solution_lengths()
    print("new tokens | completions | mean | held | from steps without prompts | slots used | longest wait")
    for most in (128, 512, 2048):
        for kind in ("solutions", "any token", "all"):
            num_rows = 5 * num_slots
            new = completion_lengths(kind, most, num_rows, solutions)
            rows = []
            for idx, num_new in enumerate(new):
                example = examples[idx % 200]
                question = [rng.randrange(50_000) for _ in example[num_shared:]]
                rows.append((example[:num_shared] + question, num_new))
            num_pages = num_slots * (most + 300) // PAGE_TOKENS
            for holds_rows in (False, True):
                found = simulate(num_slots, rows, holds_rows=holds_rows, num_pages=num_pages)
                mean = sum(new) / len(new)
                print(
                    f"{most:5} | {kind:9} | {mean:6.0f} | {'yes' if holds_rows else 'no':3} | "
                    f"{found['replayed']:.1%} | {found['used']:.1%} | {found['longest wait']} steps",
                    flush=True,
                )


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 512)
