"""A bench: grids of runs, their records, and tables beside the papers'."""
