"""Arithmetic: tensors and ints in, tensors out. Knows nothing of caches, models or methods."""
