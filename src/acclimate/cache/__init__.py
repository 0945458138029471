"""The cache: what a frozen network makes of an image is computed once."""
