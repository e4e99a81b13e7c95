"""Weights in and out: Hugging Face folders and open_lm checkpoints, to and from this project's own checkpoints.

A family (`families/`) says what a foreign `config.json` means in this project's configuration and which of its tensors are
which of ours, both ways. `importing` and `exporting` move tensors one by one along that list: neither builds a model, and
memory stays near one shard. docs/interop.md is the page for users.
"""
