"""Results of a run for each of its particles, in memory and in files."""
