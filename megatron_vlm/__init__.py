"""megatron_vlm: vision-language pre-training on megatron-core, images introduced at any point of the run."""

__version__ = "0.1.0"
