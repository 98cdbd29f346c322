"""From a dataset to token ids: open it, read rows by index, render prompts, tokenize."""
