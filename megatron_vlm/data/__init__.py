"""Data: indexed files, the sources they are made from, and the tokenizer."""
