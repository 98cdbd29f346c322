"""The numbers of a run, and of two runs together, as values: made from the parts alone, without a model."""
