"""Fixtures: a Slurm that lives for the session, and a place to submit runs from."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import NUM_ROWS, Cluster, Lab
from tests.test_run import write_jsonl


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Return a Slurm of several nodes."""
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("no slurmctld: tests/slurm-up.sh install")
    if os.geteuid() != 0:
        pytest.skip("a Slurm in namespaces needs root")
    directory = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: it holds unix sockets
    cluster = Cluster(directory)
    try:
        if not cluster.has_networks:
            pytest.skip("nodes with networks of their own need CAP_SYS_ADMIN and CAP_NET_ADMIN")
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def lab(cluster: Cluster, tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Return a place to submit runs from, with a model and a dataset."""
    directory = tmp_path_factory.mktemp("lab")
    rows: list[Any] = [{"id": i, "prompt": f"question {i}?" if i % 50 else None} for i in range(NUM_ROWS)]
    return Lab(cluster, directory, tiny_model(), write_jsonl(directory / "data.jsonl", rows))
