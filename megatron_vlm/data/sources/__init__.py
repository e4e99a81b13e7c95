"""Readers: one file a format, each a `megatron_vlm.data.records.Source`."""
