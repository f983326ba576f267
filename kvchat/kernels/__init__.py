"""Arithmetic: tensors and ints in, tensors out."""
