"""The run directory: its file names, who works on what, and how rows become durable."""
