"""The tasks that use a step's logits."""
