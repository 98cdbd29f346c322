"""Vectors and classes: what plain transformers computes, in any batch and at both sizes; options, columns, refusals."""

import json
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from job.engine.model.tensor_parallel import check_tensor_parallel
from job.engine.paged.engine import PagedEngine
from job.engine.static.engine import StaticEngine
from job.errors import UsageError
from job.modes.embed import EmbedMode
from job.output.parts.part_schema import Columns
from job.output.parts.rows import from_batch, to_batch
from job.records import Completion, RowError
from job.tasks import Pool
from tests.headed import (
    DECODERS,
    ENCODERS,
    class_logits,
    make_headed,
    pooled,
    write_dense_layer,
    write_sentence_files,
)
from tests.ranks import Ranks
from tests.serving import MODES, ask, build_as_the_job_does, finish, innermost, load, make_engine, make_prompts, serve
from tests.test_run import RunJob, read_output, write_jsonl
from tests.tiny import CHAT_TEMPLATE, make_tokenizer

ALLOWED = 1e-5
"""The largest difference in fp32, relative to the largest number of a vector."""

TEXTS = ["What is it?", "a", "Ein längerer Text, der etwas sagt.", "What is that?"]

NUM_LABELS = 3

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def headed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that makes a model once."""
    parent = tmp_path_factory.mktemp("headed")

    @cache
    def make(name: str, task: str = "embed") -> Path:
        auto_class = AutoModel if task == "embed" else AutoModelForSequenceClassification
        return make_headed(parent / f"{name}-{task}", name, auto_class, num_labels=NUM_LABELS)

    return make


def assert_close(found: Any, expected: Any) -> None:
    for vector, wanted in zip(found, expected, strict=True):
        scale = max(1.0, float(wanted.abs().max()))
        assert float((torch.as_tensor(vector) - wanted).abs().max()) <= ALLOWED * scale


def expected_of(model_dir: Path, task: str, pooling: str, prompts: list[list[int]]) -> list[torch.Tensor]:
    return pooled(model_dir, prompts, pooling) if task == "embed" else class_logits(model_dir, prompts)


def asked(prompts: list[list[int]], pooling: str, size: int = 128) -> list[Any]:
    task = Pool(size=size, pooling=pooling)
    return [ask(prompt, task, row_idx=row_idx) for row_idx, prompt in enumerate(prompts)]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "weighted-mean", "last"])
@pytest.mark.parametrize("mode", MODES)
def test_vectors_are_those_of_transformers_in_any_batch(
    headed: Callable[..., Path], mode: str, pooling: str, overlap: bool
) -> None:
    """Also of rows that lose their pages, and of texts that are computed in chunks; a mean counts each token once."""
    options = {**MODES[mode], "config": {**MODES[mode]["config"], "overlap": overlap}}
    engine = make_engine(serve(headed("llama"), task="embed"), **options)
    prompts = make_prompts()
    generations = finish(engine, asked(prompts, pooling))
    assert all(g.error is None and not g.token_ids and g.finish_reason == "stop" for g in generations)
    assert_close([g.vector for g in generations], expected_of(headed("llama"), "embed", pooling, prompts))


@pytest.mark.parametrize("task", ["embed", "classify"])
@pytest.mark.parametrize("name", ["gemma2", "opt", "gpt_neox", *ENCODERS])
def test_architectures_are_served_as_transformers_computes_them(
    headed: Callable[..., Path], name: str, task: str
) -> None:
    """Decoders in the paged engine, encoders in static batches with their padding masked."""
    engine, notes = build_as_the_job_does(headed(name, task), task=task)
    assert isinstance(innermost(engine), StaticEngine if name in ENCODERS else PagedEngine) and not notes
    pooling = "last" if name not in ENCODERS else "cls" if task == "classify" else "mean"
    prompts = make_prompts()[::3]
    found = finish(engine, asked(prompts, pooling, 128 if task == "embed" else NUM_LABELS))
    assert_close([g.vector for g in found], expected_of(headed(name, task), task, pooling, prompts))


def test_a_layer_that_vectors_do_not_need_may_be_missing(tmp_path: Path) -> None:
    """A masked language model has no pooler, which ``AutoModel`` would fill with random numbers. It is left out."""
    model_dir = make_headed(tmp_path / "model", "bert", AutoModelForMaskedLM)
    engine, _ = build_as_the_job_does(model_dir, task="embed")
    prompts = make_prompts()[:2]
    found = finish(engine, asked(prompts, "cls"))
    assert_close([g.vector for g in found], pooled(model_dir, prompts, "cls"))
    served, _ = load(model_dir, task="embed")
    assert served.module.base.pooler is None


@pytest.mark.parametrize("task", ["embed", "classify"])
def test_a_decoder_that_reads_ahead_is_served_in_static_batches(tmp_path: Path, task: str) -> None:
    """Such as EmbeddingGemma: it is a decoder by its name, but every token sees all others."""
    auto_class = AutoModel if task == "embed" else AutoModelForSequenceClassification
    model_dir = make_headed(
        tmp_path / "model", "gemma3_text", auto_class, num_labels=NUM_LABELS, use_bidirectional_attention=True
    )
    engine, notes = build_as_the_job_does(model_dir, task=task)
    assert isinstance(innermost(engine), StaticEngine) and not notes
    pooling, prompts = "mean" if task == "embed" else "last", make_prompts()[::3]
    found = finish(engine, asked(prompts, pooling, 128 if task == "embed" else NUM_LABELS))
    expected = expected_of(model_dir, task, pooling, prompts)
    assert_close([g.vector for g in found], expected)
    changed = [[*prompt[:-1], prompt[-1] ^ 1] for prompt in prompts]
    later = pooled(model_dir, changed, "cls") if task == "embed" else class_logits(model_dir, changed)
    assert (
        float((later[0] - (pooled(model_dir, prompts, "cls") if task == "embed" else expected)[0]).abs().max()) > 0.01
    )


def test_a_row_that_is_not_finite_is_an_error_and_spoils_no_other(headed: Callable[..., Path]) -> None:
    served = serve(headed("llama"), task="embed")
    embedding = served.model.module.base.get_input_embeddings()
    before = embedding.weight.data.clone()
    try:
        embedding.weight.data[77] = torch.nan
        for pooling in ("mean", "last"):
            good, bad = finish(make_engine(served), asked([[5, 6, 7], [5, 6, 77, 8]], pooling))
            assert good.error is None and np.isfinite(good.vector).all()
            assert bad.error is not None and bad.error.kind == "non_finite_logits"
    finally:
        embedding.weight.data.copy_(before)


def test_two_processes_give_the_same(headed: Callable[..., Path], two_ranks: Ranks) -> None:
    """Of every architecture that may be cut: AutoTP cuts the layers and leaves the heads whole."""
    prompts = make_prompts()[::4]
    decoders = ["llama", "qwen3", *DECODERS]
    encoders = [name for name in ENCODERS if name not in ("mpnet", "modernbert")]
    cases = [(name, task) for name in (*decoders, *encoders) for task in ("embed", "classify")]
    jobs = [
        {
            "model": str(headed(name, task)),
            "model_config": {"task": task},
            "prompts": prompts,
            "size": 128 if task == "embed" else NUM_LABELS,
            "pooling": "cls" if (name in encoders and task == "classify") else "mean" if task == "embed" else "last",
            "engine": "chosen",
            "config": {"max_batch_rows": 4},
        }
        for name, task in cases
    ]
    results = two_ranks.run({f"{name} {task}": job for (name, task), job in zip(cases, jobs, strict=True)})
    for (name, task), job, result in zip(cases, jobs, results.values(), strict=True):
        assert_close(result["vectors"], expected_of(headed(name, task), task, str(job["pooling"]), prompts))


@pytest.mark.parametrize("name", ["mpnet", "modernbert"])
def test_what_cannot_be_cut_is_refused_with_the_reason(headed: Callable[..., Path], name: str) -> None:
    from transformers import AutoConfig

    with pytest.raises(UsageError, match=rf"{name}' cannot run at --tensor-parallel-size 2: its "):
        check_tensor_parallel(AutoConfig.from_pretrained(headed(name)), 2, is_encoder=True)


def flat_keys(values: Any) -> set[str]:
    """Return the names of all values in nested JSON that are not empty."""
    if not isinstance(values, dict):
        return set()
    return {name for name, value in values.items() if value != {}}.union(*map(flat_keys, values.values()))


def read_as_documented(output: Path) -> Any:
    """Return the vectors of a run, read by the code in the documentation."""
    page = (ROOT / "scripts/examples/README.md").read_text()
    code = page.partition("## Embeddings")[2].partition("```python\n")[2].partition("```")[0]
    assert "runs/vectors/data" in code
    values: dict[str, Any] = {}
    exec(textwrap.dedent(code).replace("runs/vectors/data", str(output / "data")), values)
    return values["vectors"]


def ids_of(text: str) -> list[int]:
    return list(make_tokenizer()(text)["input_ids"])


def test_embeddings_are_written(run_job: RunJob, headed: Callable[..., Path], tmp_path: Path) -> None:
    """A decoder's: in each type, with a row that has no text; the run is complete, goes on and can be exported."""
    rows = [{"prompt": text} for text in TEXTS] + [{"prompt": None}]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    expected = torch.stack(pooled(headed("llama"), [ids_of(text) for text in TEXTS], "last")).numpy()
    command = ("run", "--model", headed("llama"), "--dataset", data, "--task", "embed", "--dtype", "float32")
    for name, allowed in (("float32", 1e-5), ("float16", 1e-3), ("int8", 5e-3)):
        output = tmp_path / name
        options = ("--embedding-dtype", name, "--output", output, "--max-error-rate", 1, "--rows-per-shard", 3)
        result = run_job(*command, *options)
        assert result.exit_code == 0, result.stderr
        assert f"vectors     128 numbers in {name}, of the last token" in result.stdout
        assert run_job("verify", output).exit_code == 0
        assert run_job(*command, *options).exit_code == 0, "it is the same run"
        table = read_output(output)
        vectors = table.schema.field("embedding").type
        assert (vectors.list_size, str(vectors.value_type)) == (
            128,
            {"float32": "float", "float16": "halffloat"}.get(name, name),
        )
        assert table["error_kind"].to_pylist() == [None] * 4 + ["null_prompt"]
        assert table["completion"].to_pylist() == [""] * 4 + [None] and table["embedding"].to_pylist()[4] is None
        found = np.array(table["embedding"].to_pylist()[:4], np.float32)
        if name == "int8":
            found *= np.array(table["embedding_scale"].to_pylist()[:4], np.float32)[:, None]
        assert (read_as_documented(output) == found).all(), "the code in the documentation reads the same"
        part = pq.read_metadata(next((output / "data").glob("*.parquet"))).row_group(0)
        columns = {part.column(idx).path_in_schema: part.column(idx) for idx in range(part.num_columns)}
        assert (
            columns["embedding.list.element"].has_dictionary_page == (name == "int8")
            and columns["prompt"].has_dictionary_page
        )
        assert np.abs(found - expected).max() <= allowed * np.abs(expected).max()
    card = (tmp_path / "float32/README.md").read_text()
    assert "# Embeddings of " in card and "embedding-dtype: `float32`" in card
    assert "Sampling" not in card and "completion tokens" not in card, "nothing was drawn"
    assert not {"sampling", "max_new_tokens"} & flat_keys(json.loads((tmp_path / "float32/manifest.json").read_text()))
    undrawn = run_job("retry", tmp_path / "float32", "--cut")
    assert undrawn.exit_code == 2 and "This run has --task embed, which draws none." in undrawn.stderr
    refused = run_job(*command, "--pooling", "mean", "--output", tmp_path / "float32")
    assert refused.exit_code == 2 and '--pooling was "last", now "mean"' in refused.stderr
    exported = run_job("export", tmp_path / "float32", "--to", tmp_path / "rows.jsonl")
    assert exported.exit_code == 0, exported.stderr
    first = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert first["embedding"] == pytest.approx(expected[0].tolist(), abs=1e-4)


def test_the_files_of_sentence_transformers_say_how(run_job: RunJob, tmp_path: Path) -> None:
    """Pooling, length and prompts: what its ``encode`` does, worked out by hand. Options win."""
    model = make_headed(tmp_path / "model", "bert", AutoModel)
    prompts = {"query": "query: ", "document": ""}
    write_sentence_files(
        model, {"pooling_mode_mean_tokens": True}, prompts=prompts, usual="query", more=["Normalize"], max_seq_length=64
    )
    data = write_jsonl(tmp_path / "data.jsonl", [{"text": text} for text in (*TEXTS, "long" * 20)])
    command = ("run", "--model", model, "--dataset", data, "--prompt-column", "text", "--task", "embed")
    options = ("--dtype", "float32", "--max-error-rate", 1)

    def found(name: str, *more: Any) -> list[Any]:
        result = run_job(*command, *options, *more, "--output", tmp_path / name)
        assert result.exit_code == 0, result.stderr
        assert run_job("verify", tmp_path / name).exit_code == 0
        rows = read_output(tmp_path / name).to_pylist()
        assert rows[4]["error_kind"] == "prompt_too_long", "of 64 tokens"
        return [np.array(row["embedding"], np.float32) for row in rows[:4]]

    def wanted(before: str, pooling: str) -> list[torch.Tensor]:
        return pooled(model, [[258, *ids_of(before + text), 259] for text in TEXTS], pooling)

    unit = [vector / vector.norm() for vector in wanted("query: ", "mean")]
    assert_close(found("as it says"), unit)
    cut = run_job(*command, *options, "--on-long-prompt", "truncate-right", "--output", tmp_path / "cut")
    assert cut.exit_code == 0 and "1 of 5 were too long and were cut; 25 tokens were not read" in cut.stdout, cut.stdout
    last = read_output(tmp_path / "cut").to_pylist()[4]
    ids = [258, *ids_of("query: " + "long" * 20), 259]
    wanted_of_cut = pooled(model, [[*ids[:63], 259]], "mean")[0]
    assert last["num_cut_tokens"] == len(ids) - 64 == 25
    assert_close([last["embedding"]], [wanted_of_cut / wanted_of_cut.norm()])
    assert_close(found("as asked", "--prompt-name", "none", "--pooling", "cls", "--no-normalize"), wanted("", "cls"))
    preview = run_job("preview", *command[1:], "--json")
    assert json.loads(preview.stdout)["embedding"]["prefix"] == "query: "
    refused = run_job(*command, "--prompt-name", "quary", "--output", tmp_path / "run")
    assert refused.exit_code == 2 and "no prompt of this name. Did you mean query?" in refused.stderr


@pytest.mark.parametrize(("name", "pooling"), [("llama", "weightedmean"), ("bert", "cls")])
def test_layers_after_the_pooling_are_applied(run_job: RunJob, tmp_path: Path, name: str, pooling: str) -> None:
    """Dense layers, texts in lower case, and vectors that are cut to their first numbers; all of it is identity."""
    model = make_headed(tmp_path / "model", name, AutoModel)
    kind = {"weightedmean": "pooling_mode_weightedmean_tokens", "cls": "pooling_mode_cls_token"}[pooling]
    more = ["Dense", "Dense", "Normalize"]
    write_sentence_files(model, {kind: True}, more=more, prompts={"query": "Query: "}, usual="query", lowers_case=True)
    modules = json.loads((model / "modules.json").read_text())
    modules[3]["path"] = "3_Dense"
    (model / "modules.json").write_text(json.dumps(modules))
    first = write_dense_layer(model, "2_Dense", 128, 96, "Tanh")
    second = write_dense_layer(model, "3_Dense", 96, 64, "Identity")
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": text} for text in TEXTS])
    command = ("run", "--model", model, "--dataset", data, "--task", "embed", "--dtype", "float32", "--output")
    result = run_job(*command, tmp_path / "run", "--dimensions", 16)
    assert result.exit_code == 0, result.stderr
    assert "the first 16 of 64 numbers in float32" in result.stdout, result.stdout
    assert "a dense layer of 128 to 96 numbers, then Tanh, a dense layer of 96 to 64 numbers" in result.stdout
    ids = list(AutoTokenizer.from_pretrained(model)(["query: " + text.lower() for text in TEXTS])["input_ids"])
    expected = second(first(torch.stack(pooled(model, ids, "weighted-mean" if name == "llama" else "cls"))))[:, :16]
    table = read_output(tmp_path / "run")
    assert table.schema.field("embedding").type.list_size == 16
    assert_close(table["embedding"].to_pylist(), torch.nn.functional.normalize(expected))
    assert run_job("verify", tmp_path / "run").exit_code == 0
    assert run_job(*command, tmp_path / "run", "--dimensions", 16).exit_code == 0, "it is the same run"
    too_many = run_job(*command, tmp_path / "more", "--dimensions", 65)
    assert too_many.exit_code == 2 and "--dimensions is 65, but the model's vectors have 64 numbers." in too_many.stderr
    (model / "3_Dense").rename(tmp_path / "before")
    write_dense_layer(model, "3_Dense", 96, 64, "ReLU")
    changed = run_job(*command, tmp_path / "run", "--dimensions", 16)
    assert changed.exit_code == 2 and "is another run" in changed.stderr, changed.stderr
    (model / "3_Dense/model.safetensors").rename(model / "3_Dense/pytorch_model.bin")
    pickled = run_job(*command, tmp_path / "other")
    assert pickled.exit_code == 2 and "3_Dense/model.safetensors is missing. (Pickled weights" in pickled.stderr


@pytest.mark.parametrize(
    ("pooling", "more", "message"),
    [
        ({"pooling_mode": "max"}, [], "1_Pooling/config.json asks for the pooling max; --task embed serves cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, [], "asks for the pooling cls and mean"),
        ({"pooling_mode": "mean"}, ["WordWeights"], "its modules.json has WordWeights, and --task embed serves a"),
        ({"pooling_mode": "mean"}, ["Normalize", "Dense"], "has the order Transformer Pooling Normalize Dense, and"),
        ({"pooling_mode": "mean"}, ["Dense"], "2_Dense/config.json cannot be read"),
        ({"pooling_mode": "mean", "include_prompt": False}, [], "leaves its prompts out of the mean"),
    ],
)
def test_files_of_sentence_transformers_that_ask_for_more_are_refused(
    run_job: RunJob, tmp_path: Path, pooling: dict[str, Any], more: list[str], message: str
) -> None:
    model = make_headed(tmp_path / "model", "bert", AutoModel)
    write_sentence_files(model, pooling, prompts={"query": "q"}, usual="query", more=more)
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a"}])
    result = run_job("run", "--model", model, "--dataset", data, "--task", "embed", "--output", tmp_path / "run")
    assert result.exit_code == 2 and message in result.stderr


def test_labels_are_written(run_job: RunJob, headed: Callable[..., Path], tmp_path: Path) -> None:
    """By name, with the probabilities of all; several at once; and the raw score of a reward model."""
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": text} for text in (*TEXTS, None)])

    def run(name: str, model: Path) -> list[dict[str, Any]]:
        options = ("--task", "classify", "--dtype", "float32", "--max-error-rate", 1, "--output", tmp_path / name)
        result = run_job("run", "--model", model, "--dataset", data, *options)
        assert result.exit_code == 0, result.stderr
        assert run_job("verify", tmp_path / name).exit_code == 0
        run.stdout = result.stdout  # type: ignore[attr-defined]
        return read_output(tmp_path / name).to_pylist()

    ids = [ids_of(text) for text in TEXTS]
    rows = run("one", headed("llama", "classify"))
    for row, logits in zip(rows, class_logits(headed("llama", "classify"), ids), strict=False):
        assert row["label"] == row["completion"] == f"LABEL_{int(logits.argmax())}"
        assert row["label_probs"] == pytest.approx(logits.softmax(0).tolist(), abs=1e-5)
        assert row["label_prob"] == max(row["label_probs"])
    assert rows[4]["label"] is None and rows[4]["label_probs"] is None and rows[4]["error_kind"] == "null_prompt"
    part = pq.read_metadata(next((tmp_path / "one/data").glob("*.parquet")))
    assert json.loads(part.metadata[b"job.labels"]) == ["LABEL_0", "LABEL_1", "LABEL_2"]

    kind = {"num_labels": 2, "problem_type": "multi_label_classification"}
    model = make_headed(tmp_path / "many-model", "bert", AutoModelForSequenceClassification, **kind)
    rows = run("many", model)
    for row, logits in zip(rows, class_logits(model, [[258, *of_text, 259] for of_text in ids]), strict=False):
        probs = logits.sigmoid().tolist()
        assert row["label_probs"] == pytest.approx(probs, abs=1e-5)
        assert row["labels"] == [f"LABEL_{idx}" for idx, prob in enumerate(probs) if prob > 0.5]

    model = make_headed(tmp_path / "score-model", "llama", AutoModelForSequenceClassification, num_labels=1)
    rows = run("score", model)
    scores = [float(logits[0]) for logits in class_logits(model, ids)]
    assert [row["score"] for row in rows[:4]] == pytest.approx(scores, abs=1e-4) and rows[4]["score"] is None
    assert f"scores      mean {np.mean(scores):,.4g}" in run.stdout  # type: ignore[attr-defined]


def test_a_cross_encoder_reads_pairs(run_job: RunJob, tmp_path: Path) -> None:
    """Both texts at once, told apart by their types of tokens; what is no pair is an error row."""
    model = make_headed(tmp_path / "model", "bert", AutoModelForSequenceClassification, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs = [("What is it?", "a"), ("a", "Ein längerer Text."), ("a", "a"), ("a", None), ("a", "b" * 600)]
    data = write_jsonl(tmp_path / "data.jsonl", [{"query": query, "text": text} for query, text in pairs])
    options = ("--task", "classify", "--dtype", "float32", "--max-error-rate", 1, "--output", tmp_path / "run")
    command = ("run", "--dataset", data, "--prompt-column", "query", "--text-pair-column", "text", *options)
    result = run_job(*command, "--model", model)
    assert result.exit_code == 0, result.stderr
    assert run_job("verify", tmp_path / "run").exit_code == 0
    rows = read_output(tmp_path / "run").to_pylist()
    plain = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    for row, (query, text) in zip(rows[:3], pairs, strict=False):
        joined = tokenizer(query, text, return_tensors="pt", return_token_type_ids=True)
        assert 1 in joined["token_type_ids"]
        assert row["score"] == pytest.approx(float(plain(**joined).logits[0, 0]), abs=1e-4)
    assert [row["error_kind"] for row in rows[3:]] == ["null_text", "prompt_too_long"]
    left = run_job(*command, "--model", model, "--on-long-prompt", "truncate-left", "--output", tmp_path / "other")
    assert left.exit_code == 2 and "--text-pair-column and --on-long-prompt truncate-left were given" in left.stderr


def test_long_pairs_are_cut_as_cross_encoders_do_it(run_job: RunJob, tmp_path: Path) -> None:
    """The longer of both texts loses tokens; a column and the summary say how many. The next row is whole again."""
    model = make_headed(tmp_path / "model", "bert", AutoModelForSequenceClassification, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs = [("a" * 40, "b" * 50), ("a" * 70, "b" * 3), ("a" * 3, "b" * 70), ("a" * 30, "b" * 31)]
    data = write_jsonl(tmp_path / "data.jsonl", [{"query": query, "text": text} for query, text in pairs])
    columns = ("--prompt-column", "query", "--text-pair-column", "text")
    options = ("--task", "classify", "--dtype", "float32", "--on-long-prompt", "truncate-right", "--max-model-len", 64)
    result = run_job("run", "--model", model, "--dataset", data, *columns, *options, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    rows = read_output(tmp_path / "run").to_pylist()
    plain = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    num_cut = []
    for row, (query, text) in zip(rows, pairs, strict=True):
        options_of_pair = {"return_token_type_ids": True, "return_tensors": "pt", "max_length": 64}
        joined = tokenizer(query, text, truncation=True, **options_of_pair)
        assert row["score"] == pytest.approx(float(plain(**joined).logits[0, 0]), abs=1e-4)
        assert row["num_prompt_tokens"] == joined["input_ids"].shape[1]
        num_cut.append(len(tokenizer(query, text)["input_ids"]) - joined["input_ids"].shape[1])
    assert [row["num_cut_tokens"] for row in rows] == num_cut and num_cut[3] == 0 < min(num_cut[:3])
    line = f"3 of 4 were too long and were cut; {sum(num_cut)} tokens were not read"
    assert f"texts       {line}" in result.stdout
    assert line in run_job("status", tmp_path / "run").stdout and line in (tmp_path / "run/README.md").read_text()
    assert run_job("verify", tmp_path / "run").exit_code == 0


def test_a_reward_model_reads_whole_conversations(run_job: RunJob, tmp_path: Path) -> None:
    """To the end of the assistant's turn, and nothing after it."""
    model = make_headed(tmp_path / "model", "llama", AutoModelForSequenceClassification, num_labels=1)
    tokenizer = make_tokenizer(chat=True)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    tokenizer.save_pretrained(model)
    conversation = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]
    data = write_jsonl(tmp_path / "data.jsonl", [{"messages": conversation}])
    options = ("--task", "classify", "--dtype", "float32", "--output", tmp_path / "run")
    result = run_job("run", "--model", model, "--dataset", data, "--messages-column", "messages", *options)
    assert result.exit_code == 0, result.stderr
    [row] = read_output(tmp_path / "run").to_pylist()
    assert row["prompt"] == "<user>2 + 3?<eos><assistant>5<eos>"
    ids = tokenizer.apply_chat_template(conversation, return_dict=True)["input_ids"]
    assert row["score"] == pytest.approx(float(class_logits(model, [ids])[0][0]), abs=1e-4)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("embed", ("--choices", "a", "--choices", "b"), "--choices and --task embed were given together."),
        ("embed", ("--extract", "a"), "--extract and --task embed were given together. Leave out --extract: nothing"),
        ("embed", ("--num-samples", 2), "--num-samples and --task embed were given together."),
        ("embed", ("--prefill", "a"), "--prefill and --task embed were given together."),
        ("embed", ("--aggregate", "majority"), "--aggregate and --task embed were given together. Leave out"),
        ("embed", ("--retry-invalid", 2), "--retry-invalid and --task embed were given together. Leave out"),
        ("embed", ("--logprobs",), "--logprobs and --task embed were given together. Leave out"),
        ("embed", ("--stop", "a"), "--stop and --task embed were given together."),
        ("embed", ("--temperature", 1), "--temperature has no effect: --task embed does not use it"),
        ("embed", ("--pooling", "cls"), "--pooling cls: the first token of a decoder sees no other."),
        ("embed", ("--prompt-name", "query"), "--prompt-name query: the model has no prompt of this name. It has none"),
        ("embed", ("--max-model-len", 600), "--max-model-len is 600, but the model has only 512 positions."),
        ("generate", ("--pooling", "mean"), "--pooling was given without --task embed. Give both, or leave it out."),
        ("classify", (), "is a LlamaForCausalLM: it has no head that classifies."),
    ],
)
def test_what_has_no_vector_or_label_is_refused_in_one_line(
    run_job: RunJob, tiny_model: Callable[..., Path], tmp_path: Path, task: str, options: Any, message: str
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a"}])
    command = ("run", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "run", "--task", task)
    result = run_job(*command, *options)
    assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert not (tmp_path / "run/manifest.json").exists()


def test_a_batch_of_requests_is_not_embedded(run_job: RunJob, headed: Callable[..., Path], tmp_path: Path) -> None:
    body = {"model": "m", "input": "a"}
    request = {"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": body}
    data = write_jsonl(tmp_path / "data.jsonl", [request])
    options = ("--task", "embed", "--output", tmp_path / "run")
    result = run_job("run", "--model", headed("llama"), "--dataset", data, *options)
    assert result.exit_code == 2 and "requests to OpenAI's API, which --task embed does not answer" in result.stderr


def test_models_of_another_kind_are_refused(run_job: RunJob, headed: Callable[..., Path], tmp_path: Path) -> None:
    """Before their weights are read where their configuration shows it, or else since weights are missing."""
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a"}])

    def refusal(model: Path, *options: Any) -> str:
        result = run_job("run", "--model", model, "--dataset", data, "--output", tmp_path / "run", *options)
        assert result.exit_code == 2, result.stderr
        return result.stderr

    assert "ForSequenceClassification, which writes no text. Set --task classify." in refusal(
        headed("llama", "classify")
    )
    encoder = headed("bert")
    assert "is an encoder (bert), which writes no text. Set --task embed or classify." in refusal(encoder)
    fp8 = refusal(encoder, "--task", "embed", "--pooling", "mean", "--kv-cache-dtype", "fp8")
    assert "--kv-cache-dtype fp8 has no effect: an encoder keeps no keys and values. Leave it out." in fp8
    assert "has no modules.json of sentence-transformers" in refusal(headed("bert"), "--task", "embed")
    causal = make_headed(tmp_path / "causal", "llama", AutoModelForCausalLM)
    config = json.loads((causal / "config.json").read_text())
    (causal / "config.json").write_text(json.dumps({**config, "architectures": None}))
    assert "lacks 1 weights of LlamaForSequenceClassification, such as score.weight." in refusal(
        causal, "--task", "classify"
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_vectors_survive_the_journal(dtype: str) -> None:
    """They come back as arrays, also of a batch that is a slice, and a row without one has none."""
    mode = EmbedMode(size=3, pooling="mean", embedding_dtype=dtype)
    vectors = [np.array([1, -2, 3], dtype), None, np.array([4, 5, -6], dtype)]
    rows = [
        Completion(
            row_idx=idx,
            sample_idx=0,
            prompt="a",
            completion=None if vector is None else "",
            finish_reason=None if vector is None else "stop",
            num_prompt_tokens=1,
            num_completion_tokens=0,
            error=None if vector is not None else RowError("null_prompt", "it is null"),
            values={} if vector is None else {"embedding": vector},
        )
        for idx, vector in enumerate(vectors)
    ]
    batch = to_batch(rows, Columns(modes=(mode,)).journaled)
    for found, wanted in zip(from_batch(batch.slice(1)), vectors[1:], strict=True):
        if wanted is None:
            assert "embedding" not in found.values
        else:
            assert found.values["embedding"].dtype == dtype and (found.values["embedding"] == wanted).all()


def test_a_preview_of_an_encoder_speaks_of_no_cache(
    run_job: RunJob, headed: Callable[..., Path], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": text} for text in TEXTS])
    common = ("preview", "--dataset", data, "--task", "embed", "--pooling", "mean")
    of_encoder = run_job(*common, "--model", headed("bert")).stdout
    assert "KV cache" not in of_encoder and "shared" not in of_encoder
    of_decoder = run_job(*common, "--model", headed("llama")).stdout
    assert "KV cache" in of_decoder and "no beginning of the prompts is computed once" in of_decoder
