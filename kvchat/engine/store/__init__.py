"""Cached documents on disk: safetensors files that appear whole or not at all. Importing this
imports no torch."""

FORMAT = 1
"""Raise it when a cached document would be read differently: older files are then refused."""

SUFFIX = ".safetensors"


class Refused(Exception):
    """A cached document that cannot be used; the text says why."""
