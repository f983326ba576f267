"""Where entries lie that are not attended to all at once: on the device, in host memory that a card
reads by itself, or in a file."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvchat.engine.cache import HOMES


class _Locked(np.ndarray[Any, Any]):
    """Bytes that the driver has locked; unlocked when the last tensor over them is gone."""

    address = 0

    def __del__(self) -> None:
        if self.address:  # a view of it has none
            torch.cuda.cudart().cudaHostUnregister(self.address)


def locked(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor in host memory that a card may read and copy from while the host does other things.

    Of exactly its size: torch's own pinned blocks are rounded up to a power of two, up to twice as
    much as is planned. Where the system locks no more memory it is plain.
    """
    needed = prod(shape) * dtype.itemsize
    if needed == 0 or not torch.cuda.is_available():
        return torch.empty(*shape, dtype=dtype)
    store = np.empty(needed, np.uint8).view(_Locked)
    address = store.ctypes.data
    if int(torch.cuda.cudart().cudaHostRegister(address, needed, 0)) == 0:
        store.address = address
    return torch.from_numpy(store).view(dtype).view(*shape)


def home_of(entries: Tensor, device: torch.device) -> str:
    """Which of `HOMES` entries have that are attended to on `device`.

    A CPU has one, for what it has read from a file is mapped in any case. A card reaches locked
    memory; what is neither there nor locked is in a file, or may be.
    """
    device_home, host, disk = HOMES
    if device.type == "cpu" or entries.device == device:
        return device_home
    return host if entries.is_pinned() else disk


def placed(entries: Tensor, home: str, device: torch.device) -> Tensor:
    """Entries that were read from a file, where they belong: the file itself stays mapped."""
    if home == "device" or device.type == "cpu":
        return entries.to(device)
    return entries if home == "disk" else locked(entries.shape, entries.dtype).copy_(entries)
