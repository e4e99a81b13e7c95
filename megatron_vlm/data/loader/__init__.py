"""Micro-batches made ready ahead of the training, by worker processes that write into shared memory."""
