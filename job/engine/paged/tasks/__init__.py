"""What a step's logits are for."""
