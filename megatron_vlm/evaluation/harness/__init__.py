"""Checkpoints driven by other projects' evaluation harnesses."""
