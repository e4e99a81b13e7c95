"""Ranks: process groups of a layout, and the host platform that runs megatron-core on CPU ranks."""
