"""The hub on loopback behaves as the clients expect, so that the tests that use it show something."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from tests.conftest import ANN
from tests.hub import Hub


def test_a_file_of_a_commit_is_read_after_the_branch_has_moved(hub: Hub) -> None:
    repo = hub.create("dataset", "acme/data")
    old = repo.commit({"a.parquet": b"old"})
    new = repo.commit({"a.parquet": b"new"})
    assert HfApi().dataset_info("acme/data").sha == new
    path = hf_hub_download("acme/data", "a.parquet", repo_type="dataset", revision=old)
    assert Path(path).read_bytes() == b"old"
    with pytest.raises(RevisionNotFoundError):
        HfApi().dataset_info("acme/data", revision="v9")


def test_private_and_gated_repositories_need_a_reader(hub: Hub) -> None:
    hub.create("model", "acme/private", private=True, readers=("ann",)).commit({"config.json": b"{}"})
    hub.create("model", "acme/gated", gated=True, readers=("ann",)).commit({"config.json": b"{}"})
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("acme/private")
    with pytest.raises(GatedRepoError):
        hf_hub_download("acme/gated", "config.json")
    for name in ("private", "gated"):
        assert Path(hf_hub_download(f"acme/{name}", "config.json", token=ANN)).read_bytes() == b"{}"


def test_the_token_is_not_sent_to_the_host_of_large_files(hub: Hub) -> None:
    hub.create("model", "acme/private", private=True, readers=("ann",)).commit({"model.safetensors": b"w" * 99})
    hf_hub_download("acme/private", "model.safetensors", token=ANN)
    assert {request.user for request in hub.requests("/cdn/")} == {None}
