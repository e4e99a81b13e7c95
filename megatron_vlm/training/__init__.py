"""The loop: stages, learning rate, optimiser, checkpoints, metrics."""
