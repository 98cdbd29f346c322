"""The run directory: its file names, which worker works on what, and how rows become durable."""
