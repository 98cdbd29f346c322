"""Modes: what the table makes of options, which contradict each other, and that a new one is a file and a line."""

import difflib
import filecmp
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.config import DataConfig, ModelConfig, OutputConfig, PromptConfig, RunConfig, SamplingConfig
from job.data.prompts import PromptRenderer
from job.data.tokenization import Tokenization
from job.data.tokenizer import Tokenizer
from job.engine.fake import FakeEngine
from job.errors import UsageError
from job.modes import registry
from job.modes.aggregate import AggregateMode
from job.modes.bound import BoundModes
from job.modes.choices import ChoicesMode
from job.modes.completion import CompletionMode
from job.modes.mode import Answer, BoundMode, Mode, Setting
from job.modes.options import option
from job.modes.registry import MODES, active, modes_of
from job.modes.structured import StructuredMode
from job.output.parts.part_schema import BASE
from job.records import Generation, Request, Row, RowError, RowRejected
from job.tasks import Generate, SamplingParams, Score, Task
from tests.test_run import read_output, write_jsonl
from tests.tiny import make_tokenizer

PACKAGE = Path(__file__).parents[1] / "job"

TOY = '''"""A toy: counts the tokens of each prompt again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from job.modes.mode import Answer, BoundMode, Mode, Section, Setting
from job.modes.options import option
from job.records import Generation

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyMode(Mode):
    """Prompt tokens, counted twice."""

    name: ClassVar[str] = "toy"

    count_prompt_tokens: bool = option(False, "Count the tokens of each prompt a second time.")

    def bind(self, setting: Setting) -> BoundMode:
        return BoundToy()

    def measured(self) -> "list[pa.Field]":
        import pyarrow as pa

        return [pa.field("prompt_tokens_again", pa.int32())]

    def rules(self, batch: "pa.RecordBatch", is_error: "pa.Array") -> "Iterator[tuple[str, pa.Array]]":
        import pyarrow.compute as pc

        expected = pc.if_else(is_error, -1, batch["num_prompt_tokens"])
        yield "not the prompt's tokens again", pc.equal(pc.fill_null(batch["prompt_tokens_again"], -1), expected)


class BoundToy(BoundMode):
    """Has nothing to know."""

    def complete(self, answer: Answer, generation: Generation) -> Answer:
        again = {"prompt_tokens_again": len(generation.request.prompt_ids)}
        return replace(answer, values={**answer.values, **again})

    def sections(self) -> Sequence[Section]:
        return [Section(title="toy", lines=["prompt tokens are counted twice"], values={"toy": "twice"})]
'''

DRIVER = """
import json, sys
from click.testing import CliRunner
import job
from job.cli import main

results = []
for args in json.loads(sys.argv[1]):
    result = CliRunner().invoke(main, args)
    results.append([result.exit_code, result.stdout, result.stderr])
print(json.dumps({"package": job.__file__, "results": results}))
"""


@pytest.fixture(scope="module")
def with_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a copy of the package in which there is one mode more."""
    root = tmp_path_factory.mktemp("toy")
    shutil.copytree(PACKAGE, root / "job", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "job/modes/toy.py").write_text(TOY)
    table = root / "job/modes/registry.py"
    text = table.read_text()
    text = text.replace("import StructuredMode\n", "import StructuredMode\nfrom job.modes.toy import ToyMode\n")
    table.write_text(text.replace("    StructuredMode,\n", "    StructuredMode,\n    ToyMode,\n"))
    return root


def run_in(root: Path, *commands: Sequence[Any]) -> list[tuple[int, str, str]]:
    """Run commands of the package that is in a directory: exit code, stdout and stderr of each."""
    args = json.dumps([[str(arg) for arg in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, args],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert Path(answer["package"]).parent == root / "job"
    return [tuple(result) for result in answer["results"]]


def test_the_toy_is_one_file_and_one_entry(with_toy: Path) -> None:
    seen = filecmp.dircmp(PACKAGE / "modes", with_toy / "job/modes", ignore=["__pycache__"])
    assert (seen.left_only, seen.right_only, seen.diff_files) == ([], ["toy.py"], ["registry.py"])
    before, after = ((root / "modes/registry.py").read_text() for root in (PACKAGE, with_toy / "job"))
    changes = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]
    assert changes == ["+ from job.modes.toy import ToyMode", "+     ToyMode,"]


def test_a_new_mode_is_a_file_and_an_entry(with_toy: Path, tiny_model: Any, tmp_path: Path) -> None:
    """The way of a mode through the job, from ``--help`` to the card: nothing but the table was told of it."""
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": None if i == 3 else "x" * (i + 1)} for i in range(10)])
    out = tmp_path / "out"
    common = ["--model", tiny_model(), "--dataset", data, "--max-error-rate", 1, "--rows-per-shard", 5]
    common += ["--max-new-tokens", 2]
    run = ["run", *common, "--engine", "fake", "--output", out]
    preview = ["preview", *common, "--count-prompt-tokens"]
    helped, made, shown, shown_as_json, verified, refused = run_in(
        with_toy,
        ["run", "--help"],
        [*run, "--count-prompt-tokens"],
        preview,
        [*preview, "--json"],
        ["verify", out],
        run,
    )
    assert "--count-prompt-tokens" in helped[1] and "Count the tokens of each prompt a second time." in helped[1]
    assert made[0] == 0, made[2]

    table = read_output(out)
    assert table.schema.names == [*BASE.names, "prompt_tokens_again"]
    assert table.schema.field("prompt_tokens_again").type == pa.int32()
    assert table["prompt_tokens_again"].to_pylist() == [None if i == 3 else i + 1 for i in range(10)]
    assert table["completion"].to_pylist()[0] == "x", "the other modes work as before"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["identity"]["modes"] == {"toy": {"count_prompt_tokens": True}}
    assert "count-prompt-tokens: `true`" in (out / "README.md").read_text()

    assert shown[0] == 0 and "prompt tokens are counted twice" in shown[1], shown
    assert "prompt_tokens_again" in shown[1]
    values = json.loads(shown_as_json[1])
    assert values["toy"] == "twice" and "prompt_tokens_again" in json.dumps(values["schema"])
    assert verified[0] == 0 and "Correct and complete." in verified[1]
    assert refused[0] == 2 and "--count-prompt-tokens was on, now off" in refused[2]

    falsify(out / "data/part-00001.parquet", "prompt_tokens_again", row=2, value=99)
    (wrong,) = run_in(with_toy, ["verify", out])
    assert wrong[0] == 1
    assert "part-00001.parquet has a wrong row: row_idx 7: not the prompt's tokens again" in wrong[1]


def falsify(part: Path, name: str, *, row: int, value: Any) -> None:
    """Change a value of a part and nothing else: the schema, its metadata and the counts stay."""
    table = pq.read_table(part)
    values = table[name].to_pylist()
    values[row] = value
    column = pa.array(values, table.schema.field(name).type)
    changed = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    pq.write_table(changed.cast(table.schema), part, write_page_checksum=True)


def config(*modes: Mode, **sampling: Any) -> RunConfig:
    """Return a configuration with these modes; all others are as if nothing was said."""
    given = {type(mode): mode for mode in modes}
    return RunConfig(
        model=ModelConfig(model="m"),
        data=DataConfig(dataset="d"),
        prompt=PromptConfig(),
        sampling=SamplingConfig(**sampling),
        output=OutputConfig(output=Path("out")),
        modes=tuple(given.get(mode, mode()) for mode in registry.MODES),
    )


TWO = ChoicesMode(choices=("yes", "no"))
REGEX = StructuredMode(regex="a+")


def test_each_mode_has_a_name_of_its_own_and_options_with_help() -> None:
    assert len({mode.name for mode in MODES}) == len(MODES)
    options = [field for mode in MODES for field in fields(mode) if "option" in field.metadata]
    assert len({field.name for field in options}) == len(options), "an option belongs to one mode"
    assert all(field.metadata["option"].help.endswith((".", ")")) for field in options)


def test_nothing_asked_is_plain_completion() -> None:
    assert active(mode() for mode in MODES) == (CompletionMode(),)
    assert active([]) == (CompletionMode(),)


def test_modes_that_only_add_stand_beside_plain_completion_in_the_order_of_the_table() -> None:
    majority = AggregateMode(aggregate="majority")
    assert active([REGEX, majority]) == (CompletionMode(), majority, REGEX)
    assert active([CompletionMode(logprobs=True), REGEX]) == (CompletionMode(logprobs=True), REGEX)


def test_a_mode_that_answers_takes_the_place_of_plain_completion() -> None:
    assert active([AggregateMode(aggregate="majority"), TWO]) == (TWO, AggregateMode(aggregate="majority"))
    assert config(TWO).active_modes == (TWO,)


@pytest.mark.parametrize(
    ("mode", "given"),
    [
        (CompletionMode(), {}),
        (CompletionMode(logprobs=True), {"logprobs": True}),
        (ChoicesMode(), {}),
        (TWO, {"choices": ("yes", "no")}),
        (
            ChoicesMode(choices=("yes", "no"), choice_normalization="tokens", choice_calibration=("N/A",)),
            {"choices": ("yes", "no"), "choice_normalization": "tokens", "choice_calibration": ("N/A",)},
        ),
        (AggregateMode(), {}),
        (AggregateMode(aggregate="majority"), {"aggregate": "majority"}),
        (StructuredMode(), {}),
        (StructuredMode(json_schema="{}"), {"json_schema": "{}"}),
        (REGEX, {"regex": "a+"}),
        (StructuredMode(grammar="start: /a/"), {"grammar": "start: /a/"}),
    ],
)
def test_a_mode_is_asked_for_by_what_differs_from_its_defaults(mode: Mode, given: dict[str, Any]) -> None:
    assert mode.given() == given and mode.is_asked == bool(given)
    as_json = json.loads(json.dumps(given))
    assert type(mode).of(as_json) == mode, "the manifest gives it back"
    assert modes_of({mode.name: as_json}) == active([mode])


def test_what_a_version_does_not_know_of_a_mode_is_ignored() -> None:
    """So that a run of a newer version can be read; to continue it, manifests are compared."""
    values = {"choices": ["yes", "no"], "choice_temperature": 3}
    assert ChoicesMode.of(values) == TWO
    assert modes_of({"choices": values, "embedding": {"pooling": "mean"}}) == (TWO,)


@pytest.mark.parametrize(
    ("modes", "sampling", "message"),
    [
        ([TWO, CompletionMode(logprobs=True)], {}, "--logprobs and --choices were given together"),
        ([TWO, REGEX], {}, "--choices and --regex were given together"),
        ([TWO], {"stop": ("x",)}, "--stop and --choices were given together"),
        ([TWO], {"ignore_eos": True}, "--ignore-eos and --choices were given together"),
        ([REGEX], {"stop": ("x",)}, "--stop and --regex were given together"),
        ([REGEX], {"ignore_eos": True}, "--ignore-eos and --regex were given together"),
        ([StructuredMode(regex="a", grammar="start: /a/")], {}, "--regex and --grammar were given together"),
        ([StructuredMode(json_schema="{}", regex="a")], {}, "--json-schema and --regex were given together"),
        ([StructuredMode(regex="")], {}, "--regex is ''"),
        ([ChoicesMode(choice_normalization="tokens")], {}, "--choice-normalization was given without --choices"),
        ([ChoicesMode(choice_calibration=("N/A",))], {}, "--choice-calibration was given without --choices"),
        ([ChoicesMode(choices=("a", "b"), choice_normalization="words")], {}, "--choice-normalization is 'words'"),
        ([AggregateMode(aggregate="majority")], {}, "--aggregate majority needs several samples"),
        ([AggregateMode(aggregate="mean")], {"num_samples": 2}, "--aggregate is 'mean'"),
    ],
)
def test_modes_and_options_that_contradict_each_other_are_refused(
    modes: list[Mode], sampling: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        config(*modes, **sampling)
    assert message in str(caught.value) and "\n" not in str(caught.value)


class Bytes:
    """A tokenizer with a token for each byte."""

    inner = None

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    special_tokens: Mapping[str, int] = {}
    vocab_size = 256

    def decode(self, ids: Sequence[Sequence[int]], *, special_tokens: bool = False) -> list[str]:
        return [bytes(of_one).decode() for of_one in ids]

    def names(self, ids: Sequence[int]) -> list[str]:
        return [chr(idx) for idx in ids]


def bound(wanted: RunConfig) -> BoundModes:
    return BoundModes.of(wanted, Setting(tokens=Bytes(), sampling=wanted.sampling, prompt_suffix=""))


def generation(request_task: Any, **values: Any) -> Generation:
    request = Request(row_idx=0, sample_idx=0, prompt_ids=[1, 2], task=request_task)
    return Generation(**{"request": request, "token_ids": [], "finish_reason": "stop", **values})


def test_the_task_of_a_run_is_what_its_modes_make_of_generation() -> None:
    plain = bound(config(max_new_tokens=7, temperature=0.5)).task
    assert plain == Generate(params=SamplingParams(max_new_tokens=7, temperature=0.5))
    stopping = bound(config(CompletionMode(logprobs=True), stop=("x",))).task
    assert isinstance(stopping, Generate) and stopping.params.logprobs and stopping.ends_text is not None
    assert stopping.ends_text([list(b"ab"), list(b"ax")]) == [False, True]
    assert bound(config(TWO)).task == Score(choice_ids=(tuple(b"yes"), tuple(b"no")))
    assert bound(config(TWO)).length.num_tokens == 3 and bound(config(max_new_tokens=7)).length.num_tokens == 7


def test_an_error_goes_through_all_modes_as_it_is() -> None:
    error = RowError("engine_error", "no luck: it was: lost")
    modes = bound(config(CompletionMode(logprobs=True)))
    (row,) = modes.complete([generation(modes.task, error=error, finish_reason=None)], ["text"], ["p"])
    assert row.error is error and row.completion is None and row.values == {} and row.prompt == "p"


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyMode(Mode):
    """Works before the others."""

    name: ClassVar[str] = "early"
    early: bool = option(False, "Work before the others.")

    def bind(self, setting: Setting) -> BoundMode:
        return BoundEarly()


class BoundEarly(BoundMode):
    def complete(self, answer: Answer, generation: Generation) -> Answer:
        return replace(answer, values={"early": 1})


@pytest.mark.parametrize("mode", [CompletionMode(logprobs=True), TWO], ids=["completion", "choices"])
def test_a_mode_keeps_the_values_of_those_before_it(mode: Mode) -> None:
    """Completion and choices replaced all values; it did not show, because they are the first of the table."""
    wanted = config(mode)
    setting = Setting(tokens=Bytes(), sampling=wanted.sampling, prompt_suffix="")
    modes = BoundModes(config=wanted, modes=(BoundEarly(), mode.bind(setting)), params=wanted.sampling.params)
    made = generation(modes.task, token_ids=[97], logprobs=[-0.5], numbers=[-1.0, -2.0])
    (row,) = modes.complete([made], ["a"], [None])
    assert row.values["early"] == 1 and len(row.values) == 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthMode(Mode):
    """A column says how long each row's completion may be."""

    name: ClassVar[str] = "length"

    length_column: str | None = option(None, "Column with the maximum number of tokens.")

    def columns(self) -> tuple[str, ...]:
        return (str(self.length_column),)

    def bind(self, setting: Setting) -> BoundMode:
        return BoundLength(str(self.length_column))


class BoundLength(BoundMode):
    def __init__(self, column: str) -> None:
        self._column = column

    def refine(self, task: Task, values: Mapping[str, Any]) -> Task:
        assert isinstance(task, Generate)
        length = values[self._column]
        if not isinstance(length, int):
            raise RowRejected("invalid_parameter", f"column {self._column!r} is {length!r}")
        return replace(task, params=replace(task.params, max_new_tokens=length))


def test_a_mode_may_ask_something_else_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters per row are one file: a mode that names its columns and refines the task with a row's values."""
    monkeypatch.setattr(registry, "MODES", (*registry.MODES, LengthMode))
    wanted = config(LengthMode(length_column="n"))
    renderer = PromptRenderer(wanted.prompt, None, ["prompt", "n"], mode_columns=wanted.mode_columns)
    assert renderer.read_columns == ["prompt", "n"] and renderer.columns == ["prompt"]
    tokenization = Tokenization(
        Tokenizer(make_tokenizer()), bound(wanted).task_of, chat=False, max_prompt_tokens=9, on_long_prompt="error"
    )
    rows = [Row(row_idx=idx, values={"prompt": "abc", "n": n}) for idx, n in enumerate([2, 1, None])]
    encoded = tokenization.encode([renderer.render(row) for row in rows])
    engine = FakeEngine()
    for item in encoded:
        if item.request is not None:
            engine.submit(item.request)
    assert [len(generation.token_ids) for generation in engine.step()] == [2, 1]
    assert encoded[2].completion(0).error == RowError("invalid_parameter", "column 'n' is None")
    with pytest.raises(UsageError, match=r"no column 'n'\. Columns: prompt\."):
        PromptRenderer(wanted.prompt, None, ["prompt"], mode_columns=wanted.mode_columns)
