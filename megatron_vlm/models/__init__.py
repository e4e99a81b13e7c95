"""The vision-language model: megatron-core's transformer, one model code, the layer spec its only platform difference."""
