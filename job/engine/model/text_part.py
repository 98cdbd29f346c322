"""The language model within a model of text and images, which is all that a text needs.

Checkpoints such as Gemma 3's, Llama 4's or Qwen 3.5's hold more than it: towers for images or sound, and projections.
Only the language model is built, under its own model type, with the weights that are its own; the rest of the files is
never read. Every type below was compared with the whole model on text (``scripts/bench architectures``).
"""

import copy
import re
from collections.abc import Mapping
from typing import Any

from job.errors import UsageError

# fmt: off
COMPARED = frozenset(
    {
        "aria", "aya_vision", "cohere2_vision", "exaone4_5", "gemma3", "gemma4", "gemma4_unified", "idefics3",
        "internvl", "kimi_k25", "lfm2_vl", "llama4", "llava", "llava_next", "llava_onevision", "mistral3",
        "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "smolvlm",
    }
)
"""``model_type`` of the whole models."""
# fmt: on

SAME_ON_TEXT = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
"""Model types without a causal model of their own, and the one that computes the same: for text, the three positions
that they give to a token are equal."""

KEYS = {
    r"^(?:model\.)?(?:language_model|text_model)\.lm_head\.": "lm_head.",
    r"^(?:model\.)?(?:language_model|text_model)\.(?:model\.)*": "model.",
}
"""Where weights of the language model lie in these checkpoints (some lie where it has them itself), and where it has
them."""

ADAPTER_KEYS = {r"(?:language_model|text_model)\.": ""}
"""The same of an adapter that was trained on the whole model, for peft."""

OF_THE_WHOLE = ("dtype", "quantization_config", "tie_word_embeddings")
"""What the configuration of the whole model says for its language model, too."""


def text_part_of(name: str, config: Any) -> Any:
    """Return the configuration of the language model that is in a model; the same one if that is all there is.

    Args:
        name: the model's, for messages.
        config: transformers' configuration of a model that is to write.

    Raises:
        UsageError: the model is of another kind, whose text cannot be computed alone.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    text = config.get_text_config()
    is_own = text is config or config.is_encoder_decoder or not type(config).__module__.startswith("transformers.")
    if is_own or (config.model_type not in COMPARED and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        return config
    model_type = SAME_ON_TEXT.get(text.model_type, text.model_type)
    if config.model_type not in COMPARED or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UsageError(
            f"--model {name} ({config.model_type}) is a model of more than text, and its language model "
            f"({text.model_type}) has not been compared with the whole. Name a model of text."
        )
    if model_type == text.model_type:
        text = copy.deepcopy(text)
    else:
        values = {key: value for key, value in text.to_dict().items() if key != "model_type"}
        text = CONFIG_MAPPING[model_type](**values)
    for field in OF_THE_WHOLE:
        value = getattr(config, field, None)
        if value is not None:
            setattr(text, field, value)
    return text


def tensors_of_part(shapes: Mapping[str, list[int]], prefix: str) -> dict[str, list[int]]:
    """Return an adapter's tensors under the names of the language model, without those of the rest of a larger model.

    An adapter that was trained on the language model alone has these names already.

    Args:
        shapes: of its tensors, by their names.
        prefix: of all these names.
    """
    ((pattern, target),) = ADAPTER_KEYS.items()
    own = {re.sub(pattern, target, key): shape for key, shape in shapes.items() if re.search(pattern, key)}
    return (
        own | {key: shape for key, shape in shapes.items() if key.startswith(f"{prefix}lm_head.")}
        if own
        else dict(shapes)
    )


def how_to_read(text_config: Any, *, is_dense: bool) -> dict[str, Any]:
    """Return the options with which transformers reads the weights of a language model that is in a larger one.

    Args:
        text_config: what ``text_part_of`` returned.
        is_dense: whether quantized weights were made dense.
    """
    config = copy.deepcopy(text_config)
    if is_dense and hasattr(config, "quantization_config"):
        del config.quantization_config
    return {"config": config, "key_mapping": KEYS}
