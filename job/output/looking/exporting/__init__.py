"""A run's rows as one file. Knows run directories and the formats, not what made the rows."""
