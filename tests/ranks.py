"""The processes of a replica that run jobs of ``engine_process``, one after the other.

Their start takes longer than most jobs, so all tests of a session share two ranks: the fixture ``two_ranks``.
"""

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.conftest import start_processes

PATIENCE_SECS = 240


class Ranks:
    """Starts its processes with the first jobs, and again after a failure."""

    def __init__(
        self, directory: Path, num_ranks: int, dtype: str = "float32", env: dict[str, str] | None = None
    ) -> None:
        """Set what they are, and where their files go."""
        self._directory, self._num_ranks, self._dtype, self._env = directory, num_ranks, dtype, env
        self._processes: list[subprocess.Popen[str]] = []
        self._num_runs = 0

    def run(self, jobs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Return what the leader says of each job: see ``engine_process.run_job``."""
        if not self._processes:
            self._processes = self._start()
        self._num_runs += 1
        path = self._directory / f"jobs-{self._num_runs}.json"
        path.write_text(json.dumps(list(jobs.values())))
        try:
            for process in self._processes:
                print(path, file=process.stdin, flush=True)
            results = self._wait_for(path.with_suffix(".out"))
        except BaseException:
            self._kill()
            raise
        assert (self._directory / "stdout").read_text() == "", "stdout belongs to the user"
        return dict(zip(jobs, results, strict=True))

    def close(self) -> None:
        """Let them end."""
        processes, self._processes = self._processes, []
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        assert [process.wait(PATIENCE_SECS) for process in processes] == [0] * len(processes), self._log

    @property
    def _log(self) -> str:
        return (self._directory / "stderr").read_text()

    def _start(self) -> list[subprocess.Popen[str]]:
        with (self._directory / "stdout").open("a") as out, (self._directory / "stderr").open("a") as err:
            return start_processes(
                ["-m", "tests.engine_process", self._num_ranks, self._dtype],
                self._num_ranks,
                self._env,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
            )

    def _wait_for(self, path: Path) -> Any:
        end = time.monotonic() + PATIENCE_SECS
        while not path.exists():
            assert [process.poll() for process in self._processes] == [None] * self._num_ranks, self._log
            assert time.monotonic() < end, self._log
            time.sleep(0.01)
        return json.loads(path.read_text())

    def _kill(self) -> None:
        processes, self._processes = self._processes, []
        for process in processes:
            process.kill()
            process.wait()
