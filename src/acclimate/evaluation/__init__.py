"""How good a classifier is on the target. Target labels exist in this package alone, and nothing here trains."""
