"""Plans of runs: jobs, counted from the configuration, times a few blocks that were timed."""
