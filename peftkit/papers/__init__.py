"""Papers: printed tables as CSV, and the studies that run them again."""
