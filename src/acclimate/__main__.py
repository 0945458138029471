"""`python -m acclimate` is the command `acclimate`."""

from acclimate.cli.app import main

main()
