"""``job preview``: what it says is what ``job run`` then does; and the examples of ``--config`` work."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoConfig, AutoTokenizer

from job.data.formats.parquet import ParquetSource
from job.data.tokenizer import Tokenizer
from job.engine.model.kv_size import kv_bytes_per_token
from job.modes.choice_tokens import choice_token_ids
from job.modes.choices import BoundChoices
from job.observe.histogram import Histogram
from job.run.prompt_sample import sample_rows
from tests.conftest import Result
from tests.serving import serve
from tests.test_run import read_output, write_jsonl
from tests.tiny import make_tokenizer

RunJob = Callable[..., Result]

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "scripts/examples").glob("*.toml"))


def seen(run_job: RunJob, *args: Any) -> dict[str, Any]:
    result = run_job("preview", *args, "--json")
    assert result.exit_code == 0, result.stderr
    content: dict[str, Any] = json.loads(result.stdout)
    return content


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Return 20 rows: ten of 10 tokens, five of 20, two nulls, two empty ones, a number."""
    texts = ["x" * 10] * 10 + [None, ""] + ["x" * 20] * 5 + [None, " ", 3]
    return write_jsonl(tmp_path / "mixed.jsonl", [{"prompt": text, "n": idx} for idx, text in enumerate(texts)])


def test_prompts_are_shown_as_the_model_reads_them(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """The first that can be prompts: the row in between is told among the errors."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": text} for text in ("one\nline", None, "two", "three", "four")])
    args = ["--model", tiny_model(chat=True), "--dataset", data, "--system-prompt", "S"]
    content = seen(run_job, *args, "--num-prompts", 2)
    texts = [f"<system>S<eos><user>{text}<eos><assistant>" for text in ("one\nline", "two")]
    assert [(prompt["row_idx"], prompt["text"]) for prompt in content["prompts"]] == [(0, texts[0]), (2, texts[1])]
    assert [prompt["num_tokens"] for prompt in content["prompts"]] == [len(t) - 2 * len("eos>") for t in texts]
    text = run_job("preview", *args, "--num-prompts", 1).stdout
    assert text.startswith("row 0: 36 tokens\n  | <system>S<eos><user>one\n  | line<eos><assistant>\n\n")
    assert seen(run_job, *args, "--num-prompts", 0)["prompts"] == []


def test_a_terminal_is_not_told_what_to_do_by_a_dataset(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a\rb\x1b[31m\tc"}, {"prompt": ["\x1b]0;x\x07"]}])
    args = ["--model", tiny_model(), "--dataset", data]
    text = run_job("preview", *args).stdout
    assert "\\x1b[31m\tc\n" in text and "\x1b" not in text and "\r" not in text
    assert seen(run_job, *args)["prompts"][0]["text"] == "a\rb\x1b[31m\tc", "a program gets what is there"


def test_special_tokens_that_the_tokenizer_adds_are_visible(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    model = tmp_path / "model"
    model.mkdir()
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 0)])
    tokenizer.save_pretrained(model)
    (model / "config.json").write_text((tiny_model() / "config.json").read_text())
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "x"}])
    assert seen(run_job, "--model", model, "--dataset", data)["prompts"][0]["text"] == "<pad>x"


def test_what_it_says_of_rows_is_what_the_run_then_does(
    run_job: RunJob, tiny_model: Any, mixed: Path, tmp_path: Path
) -> None:
    args = ["--model", tiny_model(), "--dataset", mixed, "--max-prompt-tokens", 15, "--keep-columns", "n"]
    content = seen(run_job, *args)
    run_job("run", "--engine", "fake", *args, "--output", tmp_path / "out")
    table = read_output(tmp_path / "out")
    kinds = [error.split(":")[0] for error in table["error"].to_pylist() if error]
    told = {error["kind"]: error["num_rows"] for error in content["errors"]}
    told["prompt_too_long"] = content["too_long"]["errors"]
    assert told == {kind: kinds.count(kind) for kind in set(kinds)}
    assert [(field["name"], field["type"]) for field in content["schema"]] == [
        (field.name, str(field.type)) for field in table.schema
    ]
    assert content["prompts"][0]["num_tokens"] == table["num_prompt_tokens"][0].as_py()


def test_lengths_errors_and_what_happens_to_long_prompts(run_job: RunJob, tiny_model: Any, mixed: Path) -> None:
    args = ["--model", tiny_model(), "--dataset", mixed, "--max-prompt-tokens", 15]
    content = seen(run_job, *args)
    lengths = content["lengths"]
    assert (lengths["count"], lengths["min"], lengths["median"], lengths["p95"], lengths["max"]) == (15, 10, 10, 20, 20)
    assert sum(entry["count"] for entry in lengths["bins"]) == 15
    assert content["too_long"] == {"limit": 15, "policy": "error", "rows": 5, "cut": 0, "errors": 5}
    assert content["errors"] == [
        {"kind": "null_prompt", "num_rows": 2, "first_row_idx": 10, "first_detail": "column 'prompt' is null"},
        {"kind": "empty_prompt", "num_rows": 2, "first_row_idx": 11, "first_detail": "column 'prompt' is empty"},
        {"kind": "not_a_string", "num_rows": 1, "first_row_idx": 19, "first_detail": "column 'prompt' is a number: 3"},
    ]
    assert content["shared_prefix_tokens"] == 10 and content["kv_memory"]["longest_row"]["prompt_tokens"] == 10
    text = run_job("preview", *args).stdout
    assert "5 of 20 (25.0 %) have more than 15 tokens: 5 will be error rows (prompt_too_long)\n" in text
    assert "null_prompt 2 of 20 (10.0 %); the first is row 10: column 'prompt' is null\n" in text


def test_prompts_that_are_cut_are_shown_cut_but_counted_whole(run_job: RunJob, tiny_model: Any, mixed: Path) -> None:
    args = ["--model", tiny_model(), "--dataset", mixed, "--max-prompt-tokens", 15, "--on-long-prompt", "truncate-left"]
    content = seen(run_job, *args, "--num-prompts", 11)
    assert content["too_long"] == {"limit": 15, "policy": "truncate-left", "rows": 5, "cut": 5, "errors": 0}
    assert content["lengths"]["max"] == 20 and content["kv_memory"]["longest_row"]["prompt_tokens"] == 15
    assert content["prompts"][-1] == {"row_idx": 12, "text": "x" * 15, "num_tokens": 15, "was_cut": True}
    assert "row 12: 15 tokens, cut\n" in run_job("preview", *args, "--num-prompts", 11).stdout


def test_the_plan_is_that_of_the_run(run_job: RunJob, tiny_model: Any, mixed: Path) -> None:
    content = seen(
        run_job,
        *["--model", tiny_model(), "--dataset", mixed, "--limit", 17, "--rows-per-shard", 5, "--num-samples", 3],
        *["--temperature", 1],
    )
    assert content["plan"] == {"rows": 17, "shards": 4, "rows_per_shard": 5, "samples": 3, "completions": 51}
    assert content["sample"] == {"rows": 17, "which": "all"}


def test_nothing_is_written_and_a_run_in_output_is_left_alone(
    run_job: RunJob, tiny_model: Any, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of another configuration, which ``job run`` would refuse."""
    monkeypatch.chdir(tmp_path)
    args = ["--model", tiny_model(), "--dataset", mixed, "--output", tmp_path / "out", "--max-error-rate", 1]
    assert run_job("run", "--engine", "fake", *args).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert run_job("preview", *args, "--max-new-tokens", 7).exit_code == 0
    assert run_job("preview", *args[:4]).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_no_weights_are_needed(run_job: RunJob, tiny_model: Any, mixed: Path, tmp_path: Path) -> None:
    for file in tiny_model().iterdir():
        if not file.name.endswith(".safetensors"):
            (tmp_path / "model").mkdir(exist_ok=True)
            (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    assert seen(run_job, "--model", tmp_path / "model", "--dataset", mixed)["plan"]["rows"] == 20
    refused = run_job("run", "--model", tmp_path / "model", "--dataset", mixed, "--output", tmp_path / "out")
    assert refused.exit_code == 2 and "has no weights" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt-column", "absent"], "The dataset has no column 'absent'"),
        (["--max-new-tokens", 512], "the model has room for 512 tokens"),
        (["--choices", "one"], "which is not a file. Give at least two choices"),
        (["--examples", "absent.jsonl"], "cannot be read"),
        (["--rows", "0"], "neither a positive whole number nor 'all'"),
        (["--rows", "some"], "neither a positive whole number nor 'all'"),
        (["--num-prompts", "-1"], "--num-prompts"),
    ],
    ids=str,
)
def test_wrong_input_is_refused_as_by_run(
    run_job: RunJob, tiny_model: Any, mixed: Path, options: list[Any], message: str
) -> None:
    result = run_job("preview", "--model", tiny_model(), "--dataset", mixed, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_an_empty_dataset_can_be_looked_at(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    args = ["--model", tiny_model(), "--dataset", tmp_path / "empty.parquet", "--choices", "a", "--choices", "b"]
    content = seen(run_job, *args)
    assert content["lengths"] is None and content["prompts"] == [] and content["plan"]["shards"] == 1
    assert "no row has a prompt" in run_job("preview", *args).stdout


@pytest.mark.parametrize(
    ("num_rows", "wanted", "num_first", "max_runs"),
    [(1000, 100, 3, 40), (1000, 999, 3, 40), (41, 40, 3, 40), (1000, 1, 3, 40), (50, 30, 25, 3), (7, 3, 7, 3)],
)
def test_a_sample_is_spread_evenly_and_holds_no_row_twice(
    num_rows: int, wanted: int, num_first: int, max_runs: int
) -> None:
    runs = sample_rows(num_rows, wanted, num_first, max_runs=max_runs)
    rows = [row for run in runs for row in run]
    assert rows == sorted(set(rows)) and rows[: min(num_first, num_rows)] == list(range(num_first))
    assert wanted - 1 <= len(rows) <= wanted + num_first and rows[-1] < num_rows and len(runs) <= max_runs
    halves = sum(row < num_rows // 2 for row in rows) - num_first, sum(row >= num_rows // 2 for row in rows)
    assert wanted < 30 or abs(halves[0] - halves[1]) <= wanted // max_runs + num_first + 1


def test_all_rows_are_read_if_asked_or_if_there_are_no_more() -> None:
    assert sample_rows(10, None, 3, max_runs=2) == sample_rows(10, 10, 3, max_runs=2) == [range(10)]
    assert sample_rows(0, None, 3, max_runs=2) == sample_rows(0, 5, 3, max_runs=2) == []


@pytest.mark.parametrize(
    ("options", "which", "num_rows"),
    [
        (["--rows", 60], "spread", 62),
        (["--rows", "all"], "all", 3000),
        ([], "spread", 1000),
        (["--limit", 50, "--rows", 60], "all", 50),
    ],
    ids=str,
)
def test_a_sample_of_rows_is_read(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, options: list[Any], which: str, num_rows: int
) -> None:
    """From the beginning, which holds the prompts that are shown, to the end."""
    table = pa.table({"prompt": ["x" * (1 + row // 30) for row in range(3000)]})
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=700)
    content = seen(run_job, "--model", tiny_model(), "--dataset", tmp_path / "d.parquet", *options)
    assert content["sample"] == {"rows": num_rows, "which": which} and content["lengths"]["count"] == num_rows
    if which == "spread":
        assert content["lengths"]["min"] == 1 and content["lengths"]["max"] > 95
        assert 45 <= content["lengths"]["median"] <= 55


def test_a_parquet_file_is_read_in_few_runs(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"prompt": [f"x{row}" for row in range(5000)]}), tmp_path / "d.parquet")
    starts: list[int] = []
    read = ParquetSource.read

    def record(self: Any, start: int, *args: Any) -> Any:
        starts.append(start)
        return read(self, start, *args)

    monkeypatch.setattr(ParquetSource, "read", record)
    content = seen(run_job, "--model", tiny_model(), "--dataset", tmp_path / "d.parquet")
    assert content["sample"]["rows"] == 1000 and len(starts) == 1 + 40 and max(starts) > 4800


def test_choices_are_shown_as_they_are_scored(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "good?"}, {"prompt": "gone?"}])
    args = ["--model", tiny_model(), "--dataset", data, "--choices", "yes", "--choices", "no"]
    content = seen(run_job, *args)
    tokenizer = make_tokenizer()
    assert content["choices"] == [
        {"text": text, "token_ids": tokenizer(text)["input_ids"], "tokens": list(text)} for text in ("yes", "no")
    ]
    assert content["notes"] == [] and content["shared_prefix_tokens"] == 2
    assert content["kv_memory"]["new_tokens"] == 3, "the longest choice"
    assert "choices   'yes' is 3 tokens: y + e + s\n" in run_job("preview", *args).stdout


def joining_tokenizer() -> Any:
    """Return a tokenizer that has a token for " yes", as most have."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, "ye", "yes", "Ġyes"]
    vocab = {"<pad>": 0, "<eos>": 1} | {piece: idx + 2 for idx, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("y", "e"), ("ye", "s"), ("Ġ", "yes")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


@pytest.mark.parametrize(
    ("prompt", "choices", "is_odd"),
    [
        ("Answer: ", ("yes", "no"), True),
        ("Answer:", (" yes", " no"), False),
        ("Answer:\n", ("yes", "no"), False),
        ("Answer: ", (" yes", " no"), False),
        ("Say ye", ("s", "n"), True),
        ("long " * 1000 + "Answer: ", ("yes", "no"), True),
    ],
)
def test_a_border_within_a_usual_token_is_told(prompt: str, choices: tuple[str, ...], is_odd: bool) -> None:
    tokens = Tokenizer(joining_tokenizer())
    subject = BoundChoices(tokens=tokens, texts=choices, token_ids=choice_token_ids(tokens, choices, "\n"))
    note = subject.border_note(prompt)
    assert (note is not None) == is_odd
    if note is not None and choices[0] == "yes":
        assert note == (
            "after the first prompt, choice 'yes' is scored as ['Ġ', 'yes'], but in running text it would be "
            "['Ġyes']; end prompts without the space and begin choices with a space"
        )


def test_an_odd_border_is_told_by_run_and_preview_alike(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """By the first row's prompt; a first row without one tells nothing."""
    model = tmp_path / "model"
    model.mkdir()
    joining_tokenizer().save_pretrained(model)
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes((tiny_model() / name).read_bytes())
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "Answer: "}])
    args = ["--model", model, "--dataset", data, "--choices", "yes", "--choices", "no"]
    content = seen(run_job, *args)
    (note,) = content["notes"]
    assert note in run_job("run", "--engine", "fake", *args, "--output", tmp_path / "out").stderr
    assert f"note      {note}\n" in run_job("preview", *args).stdout
    write_jsonl(data, [{"prompt": "\ud800"}, {"prompt": "Answer: "}])
    assert seen(run_job, *args)["notes"] == []


@pytest.mark.parametrize("architecture", ["llama_uneven", "qwen3", "gemma2", "gpt_neox", "opt"])
def test_the_size_of_a_token_is_that_of_the_cache(tiny_model: Any, architecture: str) -> None:
    """The estimate, from the configuration alone, against what the layers of the model really store."""
    served = serve(tiny_model(architecture))
    stored = sum(shape.num_bytes for shape in served.shapes.values())
    config = AutoConfig.from_pretrained(tiny_model(architecture))
    assert kv_bytes_per_token(config, "float32", 1) == stored > 0
    assert kv_bytes_per_token(config, "bfloat16", 1) == stored // 2


def test_an_uneven_cut_counts_as_the_process_with_most_heads(tiny_model: Any) -> None:
    config = AutoConfig.from_pretrained(tiny_model("llama_uneven"))
    assert kv_bytes_per_token(config, "float32", 1) == 2 * 3 * 16 * 2 * 4
    assert kv_bytes_per_token(config, "float32", 2) == 2 * 2 * 16 * 2 * 4


def test_layers_without_keys_and_latent_attention_count_as_they_are() -> None:
    def config(**values: Any) -> Any:
        text = SimpleNamespace(
            num_hidden_layers=4, num_key_value_heads=8, hidden_size=64, num_attention_heads=8, **values
        )
        return SimpleNamespace(get_text_config=lambda: text, model_type="x")

    assert kv_bytes_per_token(config(), "float16", 1) == 4 * 8 * (8 + 8) * 2
    assert kv_bytes_per_token(config(layer_types=["linear_attention"] * 3 + ["full_attention"]), "float16", 1) == 256
    assert kv_bytes_per_token(config(head_dim=8, qk_head_dim=24, v_head_dim=16), "float16", 1) == 4 * 8 * (24 + 16) * 2
    assert kv_bytes_per_token(SimpleNamespace(get_text_config=SimpleNamespace, model_type="x"), "float16", 1) is None


def test_memory_is_that_of_prompt_and_completion(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": text} for text in ("a" * 10, "b" * 20, "c" * 30)])
    args = ["--model", tiny_model(), "--dataset", data, "--max-new-tokens", 50, "--dtype", "float32"]
    memory = seen(run_job, *args)["kv_memory"]
    assert (memory["bytes_per_token"], memory["new_tokens"]) == (2 * 2 * 2 * 32 * 4, 50)
    assert memory["median_row"] == {"prompt_tokens": 20, "bytes": 70 * 1024, "rows_per_gib": 2**20 // 70}
    assert memory["longest_row"] == {"prompt_tokens": 30, "bytes": 80 * 1024, "rows_per_gib": 2**20 // 80}
    halved = seen(run_job, *args, "--tensor-parallel-size", 2)["kv_memory"]
    assert halved["bytes_per_token"] == 512
    assert "512 bytes per token on each of 2 processes" in run_job("preview", *args, "--tensor-parallel-size", 2).stdout


def test_what_all_prompts_share_is_kept_once(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": text} for text in ("common1", "common22", "common333")])
    content = seen(run_job, "--model", tiny_model(), "--dataset", data, "--max-new-tokens", 2, "--dtype", "float32")
    assert content["shared_prefix_tokens"] == 6
    assert content["kv_memory"]["longest_row"] == {
        "prompt_tokens": 9,
        "bytes": 11 * 1024,
        "rows_per_gib": (2**20 - 6) // 5,
    }


def test_a_histogram_holds_every_number_once_and_ends_at_the_largest() -> None:
    for numbers in ([5], [0], [7] * 9, list(range(1000)), [100] * 99 + [100_000], [1, 10**6]):
        histogram = Histogram.of(numbers)
        assert sum(entry.count for entry in histogram.bins) == len(numbers) == histogram.count
        assert histogram.bins[0].first <= min(numbers) and histogram.bins[-1].last >= max(numbers)
        assert all(one.last + 1 == other.first for one, other in zip(histogram.bins, histogram.bins[1:], strict=False))
        assert len(histogram.bins) <= 14
        assert all(
            ("#" in line) == (entry.count > 0) for line, entry in zip(histogram.bars(), histogram.bins, strict=True)
        )


def test_a_few_outliers_do_not_flatten_a_histogram() -> None:
    histogram = Histogram.of([*range(100, 200)] * 10 + [100_000])
    assert (histogram.median, histogram.max) == (150, 100_000)
    assert len([entry for entry in histogram.bins if entry.count]) == 6
    assert histogram.bins[-1].count == 1 and histogram.bins[-1].last == 100_000


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_examples_of_config_files_run(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    """On the fake engine; what it writes obeys no schema and no regex, so of those only a preview is asked."""
    monkeypatch.chdir(ROOT)
    model = tiny_model(chat=True, max_position_embeddings=8192)
    args = ["--config", path, "--model", model, "--output", tmp_path / "out", "--limit", 6]
    content = seen(run_job, *args)
    assert content["plan"]["rows"] == content["sample"]["rows"] == len(content["prompts"]) + 3 == 6
    assert content["errors"] == [] and content["too_long"]["rows"] == 0
    if path.stem in ("json-schema", "majority"):
        return
    result = run_job("run", "--engine", "fake", *args)
    assert result.exit_code == 0, result.stderr
    table = read_output(tmp_path / "out")
    assert table["error"].null_count == len(table) == content["plan"]["completions"]
    assert table.column_names == [field["name"] for field in content["schema"]]


def test_there_is_an_example_of_each_mode() -> None:
    assert {path.stem for path in CONFIGS} == {
        *(
            "chat-template",
            "choices",
            "completion",
            "control",
            "embed",
            "few-shot",
            "json-schema",
            "majority",
            "penalties",
            "perplexity",
            "prefill",
            "reasoned-choices",
            "reasoning",
            "row-params",
            "retry-invalid",
            "scores",
            "self-consistency",
            "top-logprobs",
        )
    }


@pytest.mark.skipif("JOB_TEST_MODEL" not in os.environ, reason="JOB_TEST_MODEL names no model; scripts/test sets it")
def test_a_real_tokenizer_is_shown_with_its_special_tokens(run_job: RunJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that the examples of the few-shot configuration are shared, and why its choices begin with a space."""
    monkeypatch.chdir(ROOT)
    model = os.environ["JOB_TEST_MODEL"]
    args: list[Any] = ["--model", model, "--dtype", "bfloat16"]
    content = seen(run_job, "--config", "scripts/examples/completion.toml", *args)
    prompt = content["prompts"][0]
    assert prompt["text"].startswith("<|im_start|>system\n") and prompt["text"].endswith("<|im_start|>assistant\n")
    assert len(AutoTokenizer.from_pretrained(model)(prompt["text"])["input_ids"]) == prompt["num_tokens"]
    assert content["kv_memory"]["bytes_per_token"] == 30 * 3 * 64 * 2 * 2 and content["notes"] == []
    args = ["--config", "scripts/examples/few-shot.toml", *args]
    few_shot = seen(run_job, *args)
    assert few_shot["shared_prefix_tokens"] > 100 and few_shot["notes"] == []
    args += ["--prompt-template", "{{ text }} This is ", "--choices", "positive", "--choices", "negative"]
    (note,) = seen(run_job, *args)["notes"]
    assert "is scored as ['Ġ', 'positive'], but in running text it would be ['Ġpositive']" in note
