"""Weights of other libraries out of our checkpoints."""
