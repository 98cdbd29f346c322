"""What a run writes: plan, manifest, journals, Parquet parts, card."""
