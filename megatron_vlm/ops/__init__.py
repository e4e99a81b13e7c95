"""Operators: each has a reference in numpy or PyTorch and, where it pays, native code that agrees with it."""
