"""Public families of foreign checkpoints, one file a family."""
