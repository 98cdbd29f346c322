"""All modes of a run together: they define the engine's task for a row, and turn a generation into an output row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from job.config import RunConfig
from job.modes.mode import Answer, AnswerLength, BoundMode, Mode, Probe, Section, Setting
from job.modes.token_texts import params_of
from job.records import Completion, Generation, Prompt, Request
from job.tasks import BeamSearch, Generate, SamplingParams, Task


@dataclass(frozen=True, kw_only=True)
class BoundModes:
    """All active modes of a run, in the order of the table."""

    config: RunConfig
    modes: tuple[BoundMode, ...]
    params: SamplingParams
    """The sampling parameters of a row, before the modes refine them."""

    @classmethod
    def of(cls, config: RunConfig, setting: Setting) -> "BoundModes":
        """Bind the modes that a run asks for.

        Raises:
            UsageError: one of them cannot work with this tokenizer.
        """
        modes = tuple(mode.bind(setting) for mode in config.active_modes)
        return cls(config=config, modes=modes, params=params_of(config.sampling, setting.tokens))

    def task_of(self, values: Mapping[str, Any]) -> Task:
        """Return what to ask the engine for a row.

        Args:
            values: the row's values in the columns that modes read.

        Raises:
            RowRejected: a mode cannot use one of them.
        """
        return self._refined(values) if values else self.task

    @cached_property
    def task(self) -> Task:
        """What to ask the engine for each row, if no mode reads columns. One object for all: engines compare tasks."""
        return self._refined({})

    def _refined(self, values: Mapping[str, Any]) -> Task:
        task = self._first_task
        for mode in self.modes:
            task = mode.refine(task, values)
        return task

    @property
    def _first_task(self) -> Task:
        sampling = self.config.sampling
        if sampling.num_beams is None or sampling.num_beams == 1:
            return Generate(params=self.params)
        return BeamSearch(
            params=self.params,
            num_beams=sampling.num_beams,
            length_penalty=1.0 if sampling.length_penalty is None else sampling.length_penalty,
            early_stopping=sampling.early_stopping or "false",
        )

    def given(self, request: Request, prompt: Prompt) -> Request:
        """Return the request for a row; see ``BoundMode.given``."""
        for mode in self.modes:
            request = mode.given(request, prompt)
        return request

    @property
    def length(self) -> AnswerLength:
        """How long an answer may be."""
        length = AnswerLength(num_tokens=self.config.sampling.max_new_tokens, what="--max-new-tokens")
        for mode in self.modes:
            length = mode.length(length)
        return length

    @property
    def sections(self) -> list[Section]:
        """What a preview shows about the modes."""
        return [section for mode in self.modes for section in mode.sections()]

    def notes_on(self, first_prompt: Callable[[], str | None]) -> tuple[str, ...]:
        """Return notes for the user. See ``BoundMode.notes_on``."""
        return tuple(note for mode in self.modes for note in mode.notes_on(first_prompt))

    @property
    def probes(self) -> tuple[Probe, ...]:
        """What the modes need computed before the first row."""
        return tuple(probe for mode in self.modes for probe in mode.probes)

    def calibrated(self, probes: Sequence[Generation]) -> "BoundModes":
        """Return these modes, calibrated with the results of their probes.

        Args:
            probes: the engine's result for each of ``self.probes``, in the same order.
        """
        modes, start = [], 0
        for mode in self.modes:
            end = start + len(mode.probes)
            modes.append(mode.calibrated(probes[start:end]) if end > start else mode)
            start = end
        return replace(self, modes=tuple(modes))

    def complete(
        self,
        generations: Sequence[Generation],
        texts: Sequence[str],
        prompts: Sequence[str | None],
        prefills: Sequence[str] | None = None,
    ) -> list[Completion]:
        """Return the output rows.

        Args:
            texts: the decoded text of each generation.
            prompts: the prompt to write next to each.
            prefills: the end of each prompt that is the beginning of the answer. None: there are none.
        """
        rows = zip(generations, texts, prompts, prefills or [""] * len(texts), strict=True)
        return [self._complete(*row) for row in rows]

    def _complete(self, generation: Generation, text: str, prompt: str | None, prefill: str) -> Completion:
        answer = Answer(
            completion=None if generation.error else text,
            finish_reason=generation.finish_reason,
            num_completion_tokens=len(generation.token_ids),
            token_ids=generation.text_ids,
        )
        for mode in self.modes if generation.error is None else ():
            answer = mode.complete(answer, generation)
        completion = Completion(
            row_idx=generation.request.row_idx,
            sample_idx=generation.request.sample_idx,
            prompt=prompt,
            completion=self._with_prefill(answer.completion, prefill),
            finish_reason=answer.finish_reason,
            num_prompt_tokens=len(generation.request.prompt_ids),
            num_completion_tokens=answer.num_completion_tokens,
            error=generation.error,
            values=answer.values,
        )
        for mode in self._judges:
            completion = mode.judge(completion, generation.request, is_accepted=self._accept(completion))
        return completion

    def again(self, request: Request, completion: Completion) -> Request | None:
        """Return the request to draw a row again with; None if the row is to be kept."""
        if not self._judges or self._accept(completion):
            return None
        return self.next_attempt(request)

    def next_attempt(self, request: Request) -> Request | None:
        """Return the request to draw a row again with, whatever came out; None if there is none."""
        return next((again for mode in self._judges if (again := mode.again(request)) is not None), None)

    @cached_property
    def _judges(self) -> tuple[BoundMode, ...]:
        return tuple(mode for mode in self.modes if mode.judges)

    @cached_property
    def _asked(self) -> tuple[Mode, ...]:
        return self.config.active_modes

    def _accept(self, completion: Completion) -> bool:
        return all(mode.accepts(completion) for mode in self._asked)

    def _with_prefill(self, completion: str | None, prefill: str) -> str | None:
        includes = completion is not None and self.config.prompt.include_prefill
        return f"{prefill}{completion}" if includes else completion
