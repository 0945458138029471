"""Networks: backbones, how they are divided, and what a method trains."""
