"""The table of engines: names, builders, and that nothing else asks for an engine by its name."""

import inspect
import re
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from job.config import ENGINES as CONFIGURED
from job.config import EngineConfig
from job.engine.fake import FakeEngine
from job.engine.registry import ENGINES, EngineKind
from job.errors import UsageError
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from tests.serving import ask, finish, innermost

JOB = Path(__file__).parents[1] / "job"


def test_what_a_user_can_name_is_what_the_table_has() -> None:
    assert tuple(ENGINES) == CONFIGURED
    assert EngineConfig().engine in ENGINES
    with pytest.raises(UsageError, match=f"--engine is 'none'; it must be one of {', '.join(ENGINES)}"):
        EngineConfig(engine="none")


@pytest.mark.parametrize("kind", ENGINES.values(), ids=ENGINES)
def test_each_builder_is_where_the_table_says_and_takes_what_it_is_given(kind: EngineKind) -> None:
    builder = getattr(import_module(kind.module), kind.builder)
    expected = inspect.signature(kind.build).parameters
    assert list(inspect.signature(builder).parameters) == list(expected)


@pytest.mark.parametrize("name", ENGINES)
def test_no_other_module_asks_for_an_engine_by_its_name(name: str) -> None:
    """A regression: five places in four files compared with "fake"."""
    comparison = re.compile(rf"""[!=]= ["']{name}["']|\bin \([^)]*["']{name}["']""")
    found = [path.name for path in JOB.rglob("*.py") if comparison.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_an_engine_without_a_model_is_built_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0.001")
    replica = Replica(read_process_info({}, 1))
    engine = ENGINES["fake"].build(None, EngineConfig(), replica, should_stop=lambda: False, note=print)
    inner = innermost(engine)
    assert isinstance(inner, FakeEngine) and inner._step_secs == 0.001
    assert [generation.token_ids for generation in finish(engine, [ask([5, 6])])] == [[6, 5]]


def test_the_fake_engine_asks_a_file_before_each_step_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, slept = tmp_path / "secs", []
    monkeypatch.setattr("job.engine.fake.time", SimpleNamespace(sleep=slept.append))
    engine = FakeEngine(step_secs=path)
    for pace in ("1.5", "0"):
        path.write_text(pace)
        engine.submit(ask([5]))
        engine.step()
    assert slept == [1.5, 0]


def test_processes_that_share_a_model_need_one() -> None:
    with pytest.raises(UsageError, match="--engine fake has no model to share"):
        EngineConfig(engine="fake", tensor_parallel_size=2)
    assert EngineConfig(tensor_parallel_size=2).needs_model
