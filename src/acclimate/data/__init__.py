"""Reading what the user has: images and labels in, batches out. Knows nothing of networks or methods."""
