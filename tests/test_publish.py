"""``job publish``: the dataset on the Hub is the run's parts, after whatever happened on the way."""

import io
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

import job.engine.fake
from job.engine.fake import FakeEngine
from job.output.looking.found import find_run
from job.output.publishing import publisher
from job.output.publishing.publication import read_publication
from job.output.publishing.publisher import Publisher
from job.output.publishing.repository import Repository
from job.output.store.addresses import open_store
from job.output.store.local import LocalStore
from tests.conftest import ANN, Result
from tests.hub import Hub, Repo
from tests.test_run import read_output, write_jsonl
from tests.test_verify import change_cell, make_run, metadata_of, rewrite

RunJob = Callable[..., Result]

NAME = "ann/answers"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a place for the run that all tests of this module copy."""
    return {"run": tmp_path_factory.mktemp("finished") / "out"}


@pytest.fixture
def output(
    finished: dict[str, Path],
    run_job: RunJob,
    tiny_model: Any,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Return a finished run of 54 rows in 3 parts; ann has logged in, and nothing waits."""
    if not finished["run"].exists():
        make_run(run_job, tiny_model(), finished["run"])
    monkeypatch.setenv("HF_TOKEN", ANN)
    monkeypatch.setattr("job.remote.patience.time.sleep", lambda secs: None)
    return Path(shutil.copytree(finished["run"], tmp_path / "out"))


def of_hub(hub: Hub, name: str = NAME) -> Repo:
    return hub.repos["dataset", name]


def files_of(hub: Hub, name: str = NAME) -> dict[str, bytes]:
    """Return what is at the head of a repository."""
    repo = of_hub(hub, name)
    return {path: b"".join(file.blocks()) for path, file in repo.commits[repo.refs["main"]].items()}


def rows_of(hub: Hub, name: str = NAME) -> pa.Table:
    """Return the table as ``load_dataset`` reads it."""
    return datasets.load_dataset(name, split="train", download_mode="force_redownload").with_format("arrow")[:]


def uploads(hub: Hub) -> int:
    return len(hub.requests("PUT /lfs/"))


def take_part(output: Path, shard_idx: int) -> Callable[[], object]:
    """Take a part away, so that the run is unfinished. Returns how to finish it."""
    part = output / f"data/part-{shard_idx:05d}.parquet"
    aside = output.parent / f"{output.name}-{part.name}"
    part.rename(aside)
    return lambda: aside.rename(part)


def test_the_dataset_on_the_hub_is_the_runs_table(run_job: RunJob, hub: Hub, output: Path) -> None:
    result = run_job("publish", output, NAME)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{hub.url}/datasets/{NAME}: complete, 54 of 54 samples in 3 parts\n"
    assert rows_of(hub).to_pylist() == read_output(output).to_pylist()
    parts = [f"data/part-{idx:05d}.parquet" for idx in range(3)]
    assert set(files_of(hub)) == {".gitattributes", "README.md", *parts}
    assert all(files_of(hub)[part] == (output / part).read_bytes() for part in parts), "job verify can check a download"
    card = files_of(hub)["README.md"].decode()
    assert "Unfinished" not in card and f'load_dataset("{NAME}", split="train")' in card
    assert card == (output / "README.md").read_text().replace("path/or/id/of/this/directory", NAME)


def test_nothing_is_published_twice(run_job: RunJob, hub: Hub, output: Path) -> None:
    assert run_job("publish", output, NAME).exit_code == 0
    head, sent = of_hub(hub).refs["main"], uploads(hub)
    (output / "published.json").unlink()  # as after a kill just before it was written
    for _ in range(2):
        assert run_job("publish", output, NAME).exit_code == 0
    assert (of_hub(hub).refs["main"], uploads(hub)) == (head, sent)
    publication = read_publication(find_run(output).directory.store)
    assert publication is not None
    assert (publication.repository, publication.commit, publication.is_complete) == (NAME, head, True)
    assert len(publication.parts) == 3


def test_parts_are_added_while_the_run_goes_on(run_job: RunJob, hub: Hub, output: Path) -> None:
    finish = take_part(output, 1)
    result = run_job("publish", output, NAME)
    assert "40 of 54" not in result.stderr and "34 of 54 samples in 2 parts. The run is not finished" in result.stdout
    card = files_of(hub)["README.md"].decode()
    assert "**Unfinished: 34 of 54 rows so far.**" in card and "| rows | 34 |" in card
    assert len(rows_of(hub)) == 34
    finish()
    hub.log.clear()
    assert "complete" in run_job("publish", output, NAME).stdout
    assert uploads(hub) == 1
    assert rows_of(hub).to_pylist() == read_output(output).to_pylist()
    assert "Unfinished" not in files_of(hub)["README.md"].decode()


def test_every_publishes_until_the_run_is_complete(hub: Hub, output: Path) -> None:
    finish = [take_part(output, idx) for idx in range(3)]
    repository = Repository(NAME, is_private=False)
    repository.create()
    waits: list[float] = []

    def wait(secs: float) -> None:
        waits.append(secs)
        assert (len(waits) - 1 == 0) == ("data/part-00000.parquet" not in files_of(hub))
        assert "Unfinished" in files_of(hub)["README.md"].decode()
        finish[len(waits) - 1]()

    publication = Publisher(find_run(output), repository, print).publish_repeatedly(600, wait)
    assert publication.is_complete and waits == [600] * 3
    assert rows_of(hub).to_pylist() == read_output(output).to_pylist()


def test_many_parts_are_several_commits_each_with_its_card(
    run_job: RunJob, hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "MAX_FILES", 2)
    assert run_job("publish", output, NAME).exit_code == 0
    repo = of_hub(hub)
    cards = [tree["README.md"].source for tree in repo.commits.values() if "README.md" in tree]
    assert [b"Unfinished: 40 of 54" in card for card in cards if isinstance(card, bytes)] == [True, False]
    assert rows_of(hub).to_pylist() == read_output(output).to_pylist()


def test_a_kill_at_any_step_is_followed_by_the_rest(
    run_job: RunJob, hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th request that changes anything fails, and so do all that follow, for each n; every part is sent once."""
    monkeypatch.setattr(publisher, "MAX_FILES", 1)
    num_kills = 0
    while True:
        hub.heal()
        hub.fault(match="^(POST|PUT) ", status=500, skip=num_kills)
        if run_job("publish", output, NAME, "--hub-timeout", 0).exit_code == 0:
            break
        num_kills += 1
    assert num_kills > 5
    assert rows_of(hub).to_pylist() == read_output(output).to_pylist()
    assert sum(request.status == 200 for request in hub.requests("PUT /lfs/")) == 3


def test_an_answer_that_is_lost_is_not_a_second_commit(
    run_job: RunJob, hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub has committed, but the connection breaks before it says so: the retry finds the parts."""
    fault = hub.fault(match="POST .*/commit/", reset_after=0, times=1)
    assert run_job("publish", output, NAME).exit_code == 0
    assert fault.times == 0
    assert len(of_hub(hub).history) == 2, "the initial commit, and ours"
    assert rows_of(hub).to_pylist() == read_output(output).to_pylist()


def test_another_commit_in_between_is_not_overwritten(
    run_job: RunJob, hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher.time, "sleep", lambda secs: None)
    repo = hub.create("dataset", NAME, readers=("ann",))
    parents: list[str] = []
    original = Repository.commit

    def commit(self: Repository, head: Any, *args: Any) -> str | None:
        if not parents:
            parents.append(repo.commit({"notes.txt": b"mine", "README.md": b"# My own words\n"}))
        return original(self, head, *args)

    monkeypatch.setattr(Repository, "commit", commit)
    result = run_job("publish", output, NAME)
    assert result.exit_code == 0 and "has a README.md of its own, which stays as it is" in result.stderr
    files = files_of(hub)
    assert files["notes.txt"] == b"mine" and files["README.md"] == b"# My own words\n"
    assert rows_of(hub).to_pylist() == read_output(output).to_pylist()


def test_retried_rows_replace_the_old_ones(
    run_job: RunJob, tiny_model: Any, hub: Hub, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (poison_id,) = AutoTokenizer.from_pretrained(tiny_model())("~", add_special_tokens=False)["input_ids"]
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a~"}, {"prompt": "b"}])
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "retried"]
    args += ["--rows-per-shard", 1]
    with monkeypatch.context() as patch:
        patch.setattr(job.engine.fake, "FakeEngine", partial(FakeEngine, poison_id=poison_id))
        assert run_job(*args, "--max-error-rate", 1).exit_code == 0
    assert run_job("publish", tmp_path / "retried", NAME).exit_code == 0
    assert run_job("retry", tmp_path / "retried").exit_code == 0
    marked = run_job("publish", tmp_path / "retried", NAME)
    assert "The run is not finished" in marked.stdout and "Unfinished" in files_of(hub)["README.md"].decode()
    result = run_job(*args)
    assert result.exit_code == 0 and f"published   {NAME}: 1 of 2 parts" in result.stdout
    sent = uploads(hub)
    assert "complete, 2 of 2 rows" in run_job("publish", tmp_path / "retried", NAME).stdout
    assert uploads(hub) == sent + 1
    assert rows_of(hub)["completion"].to_pylist() == ["~a", "b"]


def test_status_says_where_a_run_is_published(run_job: RunJob, output: Path) -> None:
    assert "published" not in run_job("status", output).stdout
    finish = take_part(output, 2)
    assert run_job("publish", output, NAME).exit_code == 0
    finish()
    assert f"  published {NAME}: 2 of 3 parts" in run_job("status", output).stdout
    assert run_job("publish", output, NAME).exit_code == 0
    assert f"  published {NAME}: all 3 parts" in run_job("status", output).stdout
    found = json.loads(run_job("status", output, "--json").stdout)["published"]
    assert (found["repository"], found["parts"]) == (NAME, 3)


def test_another_runs_repository_is_refused(
    run_job: RunJob, tiny_model: Any, hub: Hub, output: Path, tmp_path: Path
) -> None:
    other = make_run(run_job, tiny_model(), tmp_path / "other", "--seed", 7)
    assert run_job("publish", other, NAME).exit_code == 0
    before = files_of(hub)
    for without in ((), ("README.md",)):
        of_hub(hub).commit(dict.fromkeys(without))
        result = run_job("publish", output, NAME)
        assert result.exit_code == 2 and "Publish to another repository" in result.stderr, without
    assert files_of(hub).items() <= before.items()


def test_the_same_run_started_anew_elsewhere_is_another_run(
    run_job: RunJob, hub: Hub, output: Path, tmp_path: Path
) -> None:
    """Its identity is the same, but samples may differ in the last bits, and the two would replace each other."""
    assert run_job("publish", output, NAME).exit_code == 0
    twin = Path(shutil.copytree(output, tmp_path / "twin"))
    manifest = json.loads((twin / "manifest.json").read_text())
    manifest["about"]["created"] = "2026-01-01T00:00:00+0000"
    (twin / "manifest.json").write_text(json.dumps(manifest))
    (twin / "published.json").unlink()
    change_cell(twin / "data/part-00000.parquet", 3, "completion", "other")
    result = run_job("publish", twin, NAME)
    assert result.exit_code == 2 and "holds another run: Run " in result.stderr


def test_files_that_readers_would_take_for_parts_are_refused_and_others_stay(
    run_job: RunJob, hub: Hub, output: Path
) -> None:
    repo = hub.create("dataset", NAME, readers=("ann",))
    repo.commit({"data/train.csv": b"a\n1\n", "data/part-7-spark.parquet": b"PAR1"})
    result = run_job("publish", output, NAME)
    assert result.exit_code == 2 and "data/part-7-spark.parquet, which is not of the run in" in result.stderr
    repo.commit({"data/part-7-spark.parquet": None})
    assert run_job("publish", output, NAME).exit_code == 0
    assert files_of(hub)["data/train.csv"] == b"a\n1\n"
    assert rows_of(hub).to_pylist() == read_output(output).to_pylist()


def test_a_private_repository_is_private_and_a_public_one_is_refused(run_job: RunJob, hub: Hub, output: Path) -> None:
    assert run_job("publish", output, NAME, "--private").exit_code == 0
    assert of_hub(hub).private
    assert run_job("publish", output, NAME).exit_code == 0, "it is there, so it needs no option"
    assert run_job("publish", output, "ann/open").exit_code == 0
    result = run_job("publish", output, "ann/open", "--private")
    assert result.exit_code == 2 and "is public" in result.stderr


@pytest.mark.parametrize(
    ("token", "name", "says"),
    [
        (None, NAME, "There is no token for the Hub. Set HF_TOKEN"),
        ("hf_stale", NAME, "The Hub does not accept the token"),
        (ANN, "bob/answers", "required permissions to perform this action. Set HF_TOKEN to"),
        (ANN, "bob/open", "This token may not write to bob/open"),
        (ANN, "bob/private", "bob/private"),
        (ANN, "answers", "is not the id of a repository. Write USER/NAME"),
        (ANN, "ann/a--b", "is not the id of a repository"),
        (ANN, "https://hf.co/ann/b", "is not the id of a repository"),
    ],
    ids=str,
)
def test_what_the_hub_does_not_allow_is_one_line(
    run_job: RunJob, hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, name: str, says: str
) -> None:
    hub.create("dataset", "bob/open")
    hub.create("dataset", "bob/private", private=True, readers=("bob",))
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    result = run_job("publish", output, name)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert says in result.stderr and "hf_" not in result.stderr.replace("hf auth", "")


def test_offline_and_unfinished_runs_are_refused_before_any_request(
    run_job: RunJob, hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for idx in range(3):
        take_part(output, idx)
    assert "no finished part yet" in run_job("publish", output, NAME).stderr
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in run_job("publish", output, NAME, "--every", "10m").stderr
    assert hub.requests() == []


@pytest.mark.parametrize(
    ("value", "says"),
    [("5", "write 5m"), ("ten", "is not a duration"), ("30s", "1 minute to 7 days"), ("200h", "7 days")],
)
def test_intervals_have_units(run_job: RunJob, output: Path, value: str, says: str) -> None:
    result = run_job("publish", output, NAME, "--every", value)
    assert result.exit_code == 2 and says in result.stderr


def test_a_hub_that_fails_for_a_while_is_waited_for_and_then_named(run_job: RunJob, hub: Hub, output: Path) -> None:
    for match in ("GET .*/tree/", "POST .*/preupload/", "PUT /lfs/", "POST .*/commit/"):
        hub.fault(match=match, status=503, times=8)
    hub.fault(match="POST /api/repos/create", reset_after=-1, times=2)
    assert run_job("publish", output, NAME).exit_code == 0
    hub.fault(match=NAME, status=503)
    result = run_job("publish", output, NAME, "--hub-timeout", 0)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.stderr
    assert f"The Hub ({NAME}) does not answer" in result.stderr


def test_an_upload_that_is_refused_is_one_line(run_job: RunJob, hub: Hub, output: Path) -> None:
    hub.fault(match="PUT /lfs/", status=409)
    result = run_job("publish", output, NAME)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.stderr
    assert f"{NAME} cannot be published to: " in result.stderr and "SIGNED" not in result.stderr


def test_an_address_of_the_hub_that_is_none_is_one_line(
    run_job: RunJob, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "hub.example")
    result = run_job("publish", output, NAME)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1) and "protocol" in result.stderr


def test_a_damaged_part_is_not_published(run_job: RunJob, hub: Hub, output: Path) -> None:
    change_cell(output / "data/part-00001.parquet", 0, "row_idx", 5)
    result = run_job("publish", output, NAME)
    assert result.exit_code == 1 and "part-00001.parquet has row_idx 5" in result.stderr
    assert "data/part-00001.parquet" not in files_of(hub)


def test_a_file_that_the_repository_ignores_is_named(run_job: RunJob, hub: Hub, output: Path) -> None:
    hub.create("dataset", NAME, readers=("ann",)).commit({".gitignore": b"data/part-00001.parquet"})
    result = run_job("publish", output, NAME)
    assert result.exit_code == 1 and "Does its .gitignore name it?" in result.stderr


def test_a_card_that_the_user_wrote_is_published_once_the_run_is_complete(
    run_job: RunJob, hub: Hub, output: Path
) -> None:
    finish = take_part(output, 0)
    (output / "README.md").write_text("# My words\n")
    assert run_job("publish", output, NAME).exit_code == 0
    assert b"Unfinished" in files_of(hub)["README.md"]
    finish()
    assert run_job("publish", output, NAME).exit_code == 0
    assert files_of(hub)["README.md"] == b"# My words\n"
    (output / "README.md").write_text("# My better words\n")
    assert run_job("publish", output, NAME).exit_code == 0
    assert files_of(hub)["README.md"] == b"# My better words\n"
    assert rows_of(hub).to_pylist() == read_output(output).to_pylist()
    of_hub(hub).commit({"README.md": b"# Written on the website\n"})
    assert run_job("publish", output, NAME).exit_code == 0
    assert files_of(hub)["README.md"] == b"# Written on the website\n"


def test_nothing_private_is_published(run_job: RunJob, hub: Hub, output: Path, tmp_path: Path) -> None:
    """Not even by the parts of older versions, whose metadata name the model's path; nor is a token kept anywhere."""
    part = output / "data/part-00001.parquet"
    rewrite(part, lambda table: table.replace_schema_metadata({b"job.model": b"/home/ann/models/secret"}))
    assert metadata_of(part)[b"job.model"] == b"/home/ann/models/secret"
    result = run_job("publish", output, NAME)
    assert result.exit_code == 0, result.stderr
    host = json.loads((output / "manifest.json").read_text())["about"]["host"]
    for path, content in files_of(hub).items():
        for private in ("/home/ann", str(tmp_path), host, ANN, "leases", "slurm_job_id"):
            assert private.encode() not in content, (path, private)
    assert pq.read_schema(pa.BufferReader(files_of(hub)["data/part-00001.parquet"])).metadata[b"job.model"] == b"secret"
    assert rows_of(hub).to_pylist() == read_output(output).to_pylist()
    kept = [path for path in output.rglob("*") if path.is_file()]
    assert not any(ANN.encode() in path.read_bytes() for path in kept) and ANN not in result.stdout + result.stderr
    sent = uploads(hub)
    (output / "published.json").unlink()
    assert run_job("publish", output, NAME).exit_code == 0
    assert uploads(hub) == sent, "the copy without the path is the same each time"


def test_a_part_that_is_replaced_while_it_is_uploaded(
    run_job: RunJob, hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent is one of the two, whole; the new one follows."""
    part, original = output / "data/part-00001.parquet", Repository.commit

    def commit(self: Repository, *args: Any) -> str | None:
        if not hub.requests("POST .*/commit/"):
            change_cell(output.parent / "new.parquet", 3, "completion", "new")
            (output.parent / "new.parquet").replace(part)
        return original(self, *args)

    shutil.copy(part, output.parent / "new.parquet")
    monkeypatch.setattr(Repository, "commit", commit)
    assert run_job("publish", output, NAME).exit_code == 0
    assert len(hub.requests("POST .*/commit/")) == 2
    assert rows_of(hub).to_pylist() == read_output(output).to_pylist()
    assert "new" in rows_of(hub)["completion"].to_pylist()


class Unbuffered(io.IOBase):
    """A file like those of fsspec's object stores."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)
        self.read, self.readinto = self._data.read, self._data.readinto
        self.seek, self.tell = self._data.seek, self._data.tell  # type: ignore[method-assign]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [io.BytesIO, Unbuffered])
def test_parts_that_are_no_local_files_are_published(
    run_job: RunJob, hub: Hub, output: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    """As in an object store, whose client has files of its own class."""
    original = LocalStore.open

    def open_remotely(self: LocalStore, name: str) -> Any:
        with original(self, name) as file:
            return kind(file.read())

    monkeypatch.setattr(LocalStore, "open", open_remotely)
    assert run_job("publish", output, NAME).exit_code == 0
    monkeypatch.undo()
    assert files_of(hub)["data/part-00002.parquet"] == (output / "data/part-00002.parquet").read_bytes()


def test_a_run_in_an_object_store_is_published(run_job: RunJob, hub: Hub, output: Path, s3: Any) -> None:
    place = "s3://bucket/runs/a"
    store = open_store(place)
    parts = sorted(output.glob("data/part-*"))
    for path in (output / "manifest.json", *parts[:2]):
        store.replace(path.relative_to(output).as_posix(), path.read_bytes())
    assert "40 of 54 samples in 2 parts" in run_job("publish", place, NAME).stdout
    store.replace("data/part-00002.parquet", parts[2].read_bytes())
    assert "complete" in run_job("publish", place, NAME).stdout
    assert uploads(hub) == 3
    assert rows_of(hub).to_pylist() == read_output(output).to_pylist()
    assert f"published {NAME}: all 3 parts" in run_job("status", place).stdout


def test_a_run_of_version_0_1_keeps_its_layout(run_job: RunJob, hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", ANN)
    output = Path(shutil.copytree(Path(__file__).parent / "runs" / "finished", tmp_path / "old"))
    result = run_job("publish", output, NAME)
    assert result.exit_code == 0, result.stderr
    assert sum(path.startswith("part-") for path in files_of(hub)) == len(list(output.glob("part-*")))
    assert len(rows_of(hub)) == find_run(output).plan.num_completions
