"""The `megatron-vlm` command: one verb a file, each imported only when it is called."""
