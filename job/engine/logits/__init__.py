"""From logits to tokens and scores."""
