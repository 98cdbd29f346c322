"""A loaded model and an engine that complete requests of a run again, and show the logits behind each choice."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count

import torch

from job.config import EngineConfig
from job.engine.logits.constraint import Constraints
from job.engine.logits.endings import end_of, find_stops, may_stop, text_to_search
from job.engine.logits.guide import Guide, guides
from job.engine.logits.margin import Margin, margins
from job.engine.model.decoder import begin_ids
from job.engine.model.info import ModelInfo
from job.engine.model.loading import LoadedModel
from job.engine.model.logit_hooks import last_logits, latest_logits
from job.engine.protocol import Engine
from job.engine.reasoned_scores import scoring
from job.engine.registry import ENGINES
from job.launch.replica import Replica
from job.modes.bound import BoundModes
from job.records import Completion, Generation, Prompt, Request
from job.run.calibration import calibrated
from job.run.examination import Examined
from job.run.model import load_in_range
from job.tasks import BeamSearch, Generate, SamplingParams, Score

LOGITS_BYTES = 1 << 28
"""How much memory the logits may take that are looked at together."""


@dataclass(kw_only=True)
class Computer:
    """A loaded model and an engine, which complete requests."""

    engine: Engine
    model: LoadedModel | None
    modes: BoundModes
    examined: Examined
    how: str
    """Device, dtype and engine, in words."""
    _numbers: "count[int]" = field(default_factory=lambda: count(1))

    @classmethod
    def load(cls, examined: Examined, replica: Replica, note: Callable[[str], None]) -> "Computer":
        """Load the model and build the engine.

        Raises:
            JobError: it cannot be loaded, or a probe cannot be computed.
        """
        config, info = examined.config, examined.model_info
        model = None
        if config.engine.needs_model:
            stop_token_ids = examined.tokenizer.stop_token_ids
            model = load_in_range(config, info, replica, stop_token_ids, is_restart=True, note=note)
        kind = ENGINES[config.engine.engine]
        engine = kind.build(model, config.engine, replica, should_stop=lambda: False, note=note)
        how = _how(config.engine, info, replica.device, has_model=model is not None)
        computer = cls(engine=engine, model=model, modes=examined.modes, examined=examined, how=how)
        computer.modes = calibrated(examined.modes, computer.run(examined.probes))
        return computer

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The model's end-of-sequence tokens."""
        return frozenset(() if self.model is None else self.model.eos_token_ids)

    def ends_of(self, request: Request) -> frozenset[int]:
        """Return the tokens that end what is generated for a request."""
        task = generating(request).task
        assert isinstance(task, Generate)
        return task.params.eos_of(self.eos_token_ids).union(task.params.stop_token_ids)

    def run(self, requests: Sequence[Request], tell: Callable[[int], object] = lambda number: None) -> list[Generation]:
        """Complete requests, whose keys differ, and return the results in the same order.

        Args:
            tell: called with the number of those that have just been completed.
        """
        done: dict[object, Generation] = {}
        waiting = iter(requests)
        while len(done) < len(requests):
            while self.engine.num_pending < self.engine.max_pending and (request := next(waiting, None)) is not None:
                self.engine.submit(request)
            generations = self.engine.step()
            done |= {generation.request.key: generation for generation in generations}
            tell(len(generations))
        return [done[request.key] for request in requests]

    def again(self, request: Request) -> Generation:
        """Complete a request that differs only in what has begun of it from one that was completed before."""
        return self.run([self._new(request)])[0]

    def complete(self, generation: Generation, prompt: Prompt) -> Completion:
        """Return the output row that a generation makes."""
        texts = self.examined.tokenizer.decode([generation.text_ids])
        return self.modes.complete([generation], texts, [prompt.text], [prompt.prefill])[0]

    def before(self, request: Request) -> Sequence[int]:
        """Return the tokens that a completion follows: the prompt, or what a decoder begins with."""
        decoder = None if self.model is None else self.model.decoder
        return begin_ids(decoder, request.decoder_ids) or request.prompt_ids

    def margins(self, request: Request, ids: Sequence[int], places: range) -> Iterator[Margin | None]:
        """Yield the choices at some consecutive places of a completion; None, and no more, if there are no logits.

        Args:
            request: its task is ``Generate``.
            ids: the tokens of the completion, at least up to the last of these places.
        """
        before = self.before(request)
        for first, logits in self._logits(request, ids, places):
            if logits is None:
                yield None
                return
            yield from margins(logits, request, before, ids, self.eos_token_ids, first)

    def _logits(self, request: Request, ids: Sequence[int], places: range) -> Iterator[tuple[int, torch.Tensor | None]]:
        """Yield the first place and the logits of consecutive places [N, V], or None if there are none."""
        if self.model is None:
            yield places.start, None
            return
        size = 1
        if self.model.decoder is None and len(places) > 1:
            size = max(1, LOGITS_BYTES // (4 * self.examined.tokenizer.vocab_size))
        for start in range(places.start, places.stop, size):
            end = min(places.stop, start + size)
            if end - start > 1:
                found = self._scored_logits(request, ids, start, end)
            else:
                last = self._last_logits(request, ids[:start])
                found = None if last is None else last[None]
            yield start, found
            if found is None:
                return

    def _last_logits(self, request: Request, completion_ids: Sequence[int]) -> torch.Tensor | None:
        """Return the logits after some tokens of a completion, [V]; None if they overflow."""
        assert self.model is not None
        task = Generate(params=SamplingParams(max_new_tokens=1, ignore_eos=True))
        before = [*self.before(request), *completion_ids]
        given = {"prompt_ids": before} if self.model.decoder is None else {"decoder_ids": tuple(before)}
        with last_logits(self.model) as seen:
            generation = self.run([self._new(replace(request, task=task, begun=None, **given))])[0]
        return seen[0] if seen and generation.error is None else None

    def _scored_logits(self, request: Request, ids: Sequence[int], start: int, end: int) -> torch.Tensor | None:
        """Return the logits at some places [N, V], in one pass: those with which the tokens there are scored."""
        assert self.model is not None
        unlike = next(self._numbers) % self.examined.tokenizer.vocab_size  # engines copy the answers of equal requests
        task = Score(choice_ids=((*ids[start : end - 1], unlike),))
        asked = replace(request, task=task, begun=None, prompt_ids=[*request.prompt_ids, *ids[:start]])
        with latest_logits(self.model, end - start) as seen:
            generation = self.run([asked])[0]
        logits = torch.cat(list(seen))[-(end - start) :] if seen else None
        return logits if logits is not None and len(logits) == end - start and generation.error is None else None

    def finish_reason(self, request: Request, ids: Sequence[int]) -> str | None:
        """Return why a completion ends with these tokens; None if it goes on.

        Args:
            request: its task is ``Generate``.
        """
        task, given = request.task, list(ids)
        assert isinstance(task, Generate)
        guide = None
        if guides(task):
            eos_token_ids = task.params.eos_of(self.eos_token_ids)
            guide = Guide(task, request.prompt_ids, eos_token_ids, Constraints())
            guide.go_through(given)
        end = end_of(task, self.eos_token_ids, [*self.before(request), *given], len(given), guide)
        if may_stop(end) and task.ends_text is not None and (text_ids := text_to_search(task, given, guide)):
            end = find_stops({0: (task.ends_text, text_ids)}).get(0, end)
        return None if end is None else end.finish_reason

    def score_after(self, request: Request, thought_ids: Sequence[int]) -> Generation:
        """Score a request's choices after reasoning that is given, with its end."""
        again = self.run([scoring(request, list(thought_ids))])[0]
        return replace(again, request=request, token_ids=thought_ids)

    @cached_property
    def pieces(self) -> dict[bytes, list[int]]:
        """The tokens of each text, in UTF-8. Those that are not text are left out."""
        found: dict[bytes, list[int]] = {}
        for token in range(self.examined.tokenizer.vocab_size):
            if piece := self.bytes_of(token):
                found.setdefault(piece, []).append(token)
        return found

    @cached_property
    def longest_piece(self) -> int:
        """The number of bytes of the longest text of a token."""
        return max(map(len, self.pieces), default=0)

    @cached_property
    def bytes_of(self) -> Callable[[int], bytes]:
        """Returns the text of a token in UTF-8; nothing for one that is not text."""
        tokenizer = self.examined.tokenizer
        special, bytes_of = frozenset(tokenizer.special_tokens.values()), tokenizer.token_bytes()
        return lambda token: b"" if token in special else bytes_of(token)

    def _new(self, request: Request) -> Request:
        """Return a request that is equal to none before: engines copy the answers of equal ones."""
        task = request.task
        if isinstance(task, Generate) and task.is_deterministic:  # then the seed has no effect
            return replace(request, task=replace(task, params=replace(task.params, seed=next(self._numbers))))
        return request


def _how(engine: EngineConfig, info: ModelInfo, device: torch.device, *, has_model: bool) -> str:
    if not has_model:
        return f"engine {engine.engine}, without a model"
    rows = (
        "each row alone"
        if engine.max_batch_rows == 1
        else f"batches of {engine.max_batch_rows or 'any number of'} rows"
    )
    return f"{rows}, {info.dtype} on {device.type}, engine {engine.engine}"


def generating(request: Request) -> Request:
    """Return a request for what is generated of its answer: the reasoning, if that is scored."""
    task = generates(request)
    assert task is not None
    return replace(request, task=task)


def generates(request: Request) -> Generate | None:
    """Return how tokens of a request are generated; None if none are, or by a search."""
    task = request.task
    if isinstance(task, Score):
        return task.reason
    return task if isinstance(task, Generate) and not isinstance(task, BeamSearch) else None
