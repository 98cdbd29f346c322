"""What the job costs without a model: rows through source, template, tokenizer, journal and Parquet on FakeEngine.

Usage: scripts/bench job-layer [NUM_ROWS] [FORM]     FORM: parquet (default), jsonl, csv

Prints a table while it runs and one JSON object as its last line. Resident memory is sampled from outside, so that a
leak shows as a rise between the first quarter and the end.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
QUESTIONS = ROOT / "scripts/demo-data/gsm8k-200.jsonl"


def make_dataset(directory: Path, num_rows: int, form: str) -> Path:
    """Write ``num_rows`` distinct questions."""
    questions = [json.loads(line) for line in QUESTIONS.open(encoding="utf-8")]
    rows = [
        {
            "id": f"q{idx}",
            "question": f"{questions[idx % 200]['question']} ({idx})",
            "answer": questions[idx % 200]["answer"],
        }
        for idx in range(num_rows)
    ]
    path = directory / f"questions.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10_000)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pa.csv.write_csv(pa.Table.from_pylist(rows), path)
    return path


def resident_mib(pid: int) -> float | None:
    """Return the anonymous resident memory of a process in MiB: mapped files are the page cache's."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) / 1024 if "RssAnon" in fields else None


def main(num_rows: int, form: str) -> None:
    """Run the job and report."""
    model = subprocess.run([ROOT / "scripts/demo-model"], capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as tmp:
        dataset = make_dataset(Path(tmp), num_rows, form)
        command = [
            *[sys.executable, "-m", "job", "run", "--engine", "fake", "--model", model, "--dataset", dataset],
            *["--prompt-template", "Solve this: {{ question }}\nBe brief.", "--id-column", "id"],
            *["--keep-columns", "answer", "--max-new-tokens", "64", "--output", f"{tmp}/out"],
        ]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        samples: list[tuple[float, float]] = []
        while process.poll() is None:
            time.sleep(0.25)
            mib = resident_mib(process.pid)
            if mib is not None:
                samples.append((time.perf_counter() - start, mib))
        secs = time.perf_counter() - start
        summary = process.stdout.read()
        print(summary)
        if process.returncode:
            sys.exit(process.returncode)
        half = [mib for at, mib in samples if at > secs / 2]
        print(
            json.dumps(
                {
                    "bench": "job-layer",
                    "form": form,
                    "num_rows": num_rows,
                    "secs": round(secs, 1),
                    "rows_per_sec_with_start": round(num_rows / secs),
                    "rss_anon_mib_at_half": round(half[0]),
                    "rss_anon_mib_max_after_half": round(max(half)),
                    "rss_anon_mib_end": round(half[-1]),
                }
            )
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000, sys.argv[2] if len(sys.argv) > 2 else "parquet")
