"""Kernels for CPUs, compiled by numba: what one decoded token needs.

They work on numpy arrays that share the tensors' memory; see `numbers.view` for dtypes that numpy
does not have. Each has a twin in torch (`kernels/reference.py`, or the module that it stands for).
"""
