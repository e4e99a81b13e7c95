"""Tokenizers, one library a file, behind one protocol; `megatron_vlm.data.tokenizer` is what others use."""
