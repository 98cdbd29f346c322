"""How much a run asks of the Hub, and how long that takes, against a hub on loopback.

Usage: scripts/bench hub

Two cases, each as a process of its own with empty caches, on the fake engine; a JSON object for each on stdout:
- 200 small Parquet files, every request answered after 0.1 s, fetched and with ``--streaming``: seconds until the first
  row is in a journal or a part, and the requests.
- ``--streaming`` of one row group of 20,000 rows, of which one column is needed, in shards of several sizes: bytes sent
  for it, as a multiple of the column's own.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.hub import Hub  # noqa: E402

NUM_FILES, ROWS_PER_FILE, LATENCY_SECS = 200, 10, 0.1
NUM_ROWS, PROMPT_BYTES = 20_000, 400


def parquet(columns: dict[str, Any]) -> bytes:
    """Return a Parquet file of one row group, neither compressed nor with a dictionary."""
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, row_group_size=NUM_ROWS, compression="none", use_dictionary=False)
    return stream.getvalue()


def start(hub: Hub, directory: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start a run with empty caches."""
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(directory / "hf")}
    env |= {"JOB_CACHE": str(directory / "job"), "PYTHONPATH": str(ROOT)}
    env = {name: value for name, value in env.items() if name not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    command = [
        *(sys.executable, "-m", "job", "run", "--engine", "fake", "--model", "bench/model", "--no-chat"),
        *options,
    ]
    hub.log.clear()
    where = ["--output", str(directory / "out")]
    return subprocess.Popen([*command, *where], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a run, which must succeed."""
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(errors.decode())


def measure_latency(hub: Hub, *options: str) -> dict[str, Any]:
    """Measure a dataset of many small files on a slow network."""
    hub.fault(match=".", stall_secs=LATENCY_SECS)
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        process = start(hub, Path(directory), "--dataset", "bench/many", *options)
        out = Path(directory) / "out"
        while process.poll() is None and not [*out.glob("journal/*.arrows"), *out.glob("data/*.parquet")]:
            time.sleep(0.02)
        secs = time.perf_counter() - began
        finish(process)
    hub.heal()
    of_data = hub.requests("bench/many")
    return {
        "options": options,
        "secs_to_first_row": round(secs, 1),
        "secs_of_data_requests": round(max(r.time + r.secs for r in hub.log) - min(r.time for r in of_data), 1),
        "requests": len(hub.log),
    }


def measure_bytes(hub: Hub, column_bytes: int, rows_per_shard: int) -> dict[str, Any]:
    """Measure how much is sent of a column that lies in one row group."""
    with tempfile.TemporaryDirectory() as directory:
        options = ("--dataset", "bench/group", "--streaming", "--rows-per-shard", str(rows_per_shard))
        finish(start(hub, Path(directory), *options))
    requests = [r for r in hub.requests("GET /cdn/") if r.range]
    sent = sum(r.sent for r in requests)
    return {
        "rows_per_shard": rows_per_shard,
        "gets": len(requests),
        "mb": round(sent / 1e6, 1),
        "times_the_column": round(sent / column_bytes, 2),
    }


def main() -> None:
    """Run all cases."""
    model = subprocess.run([ROOT / "scripts/demo-model"], capture_output=True, text=True, check=True).stdout.strip()
    hub = Hub()
    hub.start()
    hub.create("model", "bench/model").commit({path.name: path for path in Path(model).iterdir() if path.is_file()})
    many = {
        f"data/train-{idx:05}-of-{NUM_FILES:05}.parquet": parquet(
            {"prompt": [f"{idx} {row}" for row in range(ROWS_PER_FILE)]}
        )
        for idx in range(NUM_FILES)
    }
    hub.create("dataset", "bench/many").commit(many)
    prompts = [f"{row:08} ".ljust(PROMPT_BYTES, "x") for row in range(NUM_ROWS)]
    junk = [os.urandom(500) for _ in range(NUM_ROWS)]
    group = parquet({"prompt": prompts, "junk": junk})
    column_bytes = pq.read_metadata(io.BytesIO(group)).row_group(0).column(0).total_compressed_size
    hub.create("dataset", "bench/group").commit({"train.parquet": group})
    for options in ((), ("--streaming",)):
        print(json.dumps(measure_latency(hub, *options)), flush=True)
    for rows_per_shard in (20_000, 10_000, 2_000, 500):
        print(json.dumps(measure_bytes(hub, column_bytes, rows_per_shard)), flush=True)
    hub.stop()


if __name__ == "__main__":
    main()
