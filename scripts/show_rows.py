"""Print some rows of a run in readable form. Usage: show_rows.py RUN_DIRECTORY [NUM_ROWS]"""

import sys
import textwrap
from pathlib import Path

import pyarrow.parquet as pq


def main(run_dir: Path, num_rows: int) -> None:
    """Print the first rows of the first part."""
    parts = sorted((run_dir / "data").glob("part-*.parquet"))
    rows = [row for part in parts[:1] for row in pq.read_table(part).slice(0, num_rows).to_pylist()]
    for row in rows:
        print(
            f"--- row {row['row_idx']} ({row['num_completion_tokens']} tokens, {row['finish_reason'] or row['error']})"
        )
        for name in ("question", "completion"):
            print(textwrap.indent(textwrap.fill(f"{name}: {row.get(name)}", 110), "  "))
    print(f"\n{len(parts)} Parquet parts in {run_dir.absolute()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
