"""Adapters: LoRA and its relatives, checked before any weights are loaded, then merged into the model by peft."""
