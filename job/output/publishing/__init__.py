"""Publishing a run: its parts and its card in a dataset repository of the Hugging Face Hub."""
