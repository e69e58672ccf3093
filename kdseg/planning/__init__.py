"""What a run will take: its jobs, counted from the configuration, times a few blocks that were timed."""
