"""A run: from a source and a target to a folder with the model, its predictions and the evidence."""
