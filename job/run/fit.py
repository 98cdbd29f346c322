"""Whether the model of a run fits: on a named GPU, or on the device that this machine would use."""

from collections.abc import Sequence
from statistics import mean

import torch

from job.engine.fit.gpus import GPUS
from job.engine.fit.memory import Fit, Room, Work, fit, fits_from, least_secs
from job.engine.fit.shape import shape_of
from job.engine.paged.budget import free_host_bytes
from job.observe.fit_report import FitAtSize, FitReport
from job.run.examination import Examined


def room_on(gpu: str | None, device: torch.device) -> Room:
    """Return the memory of a named GPU, or else what is free on this machine."""
    if gpu is not None:
        return Room(name=gpu, num_bytes=GPUS[gpu].memory_gb * 10**9, is_gpu=True, gpu=GPUS[gpu])
    if device.type == "cuda":
        return Room(name=torch.cuda.get_device_name(0), num_bytes=torch.cuda.mem_get_info(0)[0], is_gpu=True)
    return Room(name="this machine", num_bytes=free_host_bytes(), is_gpu=False)


def report_fit(
    examined: Examined, room: Room, prompt_tokens: Sequence[int], num_shared_tokens: int
) -> FitReport | None:
    """Return whether the run fits; None if the engine needs no model, or the model's sizes are unknown.

    Args:
        prompt_tokens: the lengths of some rows' prompts.
        num_shared_tokens: how many tokens at their beginning are computed once.
    """
    config, info = examined.config, examined.model_info
    shape = None
    if config.engine.needs_model:
        shape = shape_of(info.config, info.kind.auto_class, trust_remote_code=config.model.trust_remote_code)
    if shape is None:
        return None
    lengths = sorted(prompt_tokens) or [0]
    num_new_tokens, num_beams = examined.modes.length.num_tokens, config.sampling.num_beams or 1
    longest, median = lengths[-1] + num_new_tokens, lengths[len(lengths) // 2] + num_new_tokens
    work = Work(
        num_rows=examined.plan.num_completions * num_beams,
        num_prompt_tokens=round(examined.plan.num_rows * (mean(lengths) - num_shared_tokens)),
        num_new_tokens=examined.plan.num_completions * num_beams * num_new_tokens,
    )

    def at_size(found: Fit) -> FitAtSize:
        """Return the figures of one tensor-parallel size for the report. Each beam has keys and values of its own."""
        return FitAtSize(
            tensor_parallel_size=found.tensor_parallel_size,
            fits=found.fits(longest * num_beams),
            weight_bytes=found.weight_bytes,
            logits_bytes=found.logits_bytes,
            activation_bytes=found.activation_bytes,
            kv_cache_bytes=found.cache_bytes,
            kv_cache_tokens=found.num_tokens,
            rows_at_once=found.num_rows(median) // num_beams,
            max_rows=found.max_rows // num_beams,
            full_kv_cache_bytes=found.max_rows * median * found.bytes_per_token,
        )

    of_model = (info.config, shape, info.precision, room, config.engine)
    asked = fit(*of_model, config.engine.tensor_parallel_size)
    smallest = next(fits_from(*of_model, longest * num_beams), None)
    timed = asked if asked is not None and asked.fits(longest * num_beams) else smallest
    return FitReport(
        device=room.name,
        is_gpu=room.is_gpu,
        memory_bytes=room.num_bytes,
        num_params=shape.num_params,
        weight_bytes=shape.bytes_of_process(1, info.precision),
        asked=None if asked is None else at_size(asked),
        smallest=None if smallest is None else at_size(smallest),
        least_secs=None
        if room.gpu is None or timed is None
        else least_secs(shape, info.precision, timed, room.gpu, work),
    )
