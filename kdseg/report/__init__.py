"""The report: one HTML page per run that needs nothing from the network, and the same table as text."""
