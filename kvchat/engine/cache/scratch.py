"""Memory that lies in a file: entries that need not be in RAM."""

import os
import tempfile
from collections.abc import Sequence
from math import prod

import torch
from platformdirs import user_cache_path
from torch import Tensor

from kvchat.errors import KvchatError


def scratch(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor whose memory is a file without a name in the cache folder, gone with the process.

    The system keeps in RAM what it has room for. Raises KvchatError("memory") if the disk is full.
    """
    folder = user_cache_path("kvchat")
    needed = max(1, prod(shape) * dtype.itemsize)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        number, name = tempfile.mkstemp(".entries", ".kvchat-", folder)
        try:
            os.posix_fallocate(number, 0, needed)  # now, or a later write ends the process
            flat = torch.from_file(name, shared=True, size=prod(shape), dtype=dtype)
        finally:
            os.close(number)
            os.unlink(name)
    except OSError as error:
        raise KvchatError(
            "memory",
            f"{needed:,} bytes of the KV cache do not fit into {folder}: {error.strerror}",
            "home=host in place of home=disk",
            "--method kvzip --budget 10%",
            needed=needed,
        ) from None
    return flat.view(*shape)


def in_file(tensor: Tensor) -> bool:
    """Whether the memory of a tensor is a file that torch has mapped."""
    return tensor.untyped_storage().filename is not None
