"""Which adapters can be merged into the weights of a model, by what their configuration says, and why others cannot.

Those that can were compared with peft before the merge, in float32 (``tests/test_adapters.py``).
"""

from collections.abc import Mapping
from typing import Any

from job.errors import UsageError
from job.wording import listed

MERGED = (
    *("LORA", "ADALORA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "TRAINABLE_TOKENS"),
    "VERA",
)
"""The values of ``peft_type`` that are merged."""

IN_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE")
MIXTURES = ("XLORA", "POLY")

REPEATABLE = (True, False, None, "gaussian", "eva", "olora", "orthogonal", "pissa")
"""Ways to begin the training of a LoRA adapter that leave its model as it is, or that peft repeats when it loads one.

The others change the model in a way that the adapter does not hold; ``pissa_niter_16`` draws at random.
"""

NOT_MERGED = {
    "layer_replication": "which uses layers of the model several times",
    "alora_invocation_tokens": "so it changes only what follows these tokens",
    "arrow_config": "so it is a mixture, chosen anew for each token",
    "use_qalora": "which is for quantized layers",
    "use_bdlora": "which has not been compared with its merged weights",
    "kasa_config": "which also changes the model that it is for",
    "monteclora_config": "which draws at random",
    "megatron_config": "which is for models of Megatron",
}
"""Settings of LoRA that a merge cannot carry, or would carry out wrongly."""


def check_kind(name: str, settings: Mapping[str, Any]) -> None:
    """Check that an adapter can be merged.

    Args:
        name: the adapter's, for messages.
        settings: what its configuration says.

    Raises:
        UsageError: it cannot.
    """
    kind = str(settings.get("peft_type", "without a peft_type"))
    if kind in IN_PROMPTS:
        raise UsageError(
            f"--adapter {name} is of the kind {kind}: it puts trained vectors before every prompt, in place of "
            "changing weights, so it cannot be merged."
        )
    if kind in MIXTURES:
        raise UsageError(
            f"--adapter {name} is of the kind {kind}: it is a mixture whose parts are weighed anew for each text, so "
            "it cannot be merged."
        )
    if kind not in MERGED:
        raise UsageError(f"--adapter {name} is of the kind {kind}; those that are merged are {listed(sorted(MERGED))}.")
    begun = settings.get("init_lora_weights")
    if begun not in REPEATABLE:
        raise UsageError(
            f"--adapter {name} was begun with {begun}, which also changes the model that it is for. Convert it to a "
            "plain LoRA with peft (path_initial_model_for_weight_conversion), or merge it where it was trained."
        )
    for setting, reason in NOT_MERGED.items():
        if settings.get(setting):
            raise UsageError(f"--adapter {name} has {setting}, {reason}: it cannot be merged.")
