"""What a person sees of a run: the preview, progress, status and the summary. It also silences the libraries."""
