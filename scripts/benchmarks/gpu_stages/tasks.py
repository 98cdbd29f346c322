"""All kinds of tasks at once, with what is fast on a GPU, against plain operations, launched one after the other."""

import contextlib
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from job.records import Generation
from tests.test_mixed_tasks import requests
from tests.tiny import make_model

from . import engines
from .device import ON_CUDA
from .figures import save
from .parity import load

PLAIN = {"attention_backend": "plain", "cuda_graphs": False, "overlap": False, "fused": False}

TOLERANCE = 1e-3
"""Of log probabilities: sums of many, in another order."""

FEWEST_EQUAL = 0.97
"""Of the answers: a draw or a choice between near ties may differ."""


def main(*, architectures: list[str], variants: dict[str, dict[str, Any]]) -> None:
    """Compare the answers: greedy and drawn tokens, penalties, biases, grammars, stop texts, scores.

    Args:
        architectures: names of ``tests.tiny.ARCHITECTURES``.
        variants: fields of ``EngineConfig``.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    for name in architectures:
        with tempfile.TemporaryDirectory() as directory:
            make_model(Path(directory), name)
            expected, _ = _answers(directory, name, PLAIN)
            for variant, options in variants.items():
                found, notes = _answers(directory, name, options)
                equal = [_agree(*pair) for pair in zip(expected, found, strict=True)]
                different = [each.request.key for each, is_equal in zip(found, equal, strict=True) if not is_equal]
                share = sum(equal) / len(equal)
                save(f"{name}, {variant}", {"equal": 1.0}, equal=share, different=different, notes=notes)
                assert share >= FEWEST_EQUAL, f"{name}, {variant}: answers differ"


def _answers(directory: str, name: str, options: dict[str, Any]) -> tuple[list[Generation], list[str]]:
    engine, notes = engines.build(load(directory, name), options)
    for request in requests():
        engine.submit(request)
    generations: list[Generation] = []
    with waits() as places:
        while engine.num_pending:
            generations += engine.step()
            engine.partials({})  # of rows in flight: the host alone knows them
    found = Counter(place for place in places if "synchronizing" in place)
    notes += [f"{number} waits: {place}" for place, number in found.most_common(5)]
    return sorted(generations, key=lambda generation: generation.request.key), notes


@contextlib.contextmanager
def waits() -> Iterator[list[str]]:
    """Collect torch's warnings about operations for which the host waits, each with its place."""
    places: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if ON_CUDA:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            if ON_CUDA:
                torch.cuda.set_sync_debug_mode("default")
    places += [f"{each.filename}:{each.lineno}: {each.message}" for each in caught]


def _agree(expected: Generation, found: Generation) -> bool:
    same = list(expected.token_ids) == list(found.token_ids) and expected.finish_reason == found.finish_reason
    return same and expected.error == found.error and _close(expected.numbers, found.numbers)


def _close(expected: Any, found: Any) -> bool:
    if expected is None or found is None:
        return expected is found
    return torch.allclose(torch.tensor(expected), torch.tensor(found), rtol=1e-4, atol=TOLERANCE)
