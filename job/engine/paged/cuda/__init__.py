"""What makes a GPU fast."""
