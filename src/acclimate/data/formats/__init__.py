"""The forms in which data lie on a disk: folders, lists and arrays."""
