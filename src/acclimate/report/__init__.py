"""The report of a run or a bench: one HTML file."""
