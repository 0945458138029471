"""One file a method. A new method is found by lying here: nothing lists them."""
