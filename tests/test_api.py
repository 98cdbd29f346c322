"""Runs from Python: the rows of ``job run``, and a process that is left as it was."""

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import job
from job import JobError, RunConfig, UsageError, run
from job.engine.fake import FakeEngine
from job.errors import EXIT_STOPPED, EXIT_TOO_MANY_ERRORS
from job.launch.environment import EXPORTED
from job.run import api
from job.run.options import REQUIRED, values_of
from tests.oracle import greedy_texts
from tests.test_run import RunJob, read_output, write_jsonl

BASE = {"model": "m", "dataset": "d.jsonl", "output": "o"}


@pytest.fixture
def base(tiny_model: Any, tmp_path: Path) -> dict[str, Any]:
    """Return the options of a run of 30 rows on the fake engine, which reverses prompts."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"question {i}?"} for i in range(30)])
    return {
        "model": tiny_model(),
        "dataset": data,
        "output": tmp_path / "out",
        "engine": "fake",
        "rows_per_shard": 10,
        "progress": False,
    }


@pytest.fixture(autouse=True)
def left_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check that the process has the settings that it had, after every test that does not use the command line."""
    import datasets
    import transformers

    def settings() -> list[Any]:
        log = transformers.utils.logging
        return [
            [os.environ.get(name) for name in EXPORTED],
            [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)],
            [datasets.are_progress_bars_disabled(), log.is_progress_bar_enabled(), log.get_verbosity()],
        ]

    before = settings()
    yield
    assert "run_job" in request.fixturenames or settings() == before
    assert not api._in_progress.locked()


def test_one_call_completes_every_row(base: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    result = run(**base)
    assert (result.exit_code, result.output, result.is_done) == (0, str(base["output"]), True)
    assert (result.counts.num_rows, result.counts.num_errors) == (30, 0)
    dataset = result.dataset()
    assert dataset["completion"] == [f"question {i}?"[::-1] for i in range(30)]
    assert dataset.column_names == read_output(base["output"]).column_names
    assert capfd.readouterr() == ("", "")


def test_progress_and_summary_go_to_stderr(base: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    run(**base | {"progress": True})
    out, err = capfd.readouterr()
    assert out == "" and "30 rows in 3 shards, 0 of 30 rows already done" in err and "30 rows in 3 parts" in err


def test_the_real_engine_works_in_any_thread(base: dict[str, Any], tiny_model: Any) -> None:
    """As in a notebook whose main thread belongs to a server; with a path of each kind, and numbers of other types."""
    options = base | {"engine": "paged", "dtype": "float32", "max_new_tokens": 6, "limit": 4, "temperature": 0}
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(run(RunConfig(**_options(options)), progress=False)))
    thread.start()
    thread.join()
    dataset = results[0].dataset()
    assert dataset["completion"] == greedy_texts(tiny_model(), dataset["prompt"], 6, special=True)


def _options(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "progress"}


def test_the_command_line_and_python_continue_each_others_runs(run_job: RunJob, base: dict[str, Any]) -> None:
    """They mean the same with the same values: it is one run, and its manifest is not touched."""
    options = {"temperature": 1, "num_samples": 2, "stop": "zz", "extract": "[0-9]+", "aggregate": "majority"}
    run(**base, **options)
    manifest = (base["output"] / "manifest.json").read_bytes()
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (_options(base) | options).items()]
    result = run_job("run", *flags)
    assert result.exit_code == 0 and "all 60 rows are already done" in result.stderr
    assert run(**base, **options).exit_code == 0
    assert (base["output"] / "manifest.json").read_bytes() == manifest


def test_options_beside_a_configuration_win(base: dict[str, Any]) -> None:
    config = RunConfig(**_options(base))
    assert run(config, limit=5, progress=False).counts.num_rows == 5
    assert "limit" not in config.options and repr(config).startswith("RunConfig(model=")


def test_an_event_stops_a_run_and_the_next_call_ends_it(base: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    event, step = threading.Event(), FakeEngine.step
    with monkeypatch.context() as patch:
        patch.setattr(FakeEngine, "step", lambda self: (event.set(), step(self))[1])
        patch.setattr("job.engine.fake.FakeEngine.__init__.__kwdefaults__", {**KWDEFAULTS, "rows_per_step": 7})
        result = run(**base, stop_event=event)
    assert result.exit_code == EXIT_STOPPED and not result.is_done and result.counts.num_rows < 30
    with pytest.raises(JobError, match=r"out is not complete\. Call run again to finish it\."):
        result.dataset()
    assert len(run(**base).dataset()) == 30


KWDEFAULTS = dict(FakeEngine.__init__.__kwdefaults__)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_a_run_if_that_is_asked_for(
    base: dict[str, Any], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    step = FakeEngine.step
    monkeypatch.setattr(FakeEngine, "step", lambda self: (signal.raise_signal(number), step(self))[1])
    assert run(**base, handle_signals=True).exit_code == EXIT_STOPPED


def test_otherwise_ctrl_c_is_the_usual_exception_and_nothing_is_lost(
    base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, step = iter(range(3)), FakeEngine.step

    def interrupted(self: FakeEngine) -> Any:
        if next(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        self._rows_per_step = 4
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(FakeEngine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(**base)
    computed: list[int] = []
    monkeypatch.setattr(FakeEngine, "submit", lambda self, request: _submit(self, request, computed))
    assert len(run(**base).dataset()) == 30 and len(computed) == 30 - 8


SUBMIT = FakeEngine.submit


def _submit(engine: FakeEngine, request: Any, computed: list[int]) -> None:
    computed.append(request.row_idx)
    SUBMIT(engine, request)


def test_too_many_errors_are_a_result(base: dict[str, Any]) -> None:
    write_jsonl(base["dataset"], [{"prompt": text} for text in ("a", "b", None)])
    result = run(**base)
    assert (result.exit_code, result.is_done, dict(result.counts.errors)) == (
        EXIT_TOO_MANY_ERRORS,
        True,
        {"null_prompt": 1},
    )
    assert result.dataset()["error_kind"] == [None, None, "null_prompt"]


def test_what_cannot_work_is_raised_and_leaves_the_process_ready(base: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="The dataset has no column 'x'"):
        run(**base, prompt_column="x")
    assert run(**base).exit_code == 0


def test_one_run_at_a_time(base: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    messages, step = [], FakeEngine.step

    def step_and_run(self: FakeEngine) -> Any:
        with pytest.raises(UsageError) as caught:
            run(**base)
        messages.append(str(caught.value))
        return step(self)

    monkeypatch.setattr(FakeEngine, "step", step_and_run)
    assert run(**base).exit_code == 0
    assert messages[0].startswith("Another run is in progress in this process.")


def test_signals_need_the_main_thread(base: dict[str, Any]) -> None:
    errors: list[str] = []

    def work() -> None:
        with pytest.raises(UsageError) as caught:
            run(**base, handle_signals=True)
        errors.append(str(caught.value))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == ["handle_signals is True, but this is not the main thread. Use stop_event."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 3}, "There is no option 'max_tokens'. Did you mean max_new_tokens?"),
        ({"qqq": 3}, "There is no option 'qqq'. See job run --help."),
        ({"model": None}, "model must be given."),
        ({"model": None, "dataset": None, "modle": "m"}, "There is no option 'modle'. Did you mean model?"),
        ({"model": None, "dataset": None}, "model and dataset must be given."),
        ({"max_new_tokens": "3"}, "--max-new-tokens is '3'; it must be a whole number."),
        ({"max_new_tokens": 3.5}, "--max-new-tokens is 3.5; it must be a whole number."),
        ({"max_new_tokens": True}, "--max-new-tokens is True; it must be a whole number."),
        ({"max_new_tokens": 0}, "--max-new-tokens is 0; it must be at least 1."),
        ({"temperature": "hot"}, "--temperature is 'hot'; it must be a number."),
        ({"logprobs": 1}, "--logprobs is 1; it must be True or False."),
        ({"verbose": "yes"}, "--verbose is 'yes'; it must be True or False."),
        ({"dtype": "int3"}, "--dtype is 'int3'; it must be one of auto, float16"),
        ({"stop": ["a", 3]}, "--stop is 3; it must be a text."),
        ({"system_prompt": "\ud800"}, "--system-prompt is not UTF-8 text"),
        ({"kv_cache_memory": "much"}, "--kv-cache-memory is 'much'; it must be a size such as 20GiB or 512MiB."),
        ({"extract": "("}, "--extract '(' is not a regular expression"),
    ],
    ids=str,
)
def test_options_are_checked_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunConfig(**BASE | options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_values_become_those_of_the_command_line() -> None:
    import numpy as np

    given = RunConfig(
        **BASE,
        temperature=np.int64(1),
        max_new_tokens=np.int32(8),
        data_files=Path("a.csv"),
        limit=None,
        keep_columns=["a", "b"],
        choices=("yes", "no"),
        kv_cache_memory="1GiB",
        fused=False,
    ).checked
    assert given.sampling.temperature == 1.0 and type(given.sampling.temperature) is float
    assert given.sampling.max_new_tokens == 8 and type(given.sampling.max_new_tokens) is int
    assert given.data.keep_columns == ("a", "b") and given.data.data_files == ("a.csv",) and given.data.limit is None
    assert given.engine.kv_cache_memory == 2**30 and not given.engine.fused and given.engine.stall_timeout == 0
    [mode] = given.active_modes
    assert mode.given() == {"choices": ("yes", "no")}
    assert json.loads(values_of({**BASE, "system_prompt": {"a": "é"}})["system_prompt"]) == {"a": "é"}


def test_every_option_of_the_command_line_is_one_of_python() -> None:
    """With the same default."""
    from click import Context

    from job.cli import main

    context = Context(main.commands["run"])
    options = {option.name: option for option in main.commands["run"].params if option.name != "config"}
    values = values_of(BASE)
    assert values.keys() == options.keys()
    for name in options.keys() - set(REQUIRED):
        default = () if options[name].multiple else options[name].get_default(context)
        assert (values[name] or None) == (default or None), name
    own = set(inspect.signature(api.run).parameters) - {"config", "options"}
    assert own & options.keys() == set()


def test_the_package_is_callable_however_it_is_imported() -> None:
    """``job.run`` is a package: once one of its modules is imported, it takes the place of any function."""
    import job.run.process as process

    assert job.run is run is sys.modules["job.run"] and callable(run) and process.__package__ == "job.run"
    with pytest.raises(AttributeError, match="module 'job' has no attribute 'walk'"):
        job.walk  # noqa: B018


def test_importing_it_is_instant_and_needs_no_click() -> None:
    code = (
        "import sys, job; from job import run, RunConfig; job.run\n"
        f"RunConfig(**{BASE!r})\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) & {"torch", "transformers", "deepspeed", "datasets", "pyarrow", "click"} == set()


def test_what_is_not_a_configuration_is_refused(base: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"run got 'out'; it takes a RunConfig, or options by name"):
        run("out")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"stop_event is 3; it must be a threading.Event"):
        run(**base, stop_event=3)


def test_runs_in_one_process_leave_no_file_open(run_job: RunJob, base: dict[str, Any], tmp_path: Path) -> None:
    """Each run that handled signals left both ends of the sockets by which a thread hears of them."""
    args = [
        part for name, value in base.items() if name != "progress" for part in (f"--{name.replace('_', '-')}", value)
    ]

    def open_files() -> set[Path]:
        return set(Path("/proc/self/fd").iterdir())

    run(**base)
    assert run_job("run", *args, "--output", tmp_path / "first").exit_code == 0
    before = open_files()
    for idx in range(3):
        assert run(**{**base, "output": tmp_path / f"api-{idx}"}).exit_code == 0
        assert run_job("run", *args, "--output", tmp_path / f"command-{idx}").exit_code == 0
    end = time.monotonic() + 10
    while len(open_files()) > len(before) and time.monotonic() < end:  # the threads of earlier runs are ending
        time.sleep(0.01)
    assert len(open_files()) <= len(before)
