"""What a person sees while a run goes: progress, figures, the summary. And silence where it belongs."""
