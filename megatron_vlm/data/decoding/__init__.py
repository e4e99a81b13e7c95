"""Encoded pictures into the encoder's pixels. Nothing here imports torch: decoding runs in processes that have none."""
