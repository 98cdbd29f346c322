"""Whether the paged engine can serve a model: found out by running it, not from a list of names.

The model computes a short text once in its own way and once through the paged cache, in pieces, as the engine does.
This also shows what it stores per token.
"""

from typing import Any

import numpy as np
import torch

from job.engine.model.loading import LoadedModel
from job.engine.model.quantized import exact_activations
from job.engine.paged.attention import interface
from job.engine.paged.attention.backends import TORCH
from job.engine.paged.attention.cache import LayerShape
from job.engine.paged.attention.interface import AttentionArgs, Unsupported
from job.engine.paged.attention.layout import BlockTables, Layout
from job.engine.paged.attention.plain import PAGE_TOKENS
from job.engine.paged.executor import Executor, run_model
from job.engine.paged.schedule.step import Step, rows
from job.errors import first_line
from job.launch.replica import Replica

PROBE_TOKENS = 2 * PAGE_TOKENS + 7
"""Length of the text: it reaches into a third page."""

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}
"""Largest allowed norm of the logits' difference, relative to the norm of the logits. Rounding causes a tenth of it."""

KNOWN_LAYERS = frozenset({"attention", "full_attention", "sliding_attention"})
"""Entries of a configuration's ``layer_types`` whose masks this engine can apply."""

POSITIONS = {"dynamic": "max_position_embeddings", "longrope": "original_max_position_embeddings"}
"""Kinds of rotary frequencies that change past some positions, and the setting that says which."""


def check_support(model: LoadedModel, replica: Replica) -> tuple[dict[int, LayerShape], str | None]:
    """Make the model use our attention. All ranks of a replica must call this together.

    Returns:
        What each layer stores on this rank, and None. If another engine must serve the model, the reason instead of
        None, which is the same on all ranks; the model is then unchanged.
    """
    module = model.module
    own = module.config._attn_implementation
    shapes: dict[int, LayerShape] = {}
    try:
        reason = _configuration_problem(module, model.max_model_len)
        if reason is None:
            with exact_activations(module):
                expected = _logits_of_its_own(module, replica.device)
                module.set_attn_implementation(interface.NAME)
                shapes = _shapes(module, replica.device)
                reason = _difference(_logits_of_ours(module, shapes, replica.device), expected, model.dtype)
    except Unsupported as error:
        reason = str(error)
    except Exception as error:  # whatever a model raises when it is called in an unusual way
        reason = f"it cannot run on a ragged batch: {first_line(error)}"
    reasons = [text for text in replica.gather_status(reason) if text is not None]
    if not reasons:
        spare_looks(module, model.max_model_len)
    elif module.config._attn_implementation != own:
        module.set_attn_implementation(own)
    return shapes, reasons[0] if reasons else None


def _configuration_problem(module: Any, max_model_len: int | None) -> str | None:
    """Return a problem that the configuration shows but a short text would not, or None.

    Rotary frequencies of the kind "dynamic" change only past the model's positions, where no row may go.
    """
    text = module.config.get_text_config()
    if not module._can_set_attn_implementation():
        return "its attention does not use transformers' interface"
    strange = set(getattr(text, "layer_types", None) or ()) - KNOWN_LAYERS
    if strange:
        return f"it has layers of type {min(strange)}"
    rope = getattr(text, "rope_parameters", None) or {}
    for value in (rope, *rope.values()):
        if isinstance(value, dict) and value.get("rope_type") == "longrope":
            shorter = value.get("original_max_position_embeddings") or 0
            if max_model_len is None or max_model_len > shorter:
                advice = f" (not with --max-model-len {shorter})" if shorter else ""
                return f"its rotary frequencies depend on the longest row of the batch{advice}"
    return None


def spare_looks(module: Any, max_model_len: int | None) -> None:
    """Leave out what looks at the tokens or positions of each step, and does nothing then: on a GPU, the host waits for
    what it looks at, and no step that does so can be recorded.
    """
    for part in module.modules():
        if hasattr(part, "warn_if_padding_and_no_attention_mask"):
            part.warn_if_padding_and_no_attention_mask = lambda *_: None  # no step has padding
        rope_type = getattr(part, "rope_type", None)
        if isinstance(rope_type, str) and rope_type in POSITIONS and max_model_len is not None:
            text, limit = part.config.get_text_config(), POSITIONS[rope_type]
            known = getattr(text, limit, None) or (getattr(text, "rope_parameters", None) or {}).get(limit)
            if known is not None and max_model_len <= known:
                part.rope_type = "default"  # its frequencies would change only past these positions


def _token_ids(module: Any) -> np.ndarray[Any, np.dtype[np.int32]]:
    vocab_size = module.config.get_text_config().vocab_size
    return np.random.default_rng(0).integers(0, vocab_size, PROBE_TOKENS).astype(np.int32)


def _logits_of_its_own(module: Any, device: torch.device) -> torch.Tensor:
    """Return [PROBE_TOKENS, V], computed in the model's own way."""
    ids = torch.from_numpy(_token_ids(module)).long()[None].to(device)
    with torch.inference_mode():
        logits: torch.Tensor = module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    return logits


def _shapes(module: Any, device: torch.device) -> dict[int, LayerShape]:
    """Run one token to see what each layer would store, and to check its window against the configuration."""
    shapes: dict[int, LayerShape] = {}
    windows: dict[int, int | None] = {}

    def look(
        layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, args: AttentionArgs
    ) -> torch.Tensor:
        if layer_idx in shapes:
            raise Unsupported(f"its layer {layer_idx} attends twice")
        shapes[layer_idx], windows[layer_idx] = LayerShape.of(query, key, value, args), args.window
        return value.repeat_interleave(query.shape[1] // key.shape[1], dim=1)

    run_model(module, Layout(_step(_token_ids(module), 0, 1), BlockTables(1), PAGE_TOKENS), look, device)
    text = module.config.get_text_config()
    if len(shapes) != text.num_hidden_layers:
        raise Unsupported(f"only {len(shapes)} of its {text.num_hidden_layers} layers use transformers' interface")
    _check_windows(text, windows)
    return shapes


def _check_windows(text: Any, windows: dict[int, int | None]) -> None:
    """Refuse a model that applies a window only in its mask: no masks are made here, so it would be lost."""
    window = getattr(text, "sliding_window", None)
    if window is None or getattr(text, "use_sliding_window", True) is False:
        return
    layer_types = getattr(text, "layer_types", None)
    for layer_idx, seen in windows.items():
        slides = layer_types is None or layer_types[layer_idx] == "sliding_attention"
        configured = window if slides else None
        if seen != configured:
            raise Unsupported(f"its layer {layer_idx} asks for a window of {seen}, but is configured for {configured}")


def _logits_of_ours(module: Any, shapes: dict[int, LayerShape], device: torch.device) -> torch.Tensor:
    """Return [3, V]: after a chunk, after a second chunk, and after a single token, on scattered pages."""
    executor = Executor(module, TORCH, TORCH.allocate(shapes, 5, device), num_slots=2, device=device)
    ids = _token_ids(module)
    ends = (PAGE_TOKENS + 3, PROBE_TOKENS - 1, PROBE_TOKENS)
    new_pages: tuple[list[tuple[int, int, int]], ...] = ([(1, 0, 3), (1, 1, 0)], [(1, 2, 4)], [])
    starts = (0, *ends[:-1])
    steps = [_step(ids, start, end, pages) for start, end, pages in zip(starts, ends, new_pages, strict=True)]
    return torch.cat([executor.run(step) for step in steps])


def _step(ids: Any, start: int, end: int, new_pages: list[tuple[int, int, int]] | None = None) -> Step:
    slot = 1 if new_pages is not None else 0
    return Step(
        token_ids=ids[start:end],
        sequences=rows([(slot, start, end - start, 1)], 4),
        new_pages=rows(new_pages or [], 3),
        pages_to_clear=rows([(page,) for _, _, page in new_pages or []], 1),
    )


def _difference(ours: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> str | None:
    """Compare [3, V] with the same rows of [PROBE_TOKENS, V], computed by a model of this dtype."""
    theirs = expected[[PAGE_TOKENS + 2, PROBE_TOKENS - 2, PROBE_TOKENS - 1]].float()
    error = float((ours.float() - theirs).norm() / theirs.norm())
    if error <= TOLERANCES[dtype]:
        return None
    return f"its logits differ from its own attention's by {error:.2%}"
