"""What a run found out about its particles, in memory and in files."""
