"""Repositories at one commit: resolved once, listed, fetched patiently, and the same offline."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from job.errors import Unavailable, UsageError
from job.remote.hub import HubRepository, pin
from job.remote.patience import set_patience
from tests.hub import Hub


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("job.remote.patience.FIRST_PAUSE_SECS", 0.001)


def texts(repository: HubRepository, *paths: str) -> list[str]:
    return [path.read_text() for path in repository.fetch(paths)]


def test_a_commit_is_resolved_once_and_read_after_the_branch_has_moved(hub: Hub) -> None:
    repo = hub.create("dataset", "acme/data")
    old = repo.commit({"a.jsonl": b"old", "b.parquet": b"large"})
    found = pin("dataset", "acme/data", None)
    repo.commit({"a.jsonl": b"new"})
    assert found.commit == old
    assert texts(found, "a.jsonl", "b.parquet") == ["old", "large"]
    assert [found.files[path].digest.partition(":")[0] for path in ("a.jsonl", "b.parquet")] == ["git", "sha256"]


def test_what_was_fetched_is_there_offline_with_the_whole_listing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create("dataset", "acme/data").commit({"a.jsonl": b"a", "b.jsonl": b"b"})
    online = pin("dataset", "acme/data", None)
    files = online.files
    online.fetch(["a.jsonl"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.log.clear()
    offline = pin("dataset", "acme/data", None)
    assert (offline, offline.files, texts(offline, "a.jsonl")) == (online, files, ["a"])
    with pytest.raises(UsageError, match=r"b\.jsonl of acme/data is not in the cache.*hf download acme/data"):
        offline.fetch(["b.jsonl"])
    assert hub.log == []


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429}, {"reset_after": -1}, {"reset_after": 2}])
def test_trouble_that_passes_costs_nothing(hub: Hub, fault: dict[str, int]) -> None:
    hub.create("dataset", "acme/data").commit({"a.parquet": b"abcdefgh"})
    hub.fault(match="GET", times=7, **fault)
    assert texts(pin("dataset", "acme/data", None), "a.parquet") == ["abcdefgh"]


def test_trouble_that_stays_ends_with_the_reason(hub: Hub) -> None:
    hub.create("dataset", "acme/data").commit({"a.jsonl": b"a"})
    hub.fault(match="GET", status=503)
    set_patience(0.05)
    try:
        with pytest.raises(Unavailable, match=r"the Hub \(acme/data\) has not answered for .* s: .*503"):
            pin("dataset", "acme/data", None)
    finally:
        set_patience(600)


def test_the_cache_is_not_taken_for_the_answer_of_a_hub_that_fails(hub: Hub, tmp_path: Path) -> None:
    repo = hub.create("dataset", "acme/data")
    repo.commit({"a.jsonl": b"old"})
    pin("dataset", "acme/data", None).fetch(["a.jsonl"])
    new = repo.commit({"a.jsonl": b"new"})
    hub.fault(match="GET", status=503, times=9)
    assert pin("dataset", "acme/data", None).commit == new
