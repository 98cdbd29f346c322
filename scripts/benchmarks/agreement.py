"""How often labels agree with people: the sign of the mean rating of 20 raters, reviews with a rating beyond 1 or -1.

Usage: scripts/bench agreement [CONFIG.toml] [DATA.jsonl] [OPTION ...]

CONFIG has the choices "positive" and "negative", perhaps among others, and keeps the column ``score``; options go to
``job run``. The answer to a review is the likelier of those two.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]


def main(config: str = "scripts/examples/choices.toml", *args: str) -> None:
    """Run the job and count."""
    data = ["--dataset", str(Path(args[0]).absolute())] if args else []
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "job", "run", "--config", str(Path(config).absolute()), "--output", output]
        subprocess.run([*command, *data, *args[1:]], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        table = pq.read_table(Path(output) / "data")
    choices = json.loads(table.schema.metadata[b"job.choices"])
    positive, negative = choices.index("positive"), choices.index("negative")
    rows = [row for row in table.to_pylist() if row["error"] is None and abs(row["score"]) > 1]
    said = [row["choice_probs"][positive] > row["choice_probs"][negative] for row in rows]
    meant = [row["score"] > 0 for row in rows]
    num_agreed = sum(left == right for left, right in zip(said, meant, strict=True))
    always = max(sum(meant), len(meant) - sum(meant))
    result = {
        "num_rows": len(table),
        "num_judged": len(rows),
        "agreement": round(num_agreed / len(rows), 3),
        "agreement_of_always_the_same": round(always / len(rows), 3),
        "said_positive": sum(said),
        "meant_positive": sum(meant),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
