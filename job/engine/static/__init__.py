"""The simple engine: static batches through transformers."""
