"""Repositories at one commit: resolved once, listed, fetched patiently, and the same offline."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from job.errors import Unavailable, UsageError
from job.remote.hub import HubRepository, pin
from job.remote.patience import set_patience
from tests.conftest import ANN
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
    with pytest.raises(
        UsageError, match=r"b\.jsonl of acme/data is not in the cache.*'hf download acme/data --repo-type dataset --rev"
    ):
        offline.fetch(["b.jsonl"])
    assert hub.log == []


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429}, {"reset_after": -1}, {"reset_after": 2}])
def test_trouble_that_passes_costs_nothing(hub: Hub, fault: dict[str, int]) -> None:
    hub.create("dataset", "acme/data").commit({"a.parquet": b"abcdefgh"})
    hub.fault(match="GET", times=7, **fault)
    assert texts(pin("dataset", "acme/data", None), "a.parquet") == ["abcdefgh"]


def test_trouble_that_stays_ends_with_the_reason(hub: Hub) -> None:
    """A misspelt path that could be a name on the Hub waited for it for ten minutes without a hint."""
    hub.create("dataset", "acme/data").commit({"a.jsonl": b"a"})
    hub.fault(match="GET", status=503)
    set_patience(0.05)
    try:
        with pytest.raises(Unavailable, match=r"The Hub \(acme/data; there is no such file or directory here\) does"):
            pin("dataset", "acme/data", None)
        hub.faults.clear()
        pin("dataset", "acme/data", None)
        hub.fault(match="GET", status=503)
        with pytest.raises(Unavailable, match=r"The Hub \(acme/data\) does not answer: 503 Service"):
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


def test_a_file_that_was_cut_is_fetched_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a full disk, or a copy of the cache that was interrupted."""
    hub.create("dataset", "acme/data").commit({"a.parquet": b"abcdefgh"})
    found = pin("dataset", "acme/data", None)
    [path] = found.fetch(["a.parquet"])
    path.resolve().write_bytes(b"abcd")
    assert texts(found, "a.parquet") == ["abcdefgh"]
    path.resolve().write_bytes(b"abcd")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"all of a\.parquet of acme/data is not in the cache"):
        found.fetch(["a.parquet"])


BOB = "hf_bob_SECRET_0123456789"

REFUSALS = {
    "misspelt": ("acme/none", None, None, "there is no such directory, and the Hub shows you no model of this name"),
    "misspelt, with a token": ("acme/none", None, ANN, "If it is private, set HF_TOKEN to a token of an account that"),
    "private": ("acme/private", None, None, "or run 'hf auth login'."),
    "private, another account": ("acme/private", None, BOB, "If it is private, set HF_TOKEN to a token of an account"),
    "gated": ("acme/gated", None, None, "is gated. Accept its terms on its page, http://127.0.0.1:"),
    "gated, another account": ("acme/gated", None, BOB, "is gated, and the account of your token has no access to it."),
    "revision": ("acme/open", "v9", None, "has no branch, tag or commit 'v9' on the Hub. Check --revision."),
    "commit": ("acme/open", "1" * 40, None, f"acme/open: the Hub has no commit {'1' * 40}. It may have been"),
    "token": ("acme/open", None, "hf_old", "the Hub does not accept your token; it is invalid or has expired."),
    "name": ("acme/open/x", None, None, "cannot be read: Repo id must be in the form"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_read_is_refused_in_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    repo, revision, token, reason = REFUSALS[name]
    hub.create("model", "acme/open").commit({"config.json": b"{}"})
    hub.create("model", "acme/private", private=True, readers=("ann",)).commit({"config.json": b"{}"})
    hub.create("model", "acme/gated", gated=True, readers=("ann",)).commit({"config.json": b"{}"})
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UsageError) as refusal:
        pin("model", repo, revision).fetch(["config.json"])
    message = str(refusal.value)
    assert message.startswith(f"--model {repo}") and reason in message and "\n" not in message
    assert token is None or token not in message


def test_an_answer_that_nobody_expects_is_named_without_its_address(hub: Hub) -> None:
    """The address of a large file is signed: whoever has it may read the file."""
    hub.create("dataset", "acme/data").commit({"a.parquet": b"a"})
    hub.fault(match="GET /cdn", status=410)
    with pytest.raises(UsageError, match=r"^--dataset acme/data cannot be read: the Hub answered 410 \(injected\)\.$"):
        pin("dataset", "acme/data", None).fetch(["a.parquet"])
