"""`Memory`: exact bytes of tensors by where they live."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """Bytes that a cache uses: on the compute device, in host memory beside it, on disk."""

    device: int = 0
    host: int = 0
    disk: int = 0

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(self.device + other.device, self.host + other.host, self.disk + other.disk)

    @property
    def total(self) -> int:
        """All bytes, wherever they are."""
        return self.device + self.host + self.disk

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> "Memory":
        """Device bytes behind `tensors`: each storage once, room to grow included."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return cls(device=sum(storages.values()))
