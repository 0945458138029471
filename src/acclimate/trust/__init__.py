"""Trust without target labels: consensus, shares, validators, estimates and warnings."""
