"""Encoder-decoders in static batches: equal to transformers row by row, whole and cut over two processes.

JOB_TEST_ARCHITECTURES=1 compares all of them; otherwise those that differ in more than their names.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, NllbTokenizer

from job.data.languages import languages_of, target_id
from job.data.tokenizer import Tokenizer
from job.engine.model.decoder import Decoder, decoder_of
from job.engine.model.tensor_parallel import check_tensor_parallel
from job.errors import UsageError
from tests.encoder_decoders import ENCODER_DECODERS, GERMAN, generated, make_encoder_decoder
from tests.ranks import Ranks
from tests.serving import ask, build_as_the_job_does, complete, finish, generate, tokens
from tests.test_run import RunJob, read_output
from tests.tiny import make_tokenizer

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "scripts/examples/encoder-decoders"

MAX_NEW_TOKENS = 12
USUAL = ("flan-t5", "bart", "m2m_100", "marian")
COMPARED = tuple(ENCODER_DECODERS) if os.environ.get("JOB_TEST_ARCHITECTURES") else USUAL
PROMPTS = [[*range(10 + idx, 10 + idx + size), 1] for idx, size in enumerate((3, 21, 1, 8, 21, 40))]
Model = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Makes a model once."""
    made: dict[str, Path] = {}

    def make(name: str, **changes: Any) -> Path:
        key = f"{name} {changes}"
        if key not in made:
            made[key] = make_encoder_decoder(tmp_path_factory.mktemp("model"), name, **changes)
        return made[key]

    return make


@pytest.fixture(scope="module")
def on_two_ranks(model: Model, two_ranks: Ranks) -> dict[str, Any]:
    """What the leader of two processes got of each model."""
    asked = {"engine": "chosen", "config": {"max_batch_rows": 4}, "params": {"max_new_tokens": MAX_NEW_TOKENS}}
    return two_ranks.run({name: {"model": str(model(name)), "prompts": PROMPTS, **asked} for name in COMPARED})


@pytest.mark.parametrize("name", COMPARED)
def test_greedy_equals_transformers(model: Model, name: str) -> None:
    """In padded batches; silently: there is no faster engine that a note could speak of."""
    engine, notes = build_as_the_job_does(model(name))
    expected = generated(model(name), PROMPTS, MAX_NEW_TOKENS)
    assert tokens(complete(engine, PROMPTS)) == expected
    assert len({tuple(ids) for ids in expected}) > 2 and not notes


@pytest.mark.parametrize("name", COMPARED)
def test_greedy_equals_transformers_on_two_ranks(model: Model, on_two_ranks: dict[str, Any], name: str) -> None:
    output = on_two_ranks[name]
    assert [ids for _, ids, _, _ in output["generations"]] == generated(model(name), PROMPTS, MAX_NEW_TOKENS)


def test_draws_do_not_depend_on_the_batch(model: Model) -> None:
    engine, _ = build_as_the_job_does(model("bart"))
    task = generate(temperature=0.7, seed=3, logprobs=True)
    requests = [ask(prompt, task, row_idx=row, sample_idx=idx) for row, prompt in enumerate(PROMPTS) for idx in (0, 1)]
    alone = [finish(engine, [request])[0] for request in requests]
    together = finish(engine, requests)
    assert tokens(together) == tokens(alone)
    assert len({tuple(ids) for ids in tokens(alone)}) > len(PROMPTS)
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


TEXTS = ["a short one", "another text, which is somewhat longer than the first", "x", "a short one", "é"]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A dataset of ``TEXTS``."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"id": text, "text": text}) + "\n" for text in TEXTS))
    return path


def command_of(model_dir: Path, data: Path, *options: Any, max_new_tokens: int | None = MAX_NEW_TOKENS) -> list[Any]:
    usual = ["--prompt-column", "text", "--dtype", "float32", "--device", "cpu"]
    usual += [] if max_new_tokens is None else ["--max-new-tokens", str(max_new_tokens)]
    return ["--model", model_dir, "--dataset", data, *usual, *options]


def expected_texts(model_dir: Path, texts: Sequence[str] = TEXTS, **options: Any) -> list[str]:
    """Return what plain transformers writes, tokenizer and all."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    return tokenizer.batch_decode(generated(model_dir, ids, MAX_NEW_TOKENS, **options), skip_special_tokens=True)


def test_a_run_writes_what_transformers_writes(run_job: RunJob, model: Model, texts: Path, tmp_path: Path) -> None:
    """It goes on where it was, and knows its language."""
    model_dir = model("m2m_100")
    command, output = ["run", *command_of(model_dir, texts)], ["--output", tmp_path / "run"]
    assert run_job(*command, *output, "--limit", 2).exit_code == 0
    result = run_job(*command, *output)
    assert result.exit_code == 0, result.stderr
    table = read_output(tmp_path / "run")
    assert table["completion"].to_pylist() == expected_texts(model_dir)
    assert table["num_prompt_tokens"].to_pylist() == [len(text.encode()) + 1 for text in TEXTS]
    assert run_job("verify", tmp_path / "run").exit_code == 0
    assert "language" not in (tmp_path / "run/manifest.json").read_text()
    changed = run_job(*command, *output, "--target-language", "deu_Latn")
    assert changed.exit_code == 2 and '--target-language was not set, now "deu_Latn"' in changed.stderr

    result = run_job(*command, "--target-language", "deu_Latn", "--output", tmp_path / "german")
    assert result.exit_code == 0, result.stderr
    german = read_output(tmp_path / "german")["completion"].to_pylist()
    assert german == expected_texts(model_dir, forced_bos_token_id=GERMAN) != table["completion"].to_pylist()
    assert '"target_language": "deu_Latn"' in (tmp_path / "german/manifest.json").read_text()
    assert "Answers are in the language `deu_Latn`" in (tmp_path / "german/README.md").read_text()
    assert "language" not in (tmp_path / "run/README.md").read_text().partition("## Prompts")[2]


def test_what_holds_for_causal_models_holds_here(run_job: RunJob, model: Model, texts: Path, tmp_path: Path) -> None:
    """Draws, a format, stop strings, log probabilities, a repetition penalty."""
    options = ["--num-samples", 2, "--temperature", 1, "--seed", 4, "--regex", "[a-c]{2,5}", "--logprobs"]
    result = run_job("run", *command_of(model("bart"), texts, *options), "--output", tmp_path / "drawn")
    assert result.exit_code == 0, result.stderr
    drawn = read_output(tmp_path / "drawn")
    assert all(re.fullmatch("[a-c]{2,5}", text) for text in drawn["completion"].to_pylist())
    assert len(drawn) == 2 * len(TEXTS) and len(set(drawn["completion"].to_pylist())) > 2
    assert [len(values) for values in drawn["token_logprobs"].to_pylist()] == drawn["num_completion_tokens"].to_pylist()

    options = ["--repetition-penalty", 1.3, "--stop", "\n"]
    result = run_job("run", *command_of(model("bart"), texts, *options), "--output", tmp_path / "penalized")
    assert result.exit_code == 0, result.stderr
    expected = expected_texts(model("bart"), repetition_penalty=1.3)
    assert read_output(tmp_path / "penalized")["completion"].to_pylist() == [text.split("\n")[0] for text in expected]


def test_what_older_models_say_in_their_configuration(model: Model, tmp_path: Path) -> None:
    """They have no generation_config.json, and transformers' ``AutoConfig`` drops it from theirs."""
    shutil.copytree(model("bart"), tmp_path / "model")
    (tmp_path / "model/generation_config.json").unlink()
    config = json.loads((tmp_path / "model/config.json").read_text())
    config |= {"forced_bos_token_id": 9, "num_beams": 4, "bad_words_ids": [[7], [8, 9]]}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    decoder = decoder_of("m", AutoConfig.from_pretrained(tmp_path / "model"), tmp_path / "model")
    assert decoder == Decoder(start_id=1, forced_id=9, never_ids=(7,), bad_words=((8, 9),), num_beams=4)


@pytest.mark.parametrize("name", ["flan-t5", "bart"])
def test_a_decoder_may_have_more_layers_than_its_encoder(model: Model, name: str) -> None:
    """The cache of transformers' ``generate`` has too few layers then: it fails, unless it uses none."""
    layers = {"num_layers": 1, "num_decoder_layers": 3} if name == "flan-t5" else {"encoder_layers": 1}
    expected = generated(model(name, **layers), PROMPTS, MAX_NEW_TOKENS, use_cache=False)
    assert tokens(complete(build_as_the_job_does(model(name, **layers))[0], PROMPTS)) == expected


def test_tokens_that_are_never_written(model: Model) -> None:
    """Marian's files forbid padding, which it would write: its logit is 0."""
    [usual] = tokens(complete(build_as_the_job_does(model("marian"))[0], PROMPTS[:1]))
    forbidden = model("marian", generation={"bad_words_ids": [[usual[0]], [7, 8]]})
    expected = generated(forbidden, PROMPTS, MAX_NEW_TOKENS, bad_words_ids=[[usual[0]]])
    found = complete(build_as_the_job_does(forbidden)[0], PROMPTS)
    assert tokens(found) == expected and not any(usual[0] in ids for ids in expected)


def test_long_sources(run_job: RunJob, model: Model, tmp_path: Path) -> None:
    """A source has all positions of the encoder, whatever the answer has; cut on the right, it keeps its end."""
    data = tmp_path / "long.jsonl"
    data.write_text("".join(json.dumps({"text": "ab" * size}) + "\n" for size in (63, 64, 100)))
    command = ["run", *command_of(model("bart"), data), "--max-error-rate", 1]
    assert run_job(*command, "--output", tmp_path / "errors").exit_code == 0
    errors = read_output(tmp_path / "errors")["error"].to_pylist()
    assert errors == [None, *(f"prompt_too_long: {size} tokens, the limit is 128" for size in (129, 201))]
    assert run_job(*command, "--on-long-prompt", "truncate-right", "--output", tmp_path / "cut").exit_code == 0
    expected = expected_texts(model("bart"), [("ab" * size)[:127] for size in (63, 64, 100)])
    assert read_output(tmp_path / "cut")["completion"].to_pylist() == expected


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bart", ["--choices", "yes", "--choices", "no"], "--choices does not work here: --model"),
        ("bart", ["--score-column", "id"], "--score-column does not work here"),
        ("bart", ["--reasoning"], "--reasoning does not work here"),
        ("bart", ["--chat"], "--chat does not work here"),
        ("bart", ["--system-prompt", "Be brief."], "--system-prompt does not work here"),
        ("bart", ["--prefill", "So"], "--prefill does not work here"),
        ("bart", ["--kv-cache-dtype", "fp8"], "needs the paged engine, which does not serve encoder-decoders"),
        ("bart", ["--quantize", "int8"], "--quantize int8 is not offered for encoder-decoders"),
        ("bart", ["--task", "embed"], "encoder-decoder, which --task embed cannot use"),
        ("bart", ["--max-new-tokens", "127"], "room for 128 tokens, with those that begin every answer. Use 126"),
        ("bart", ["--max-model-len", "129"], "has only 128 positions"),
        ("m2m_100", ["--target-language", "fra_Latin"], "Did you mean 'fra_Latn'? Languages: deu_Latn, eng_Latn, fra_"),
        ("m2m_100", ["--source-language", "fra_Latin"], "--source-language is 'fra_Latin', which is not a language"),
        ("m2m_100", ["--source-language", "fra_Latn"], "does not mark the language of a text"),
        ("llama", ["--target-language", "fra_Latn"], "is not an encoder-decoder. Leave it out"),
    ],
)
def test_what_is_refused(
    run_job: RunJob,
    model: Model,
    tiny_model: Callable[..., Path],
    texts: Path,
    tmp_path: Path,
    name: str,
    options: list[str],
    message: str,
) -> None:
    model_dir = tiny_model() if name == "llama" else model(name)
    result = run_job("run", *command_of(model_dir, texts, *options, max_new_tokens=None), "--output", tmp_path / "run")
    assert result.exit_code == 2 and message in " ".join(result.stderr.split()), result.stderr
    assert not (tmp_path / "run/manifest.json").exists()


def test_a_tokenizer_without_languages_says_where_they_go(model: Model) -> None:
    tokenizer = Tokenizer(make_tokenizer())
    with pytest.raises(UsageError, match=r"translate English to German.*>>fra<<"):
        target_id(tokenizer, "fra_Latn")
    assert target_id(tokenizer, "<eos>") == 1


def test_the_names_of_languages() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["__fr__", "fr_XX", "fra_Latn", "<mask>", "__"], special_tokens=True)
    assert list(languages_of(Tokenizer(tokenizer))) == ["fr", "fr_XX", "fra_Latn"]


def test_the_tokenizer_of_nllb_marks_languages(model: Model, run_job: RunJob, texts: Path, tmp_path: Path) -> None:
    """Its tokens are those of its own class, which needs no files for the languages."""
    shutil.copytree(model("m2m_100", vocab_size=300), tmp_path / "model")
    for path in (tmp_path / "model").glob("tokenizer*"):
        path.unlink()
    inner = NllbTokenizer(src_lang="eng_Latn", tgt_lang="fra_Latn")
    inner.save_pretrained(tmp_path / "model")
    options = ["--source-language", "fra_Latn", "--target-language", "deu_Latn", "--json"]
    preview = run_job("preview", *command_of(tmp_path / "model", texts, *options))
    content = json.loads(preview.stdout)
    assert preview.exit_code == 0 and content["prompts"][0]["text"].startswith("fra_Latn"), content["prompts"]
    assert content["notes"] == []
    assert target_id(Tokenizer(inner), "deu_Latn") == inner.convert_tokens_to_ids("deu_Latn")
    usual = json.loads(run_job("preview", *command_of(tmp_path / "model", texts, "--json")).stdout)
    assert usual["notes"] == ["prompts are read as eng_Latn; set --source-language for another language"]


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="this is for those who do not have the package")
@pytest.mark.parametrize(("kind", "file"), [("MarianTokenizer", "source.spm"), ("T5Tokenizer", "spiece.model")])
def test_a_package_that_a_tokenizer_needs_is_named(
    run_job: RunJob, model: Model, texts: Path, tmp_path: Path, kind: str, file: str
) -> None:
    """Of T5, transformers said that tiktoken was missing."""
    shutil.copytree(model("marian"), tmp_path / "model")
    for path in (tmp_path / "model").glob("tokenizer*"):
        path.unlink()
    (tmp_path / "model/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    for name, content in ((file, b"\n\x0e\n\x05<unk>"), ("target.spm", b""), ("vocab.json", b"{}")):
        (tmp_path / "model" / name).write_bytes(content)
    result = run_job("run", *command_of(tmp_path / "model", texts), "--output", tmp_path / "run")
    assert result.exit_code == 2
    assert "its tokenizer needs the package sentencepiece, which is not installed. Run pip install" in result.stderr


def test_a_preview_says_what_the_model_does(run_job: RunJob, model: Model, texts: Path) -> None:
    """Its authors' settings, its choice of a language, and how long texts may be: those of T5 have no fixed limit."""
    settings = {"num_beams": 4, "max_length": 31, "encoder_no_repeat_ngram_size": 3}
    model_dir = model("t5", generation=settings)
    preview = run_job("preview", *command_of(model_dir, texts, max_new_tokens=None), "--json")
    content = json.loads(preview.stdout)
    assert preview.exit_code == 0 and content["model"]["max_model_len"] == 512
    assert any("says: 4 beams; --num-beams 1 is greedy" in note for note in content["notes"])
    assert any("limits completions to 30 tokens, this run to 256" in note for note in content["notes"])
    assert any("encoder_no_repeat_ngram_size is not used" in note for note in content["notes"])
    assert any("set --target-language, such as deu_Latn" in note for note in content["notes"])
    longer = run_job("preview", *command_of(model_dir, texts, "--max-model-len", 3000), "--json")
    assert json.loads(longer.stdout)["model"]["max_model_len"] == 3000


@pytest.mark.parametrize("name", ["t5gemma", "nllb-moe", "switch_transformers", "led"])
def test_those_that_cannot_be_cut_say_why(name: str) -> None:
    with pytest.raises(UsageError, match=f"Model type '{name}' cannot run at --tensor-parallel-size 2: (its|AutoTP)"):
        check_tensor_parallel(AutoConfig.for_model(name), 2)


def test_a_model_that_is_incomplete_is_refused(run_job: RunJob, model: Model, texts: Path, tmp_path: Path) -> None:
    shutil.copytree(model("bart"), tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    del weights["model.decoder.layers.0.fc1.weight"]
    save_file(weights, tmp_path / "model/model.safetensors", {"format": "pt"})
    result = run_job("run", *command_of(tmp_path / "model", texts), "--output", tmp_path / "run")
    assert result.exit_code == 2 and "lacks 1 weights of Bart" in result.stderr, result.stderr


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_run(run_job: RunJob, model: Model, tmp_path: Path, monkeypatch: Any, path: Path) -> None:
    """On the fake engine."""
    monkeypatch.chdir(ROOT)
    model_dir = model("t5" if path.stem == "summary" else "m2m_100")
    short = ["--max-model-len", 600] if path.stem == "summary" else ["--max-new-tokens", 20]
    options = ["--model", model_dir, "--limit", 4, "--engine", "fake", "--output", tmp_path / "run", *short]
    result = run_job("run", "--config", path, *options)
    assert result.exit_code == 0, result.stderr
    assert read_output(tmp_path / "run")["error"].null_count == 4
