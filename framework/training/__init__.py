"""The loop, its callbacks, metrics and checkpoints."""
