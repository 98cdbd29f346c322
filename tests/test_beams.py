"""Beam search of encoder-decoders: equal to transformers' ``generate`` row by row, whole and cut over two processes.

JOB_TEST_ARCHITECTURES=1 compares all of them; otherwise those that differ in more than their names.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from job.engine.logits.additions import additions_of
from job.engine.logits.sampling import SamplingBatch
from job.engine.static.beams import Candidate, Search
from job.tasks import BeamSearch, SamplingParams
from tests.encoder_decoders import ENCODER_DECODERS, load, make_encoder_decoder
from tests.ranks import Ranks
from tests.serving import ask, build_as_the_job_does, complete, finish, generate, innermost, make_engine, serve, tokens
from tests.test_run import RunJob, read_output

MAX_NEW_TOKENS = 12
EOS = [1, 9, 13, 17, 20]
"""Of a vocabulary of 24: random models write one often, at all lengths."""

USUAL = ("t5", "bart", "m2m_100", "marian")
COMPARED = tuple(ENCODER_DECODERS) if os.environ.get("JOB_TEST_ARCHITECTURES") else USUAL
PROMPTS = [
    [*(3 + 7 * (idx + place) % 20 for place in range(size)), 1] for idx, size in enumerate((3, 21, 1, 8, 21, 40))
]

SEARCHES: dict[str, dict[str, Any]] = {
    "as it is": {"num_beams": 4},
    "at once": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 2},
    "short": {"num_beams": 2, "length_penalty": -1.0, "early_stopping": "never", "repetition_penalty": 1.3},
    "long": {"num_beams": 5, "length_penalty": 1.5, "early_stopping": "never", "no_repeat_ngram_size": 1},
}
"""As ``generate`` takes them."""

Model = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Makes a model of few tokens once, which forces the end of its answers if it is a BART."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            generation = {"eos_token_id": EOS, "forced_bos_token_id": 7 if name in ("bart", "m2m_100") else None}
            generation["forced_eos_token_id"] = 13 if name == "bart" else None
            changes = {"vocab_size": 24, "generation": generation}
            made[name] = make_encoder_decoder(tmp_path_factory.mktemp("model"), name, **changes)
        return made[name]

    return make


def searched(model_dir: Path, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    """Return the ids that ``generate`` finds for each prompt alone, after those that the decoder begins with."""
    model = load(model_dir)
    options = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, **options}
    num_begin = 1 if model.generation_config.forced_bos_token_id is None else 2
    options["max_new_tokens"] += num_begin - 1
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        outputs.append(output[0, num_begin:].tolist())
    return outputs


def task_of(options: dict[str, Any]) -> BeamSearch:
    """Return the task for options of ``generate``."""
    beams = dict(options)
    params = {name: beams.pop(name) for name in ("no_repeat_ngram_size", "repetition_penalty") if name in beams}
    beams["early_stopping"] = str(beams.get("early_stopping", False)).lower()
    return BeamSearch(params=SamplingParams(max_new_tokens=MAX_NEW_TOKENS, **params), **beams)


@pytest.mark.parametrize("name", COMPARED)
def test_beams_equal_transformers(model: Model, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In padded batches of rows that end after different numbers of tokens, not row by row after a failure."""
    engine, notes = build_as_the_job_does(model(name))
    monkeypatch.setattr(innermost(engine), "_bisect", lambda batch, reason: pytest.fail(reason))
    lengths = set()
    for options in SEARCHES.values():
        innermost(engine)._tasks[BeamSearch].max_rows = 4 * options["num_beams"]
        found = complete(engine, PROMPTS, task_of(options))
        assert tokens(found) == searched(model(name), PROMPTS, **options), options
        lengths |= {len(ids) for ids in tokens(found)}
        assert {g.finish_reason for g in found} <= {"stop", "length"}
    assert len(lengths) > 4 and not notes


@pytest.fixture(scope="module")
def on_two_ranks(model: Model, two_ranks: Ranks) -> dict[str, Any]:
    """What the leader of two processes got of each model."""
    asked = {"engine": "chosen", "config": {"max_batch_rows": 16}, "params": {"max_new_tokens": MAX_NEW_TOKENS}}
    beams = {"num_beams": 4, "length_penalty": 0.5}
    jobs = {name: {"model": str(model(name)), "prompts": PROMPTS, "beams": beams, **asked} for name in COMPARED}
    return two_ranks.run(jobs)


@pytest.mark.parametrize("name", COMPARED)
def test_beams_equal_transformers_on_two_ranks(model: Model, on_two_ranks: dict[str, Any], name: str) -> None:
    output = on_two_ranks[name]
    expected = searched(model(name), PROMPTS, num_beams=4, length_penalty=0.5)
    assert [ids for _, ids, _, _ in output["generations"]] == expected


def test_a_forced_end_is_a_cut(model: Model) -> None:
    """BART's files name a token that ends what reaches its limit: with beams and without, as in transformers."""
    engine, _ = build_as_the_job_does(model("bart"))
    for task, num_beams in ((task_of({"num_beams": 4}), 4), (generate(max_new_tokens=MAX_NEW_TOKENS), 1)):
        found = complete(engine, PROMPTS, task)
        assert tokens(found) == searched(model("bart"), PROMPTS, num_beams=num_beams)
        cut = [generation.token_ids for generation in found if len(generation.token_ids) == MAX_NEW_TOKENS]
        assert {ids[-1] for ids in cut} == {13}
        assert [g.finish_reason == "length" for g in found] == [len(g.token_ids) == MAX_NEW_TOKENS for g in found]


def test_limits_of_one_batch_may_differ(model: Model) -> None:
    engine, _ = build_as_the_job_does(model("marian"))
    innermost(engine)._tasks[BeamSearch].max_rows = 64
    limits = [1, 3, 12, 5, 7, 2]
    tasks = [BeamSearch(params=SamplingParams(max_new_tokens=limit), num_beams=4) for limit in limits]
    found = finish(engine, [ask(PROMPTS[row], task, row_idx=row) for row, task in enumerate(tasks)])
    for prompt, limit, ids in zip(PROMPTS, limits, tokens(found), strict=True):
        assert [ids] == searched(model("marian"), [prompt], num_beams=4, max_new_tokens=limit)


def test_a_batch_that_does_not_fit_is_made_smaller(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each beam counts as a row."""
    engine, _ = build_as_the_job_does(model("marian"))
    static = innermost(engine)
    task = static._tasks[BeamSearch]
    assert task.room(ask(PROMPTS[0], task_of({"num_beams": 4}))).num_tokens == 4 * (
        len(PROMPTS[0]) + 1 + MAX_NEW_TOKENS
    )
    task.max_rows, module, sizes = 24, task._model.module, []
    forward = module.forward

    def cramped(**kwargs: Any) -> Any:
        sizes.append(len(kwargs["decoder_input_ids"]))
        if sizes[-1] > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**kwargs)

    monkeypatch.setattr(module, "forward", cramped)
    assert tokens(complete(engine, PROMPTS, task_of({"num_beams": 4}))) == searched(
        model("marian"), PROMPTS, num_beams=4
    )
    assert max(sizes) == 24 and sizes[-1] <= 12


def test_rows_that_are_done_leave_the_batch(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = build_as_the_job_does(model("marian"))
    task = innermost(engine)._tasks[BeamSearch]
    task.max_rows, module, sizes = 64, task._model.module, []
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda **kw: (sizes.append(len(kw["decoder_input_ids"])), forward(**kw))[1])
    limits = (2, 4, 4, 8)
    tasks = [BeamSearch(params=SamplingParams(max_new_tokens=limit, ignore_eos=True), num_beams=2) for limit in limits]
    finish(engine, [ask(PROMPTS[row], task, row_idx=row) for row, task in enumerate(tasks)])
    assert sizes == [4, 8, 6, 6, 2, 2, 2, 2], "sources first, then beams of those that go on"


def test_a_stop_leaves_unfinished_rows(model: Model) -> None:
    engine, _ = build_as_the_job_does(model("marian"))
    static, asked = innermost(engine), []
    static._tasks[BeamSearch]._should_stop = lambda: asked.append(1) or len(asked) > 3
    task = BeamSearch(params=SamplingParams(max_new_tokens=8, ignore_eos=True), num_beams=2)
    engine.submit(ask(PROMPTS[0], task))
    assert engine.step() == [] and engine.num_pending == 1
    static._tasks[BeamSearch]._should_stop = lambda: False
    assert len(tokens(engine.step())[0]) == 8


def test_a_row_with_nothing_possible_is_an_error(model: Model) -> None:
    engine, _ = build_as_the_job_does(model("marian"))
    params = SamplingParams(max_new_tokens=8, bad_token_ids=tuple((token,) for token in range(24)))
    [generation] = complete(engine, PROMPTS[:1], BeamSearch(params=params, num_beams=2))
    assert "all tokens that could come next are ruled out" in str(generation.error)


def test_logits_that_are_not_finite_end_one_row_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = build_as_the_job_does(model("marian"))
    task = innermost(engine)._tasks[BeamSearch]
    module, forward = task._model.module, task._model.module.forward
    task.max_rows = 64

    def broken(**kwargs: Any) -> Any:
        output = forward(**kwargs)
        if len(output.logits) == 3:  # the first step: rows come longest first
            output.logits[1] = float("nan")
        return output

    monkeypatch.setattr(module, "forward", broken)
    found = complete(engine, [PROMPTS[1], PROMPTS[3], PROMPTS[0]], task_of({"num_beams": 4}))
    assert [g.error and g.error.kind for g in found] == [None, "non_finite_logits", None]


def test_a_search_follows_its_best_candidates() -> None:
    """Two beams; one that ends outside the best two does not count."""
    task = BeamSearch(params=SamplingParams(max_new_tokens=3), num_beams=2)
    search = Search(task, [0], frozenset([1]), forces_end=False)

    def advance(*candidates: tuple[int, int, float]) -> None:
        search.advance([Candidate(beam=b, token=t, score=torch.tensor(s).numpy()[()]) for b, t, s in candidates])

    advance((0, 5, -0.5), (0, 6, -0.7), (0, 1, -0.9), (0, 7, -2.0))
    assert [beam.token_ids for beam in search.beams] == [[0, 5], [0, 6]] and not search.finished
    advance((1, 1, -0.8), (0, 8, -1.0), (0, 9, -1.5), (1, 7, -3.0))
    assert [list(h.token_ids) for h in search.finished] == [[6, 1]] and search.is_open
    assert [(beam.parent, beam.token_ids) for beam in search.beams] == [(0, [0, 5, 8]), (0, [0, 5, 9])]
    advance((0, 4, -1.05), (1, 1, -1.6), (0, 1, -2.0), (1, 4, -3.0))
    assert [(list(h.token_ids), h.is_cut) for h in search.finished] == [([5, 8, 4], True), ([6, 1], False)]
    assert not search.is_open


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_causal_model_repeats_no_sequence_either(tiny_model: Callable[..., Path], size: int) -> None:
    """In the paged engine, greedily: as transformers, which counts the prompt, too."""
    model_dir = tiny_model()
    prompts = [[5, 6, 5, 7, 5], [9], list(range(10, 40))]
    found = tokens(complete(make_engine(serve(model_dir)), prompts, generate(no_repeat_ngram_size=size)))
    inner = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager").eval()
    for prompt, ids in zip(prompts, found, strict=True):
        given = torch.tensor([prompt])
        options = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "no_repeat_ngram_size": size}
        output = inner.generate(given, attention_mask=torch.ones_like(given), **options)
        assert ids == output[0, len(prompt) :].tolist()


def test_what_would_repeat_a_sequence() -> None:
    class Tokens:
        slot, num_prompt, token_ids = 0, 1, [1, 2, 3, 1, 2, 4, 1, 2]

    def ruled_out(size: int) -> set[int]:
        batch = SamplingBatch(params=[SamplingParams(no_repeat_ngram_size=size)], keys=[(0, 0)], positions=[7])
        found = additions_of(batch, [Tokens()], 10)
        return set() if found is None else set(found.places.tolist())

    assert [ruled_out(size) for size in (1, 2, 3, 4, 9)] == [{1, 2, 3, 4}, {3, 4}, {3, 4}, set(), set()]


TEXTS = ["a short one", "another text, which is somewhat longer than the first", "x", "a short one", "é"]
OF_AUTHORS = {
    "eos_token_id": [1, *range(40, 260, 12)],
    "num_beams": 4,
    "length_penalty": 2.0,
    "early_stopping": True,
    "no_repeat_ngram_size": 3,
    "min_length": 6,
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 1,
    "max_length": 16,
}
"""Like those of bart-large-cnn."""


@pytest.fixture(scope="module")
def summarizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART whose generation_config.json has it all."""
    return make_encoder_decoder(tmp_path_factory.mktemp("bart"), "bart", generation=OF_AUTHORS)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A dataset of ``TEXTS``."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"id": text, "text": text}) + "\n" for text in TEXTS))
    return path


def command_of(model_dir: Path, data: Path, *options: Any) -> list[Any]:
    usual = ["--prompt-column", "text", "--dtype", "float32", "--device", "cpu"]
    return ["run", "--model", model_dir, "--dataset", data, *usual, *options]


def expected_texts(model_dir: Path, **options: Any) -> list[str]:
    """Return what plain transformers writes, tokenizer and all."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    ids = searched(model_dir, [tokenizer(text)["input_ids"] for text in TEXTS], max_new_tokens=14, **options)
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def test_a_run_does_what_the_authors_of_a_model_did(
    run_job: RunJob, summarizer: Path, texts: Path, tmp_path: Path
) -> None:
    """``generate`` without options, for a file like that of bart-large-cnn; a restart knows it, too."""
    command, output = command_of(summarizer, texts, "--max-new-tokens", 14), ["--output", tmp_path / "run"]
    result = run_job(*command, *output, "--limit", 2)
    assert result.exit_code == 0, result.stderr
    assert (
        "as the model's generation_config.json says: 4 beams, --length-penalty 2, --early-stopping true, "
        "--no-repeat-ngram-size 3 and --min-new-tokens 4; --num-beams 1 is greedy, and faster"
    ) in " ".join(result.stderr.split())
    assert run_job(*command, *output).exit_code == 0
    found = read_output(tmp_path / "run")["completion"].to_pylist()
    assert found == expected_texts(summarizer)
    sampling = json.loads((tmp_path / "run/manifest.json").read_text())["identity"]["sampling"]
    assert sampling["num_beams"] == 4 and sampling["length_penalty"] == 2.0 and sampling["min_new_tokens"] == 4
    refused = run_job(*command, *output, "--num-beams", 3)
    assert refused.exit_code == 2 and "--num-beams was 4, now 3" in refused.stderr, refused.stderr
    retry = run_job("retry", tmp_path / "run", "--cut", "--temperature", 0.5)
    assert retry.exit_code == 2 and "--temperature does not go with this run's 4 beams" in retry.stderr

    greedy = run_job(*command, "--num-beams", 1, "--output", tmp_path / "greedy")
    assert greedy.exit_code == 0, greedy.stderr
    expected = expected_texts(summarizer, num_beams=1, length_penalty=None, early_stopping=False)
    assert read_output(tmp_path / "greedy")["completion"].to_pylist() == expected != found

    # Options of its own win, and what does not go with beams turns them off if nobody asked for them.
    own = ["--num-beams", 2, "--length-penalty", 0, "--early-stopping", "never", "--no-repeat-ngram-size", 0]
    result = run_job(*command, *own, "--min-new-tokens", 1, "--output", tmp_path / "own")
    assert result.exit_code == 0 and "generation_config.json says" not in result.stderr, result.stderr
    options = {"num_beams": 2, "length_penalty": 0.0, "early_stopping": "never", "no_repeat_ngram_size": 0}
    expected = expected_texts(summarizer, **options, min_length=0)
    assert read_output(tmp_path / "own")["completion"].to_pylist() == expected
    result = run_job(*command, "--stop", "z", "--output", tmp_path / "stop")
    assert result.exit_code == 0
    assert "asks for 4 beams, which do not go with --stop: there is no beam search" in " ".join(result.stderr.split())


@pytest.mark.parametrize("num_beams", [4, 1])
def test_bad_words_of_several_tokens_are_never_written(
    run_job: RunJob, summarizer: Path, texts: Path, tmp_path: Path, num_beams: int
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(summarizer)
    options = {"max_new_tokens": 14, "num_beams": num_beams, "early_stopping": num_beams > 1}
    [usual] = searched(summarizer, [tokenizer(TEXTS[0])["input_ids"]], **options)
    settings = {**OF_AUTHORS, "bad_words_ids": [usual[2:4], [7, 8, 9]]}
    forbidden = make_encoder_decoder(tmp_path / "model", "bart", generation=settings)
    command = command_of(forbidden, texts, "--max-new-tokens", 14, "--num-beams", num_beams)
    result = run_job(*command, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    of_beams = {"num_beams": num_beams, "early_stopping": num_beams > 1}
    found = read_output(tmp_path / "run")["completion"].to_pylist()
    assert found == expected_texts(forbidden, **of_beams) != expected_texts(summarizer, **of_beams)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "0.7"], "--temperature and --num-beams 4 were given together"),
        (["--num-samples", "2", "--temperature", "1"], "--temperature and --num-beams 4 were given together"),
        (["--stop", "x"], "--stop and --num-beams 4 were given together"),
        (["--logprobs"], "--logprobs and --num-beams 4 were given together"),
        (["--top-logprobs", "2"], "--top-logprobs and --num-beams 4 were given together"),
        (["--regex", "[a-c]+"], "--regex and --num-beams 4 were given together"),
        (["--repetition-detection", "2"], "--repetition-detection and --num-beams 4 were given together"),
        (["--retry-invalid", "2", "--retry-temperature", "1"], "--retry-invalid and --num-beams 4 were given together"),
        (["--row-params", "max_new_tokens=id"], "--row-params and --num-beams 4 were given together"),
        (["--num-beams", "1", "--length-penalty", "2"], "--length-penalty is for a beam search"),
        (["--num-beams", "65"], "--num-beams is 65; it must be 1 (no search) to 64"),
        (["--length-penalty", "11"], "--length-penalty is 11.0; it must be between -10 and 10"),
        (["--early-stopping", "maybe"], "'maybe' is not one of 'true', 'false', 'never'"),
        (["--no-repeat-ngram-size", "-1"], "--no-repeat-ngram-size is -1; it must be 0 (off) or more"),
    ],
)
def test_what_beams_do_not_go_with(
    run_job: RunJob, summarizer: Path, texts: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    command = command_of(summarizer, texts, "--num-beams", 4, *options, "--output", tmp_path / "run")
    result = run_job(*command)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split()), result.stderr
    assert not (tmp_path / "run/manifest.json").exists()


def test_a_causal_model_has_no_beams(
    run_job: RunJob, tiny_model: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    command = [*command_of(tiny_model(), texts), "--output", tmp_path / "run"]
    for option in (["--num-beams", 4], ["--length-penalty", 2]):
        result = run_job(*command, *option)
        assert result.exit_code == 2
        assert f"{option[0]} {float(option[1]) if option[1] == 2 else 4} is for encoder-decoders" in result.stderr
        assert "(llama) is a causal model, for which there is no beam search" in " ".join(result.stderr.split())


def test_requests_to_openai_do_not_go_with_beams(run_job: RunJob, summarizer: Path, tmp_path: Path) -> None:
    data = tmp_path / "batch.jsonl"
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    data.write_text(
        json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"
    )
    command = ["run", "--model", summarizer, "--dataset", data, "--device", "cpu", "--output", tmp_path / "run"]
    result = run_job(*command, "--max-new-tokens", 14)
    assert result.exit_code == 2 and "Use --num-beams 1." in result.stderr, result.stderr
