"""How long a run takes whose rows are copied from another run: nothing is computed but what is new.

Usage: scripts/bench reuse [NUM_ROWS] [FORM] [SHUFFLED] [PROMPT]

FORM: jsonl (default) or parquet. SHUFFLED: in-order (default) or shuffled: the rows of the new dataset come in another
order. PROMPT: column (default), or chat: a template and the model's chat template.

A run with the fake engine makes the other run (1,000,000 rows: about 5 minutes). Of the new dataset, 1 row in 1,000 is
new. The last line is a JSON object with the seconds of each process, its start included, and its peak memory.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]


def row_of(idx: int) -> dict[str, Any]:
    """Return a row with a short prompt of its own."""
    return {"id": idx, "question": f"Is {idx} a prime number, and what are the factors of {idx * 7919 % 10_007}?"}


def write(path: Path, numbers: list[int]) -> None:
    """Write rows to a file."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row_of(number) for number in numbers]), path, row_group_size=10_000)
    else:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row_of(number)) + "\n" for number in numbers)


def run(*args: Any) -> tuple[float, str]:
    """Run the job. Returns the seconds and the summary."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "job", "run", *map(str, args)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return time.perf_counter() - start, done.stdout


def main(num_rows: int, form: str, order: str, prompt: str) -> None:
    """Make both datasets, run twice, and report."""
    model = subprocess.run([ROOT / "scripts/demo-model"], capture_output=True, text=True, check=True).stdout.strip()
    prompts = {
        "column": ["--prompt-column", "question", "--no-chat"],
        "chat": ["--prompt-template", "Solve this: {{ question }}\nBe brief.", "--chat"],
    }
    options = ["--engine", "fake", "--model", model, *prompts[prompt], "--id-column", "id", "--max-new-tokens", 8]
    with tempfile.TemporaryDirectory() as tmp:
        old, new = (Path(tmp) / f"{name}.{form}" for name in ("old", "new"))
        numbers = list(range(num_rows // 1000, num_rows + num_rows // 1000))
        write(old, list(range(num_rows)))
        if order == "shuffled":
            random.Random(0).shuffle(numbers)
        write(new, numbers)
        secs_first, _ = run(*options, "--dataset", old, "--output", f"{tmp}/first")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        secs, summary = run(*options, "--dataset", new, "--output", f"{tmp}/second", "--reuse", f"{tmp}/first")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(summary)
        cpu_secs = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found = {
            "num_rows": num_rows,
            "form": form,
            "order": order,
            "prompt": prompt,
            "first_secs": round(secs_first, 1),
            "reuse_secs": round(secs, 1),
            "reuse_cpu_secs": round(cpu_secs, 1),
            "peak_mib_of_both": after.ru_maxrss // 1024,
        }
        print(json.dumps(found))


if __name__ == "__main__":
    given = dict(enumerate(sys.argv[1:]))
    main(int(given.get(0, 1_000_000)), given.get(1, "jsonl"), given.get(2, "in-order"), given.get(3, "column"))
