"""Loads a model: the order in which its weights are read, cut and placed. Each step was proved necessary.

0. Make quantized weights dense, and layers with adapters, once per file system: the first process of each node does it,
   or waits for another.
1. Read in the dtype of the checkpoint: safetensors stay memory-mapped, so all ranks of a node share the pages, and only
   what is used is read. A cast here would give every rank a private copy of the model. Then merge adapters, or map
   what was merged.
2. Shard in that dtype; what is cut are views of the mapped file. Then repair what AutoTP leaves wrong, and cut experts.
3. Quantize, if asked, layer by layer, each on the device; experts, as soon as they are cut.
4. Move tensor by tensor to the device and to the run's dtype, then restore what a cast must not change.
5. Put on what gives vectors or classes, if the model is for that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from job.config import ModelConfig
from job.engine.model.adapters.merging import MergedLayers, merge, put_in
from job.engine.model.checkpoints.conversion import dtype_of, itemsize
from job.engine.model.decoder import Decoder
from job.engine.model.dense_layers import dense_layers_of
from job.engine.model.heads import with_head
from job.engine.model.info import ModelInfo
from job.engine.model.layers_in_8_bits import expert_quantizer, quantize
from job.engine.model.placing import move_to, placing, put_back, reporting_out_of_memory, tensors_to_keep
from job.engine.model.reading import read_weights
from job.engine.model.repairs import repair
from job.engine.model.sharding import computable_dtypes, shard
from job.engine.model.weights import identify
from job.errors import JobError
from job.launch.activity import doing
from job.launch.replica import Replica
from job.tasks.head import Head


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model on its device, ready to generate."""

    module: Any
    """The sharded transformers model, in eval mode. Its ``generate`` is transformers' own."""
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    dtype: torch.dtype
    max_model_len: int | None = None
    """The most tokens of a row, prompt and completion. None: it is not known."""
    head: Head | None = None
    """What the module gives in place of the logits of tokens; see ``job.engine.model.heads``."""
    decoder: Decoder | None = None
    """How answers begin, if the module is an encoder-decoder."""
    cache_dtype: torch.dtype | None = None
    """Of stored keys and values. None: ``dtype``."""
    notes: tuple[str, ...] = ()
    """What the user should know of it."""
    dense_layers: torch.nn.Module | None = None
    """What is applied to a pooled vector; see ``job.engine.model.dense_layers``."""

    def after_pooling(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return what becomes of pooled vectors, [B, D] float32, on the host."""
        return vectors if self.dense_layers is None else self.dense_layers(vectors)


def load_model(
    config: ModelConfig, info: ModelInfo, replica: Replica, stop_token_ids: Sequence[int], *, verbose: bool = False
) -> LoadedModel:
    """Load and shard a model. Every process of the launch must call this at the same time.

    Args:
        stop_token_ids: the tokenizer's end-of-sequence ids.
        verbose: let DeepSpeed write to stderr.

    Raises:
        JobError: the weights cannot be loaded, here or on another process.
    """
    dtype, scheme = getattr(torch, info.dtype), info.precision.quantization
    merged = _merged_layers(config, info, replica)
    _make_first([made.directory for made in (info.dense_weights, merged) if made is not None], replica)
    failure, model, dense_layers = None, None, None
    left_out: list[str] = []
    try:
        model = read_weights(config, info, left_out.append)
        adapters = info.precision.adapters
        model = merge(model, adapters) if merged is None else put_in(model, merged.directory(), adapters)
        dense_layers = dense_layers_of(info.files, info.head)
    except JobError as error:
        failure = error
    doing("waiting until every process has read the weights")
    replica.check_world(failure)  # the next steps are collective: every process must take part
    assert model is not None
    kept = tensors_to_keep(model)
    eos_token_ids = _eos_token_ids(model, stop_token_ids)
    doing(f"sharding the model and moving it to {replica.device}")
    with reporting_out_of_memory(config.model, replica.device):
        if model.dtype not in computable_dtypes(replica.device):  # only in these does DeepSpeed shard
            model.to(dtype)
        model.eval().requires_grad_(False)
        model = shard(model, replica, verbose=verbose)
        quantize_experts = expert_quantizer(scheme, replica.device, dtype)
        changed = repair(model, replica, placing(replica.device, dtype), quantize_experts)
        notes = (*left_out, *(() if scheme is None else (quantize(model, scheme, replica.device, dtype),)))
        move_to(model, replica.device, dtype)
        put_back(model, {name: tensor for name, tensor in kept.items() if name not in changed})
        model = with_head(model, info.kind)
    return LoadedModel(
        module=model,
        eos_token_ids=eos_token_ids,
        pad_token_id=eos_token_ids[0] if eos_token_ids else 0,
        dtype=dtype,
        max_model_len=info.max_model_len,
        head=info.head,
        decoder=info.decoder,
        cache_dtype=getattr(torch, info.precision.stored_dtype),
        dense_layers=dense_layers,
        notes=notes,
    )


def _merged_layers(config: ModelConfig, info: ModelInfo, replica: Replica) -> MergedLayers | None:
    """Return where adapters are merged for all processes of a node; None if this process is alone and merges itself."""
    if not info.precision.adapters or replica.info.local_world_size == 1:
        return None
    return MergedLayers(
        adapters=info.precision.adapters,
        fingerprint=identify(info.files, info.weights, trust_remote_code=config.trust_remote_code),
        itemsize=itemsize(dtype_of(info.config)),
        read=lambda: read_weights(config, info),
    )


def _make_first(makers: Sequence[Callable[[], object]], replica: Replica) -> None:
    """Let one process of each node make what has to be, so that a failure is met once, and not by all in turn."""
    if not makers:
        return
    failure = None
    if replica.info.local_rank == 0:
        try:
            for make in makers:
                make()
        except JobError as error:
            failure = error
    doing("waiting until the weights are converted")
    replica.check_world(failure)


def _eos_token_ids(model: Any, stop_token_ids: Sequence[int]) -> tuple[int, ...]:
    """Return all ids that end a completion: those of the generation config, the config and the tokenizer."""
    ids: list[int] = []
    places = (getattr(model, "generation_config", None), model.config.get_text_config())
    for value in (*(getattr(place, "eos_token_id", None) for place in places), *stop_token_ids):
        ids += value if isinstance(value, list) else [value] if value is not None else []
    return tuple(dict.fromkeys(ids))
