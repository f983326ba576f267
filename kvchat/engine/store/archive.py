"""Archives in a file: written layer by layer during prefill, mapped afterwards.

The file depends on document and model alone, so that any method can choose from it.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvchat.engine.cache.archive import Archive
from kvchat.engine.methods.needs import Needs
from kvchat.engine.prefill.archive_writer import OBSERVED, Archiving
from kvchat.engine.store import Refused
from kvchat.engine.store.atomic import NewFile
from kvchat.engine.store.contents import Contents, Shape, require_archive
from kvchat.engine.store.header import describe
from kvchat.engine.store.tensors import Mapped, Stopped, Writer, aligned
from kvchat.errors import KvchatError

KIND = "kvchat archive"


def beside(entries: Tensor) -> bool:
    """Whether a layer is worth copying to be written beside the next one."""
    return entries.is_cuda


class OnDisk(Archiving):
    """A context around prefill that writes every layer's entries to a file.

    A disk that fails ends the archive, not the prefill: `problem` says so then.
    """

    def __init__(
        self,
        path: Path,
        layers: int,
        ids: Sequence[int],
        fingerprint: str,
        about: Mapping[str, Any],
        needs: Needs = OBSERVED,
    ):
        self.path, self.needs = path, needs
        self.problem: OSError | None = None
        self._layers, self._ids = layers, torch.tensor(ids, dtype=torch.int32)
        self._fingerprint = fingerprint
        self._metadata = describe(KIND, fingerprint, about)
        self._open = ExitStack()
        self._writer: Writer | None = None
        self._shape: Shape | None = None  # of a layer's entries
        self._archives: Sequence[Archive] = ()
        self._writing: threading.Thread | None = None

    def __exit__(self, *_: object) -> None:
        self._wait()
        self._open.__exit__(Stopped, Stopped(), None)  # of a file that is not whole nothing stays

    def keep(self, number: int, keys: Tensor, values: Tensor, observed: dict[str, Tensor]) -> None:
        """Write a layer's entries; with the last one the file is whole.

        Those of a card are written by a thread, one layer at a time, while it reads the next one.
        """
        self._wait()
        if self.problem is not None:
            return
        ordered = aligned({"k": keys, "v": values} | observed)
        self._shape = Shape(keys.shape[0], keys.shape[2], keys.dtype)
        if not beside(keys):
            self._put(number, ordered)
            return
        copied = {name: tensor.cpu() for name, tensor in ordered.items()}
        self._writing = threading.Thread(target=self._put, args=(number, copied), name="archive")
        self._writing.start()

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def _put(self, number: int, ordered: dict[str, Tensor]) -> None:
        try:
            if self._writer is None:
                slots = {
                    f"{layer}.{name}": tensor
                    for layer in range(self._layers)
                    for name, tensor in ordered.items()
                }
                file = self._open.enter_context(NewFile(self.path))
                self._writer = Writer(file, slots | {"ids": self._ids}, self._metadata)
            for name, tensor in ordered.items():
                self._writer.put(f"{number}.{name}", tensor)
            if number == self._layers - 1:
                self._writer.put("ids", self._ids)
                self._writer.close()
                self._open.close()  # on disk, under its name
        except OSError as error:
            self.problem = error
            self._open.__exit__(type(error), error, error.__traceback__)

    def archives(self) -> Sequence[Archive]:
        """One per layer, mapped; none if the disk has failed."""
        self._wait()
        if self.problem is None and not self._archives:
            try:
                assert self._shape is not None, "a layer has been written"
                self._archives = load_archives(
                    self.path, self._ids.tolist(), self._fingerprint, self._layers, self._shape
                )
            except OSError as error:
                self.problem = error
        return self._archives


def load_archives(
    path: Path, ids: Sequence[int], fingerprint: str, layers: int, shape: Shape
) -> list[Archive]:
    """The archives of the document `ids`, one per layer, mapped; bytes are checked when used.

    Raises Refused with the reason, OSError if the file cannot be opened.
    """
    mapped = Mapped(path)
    mapped.header.require(KIND, fingerprint)
    contents = Contents(mapped.tensors)
    known = contents.take("ids", torch.int32, None)
    mapped.check(["ids"])
    if known.tolist() != list(ids):
        raise Refused("its token ids differ")
    found = []
    for number in range(layers):
        own = contents.part(f"{number}.").tensors
        require_archive(own, shape, len(ids))
        keys, values = own.pop("k"), own.pop("v")
        found.append(Archive(keys, values, own, True, _check(path, mapped, f"{number}.")))
    contents.end()
    return found


def _check(path: Path, mapped: Mapped, prefix: str) -> Callable[[], None]:
    def check() -> None:
        try:
            mapped.check(name for name in mapped.tensors if name.startswith(prefix))
        except Refused as problem:
            raise KvchatError("session", f"{path} cannot be used: {problem}", "/select -") from None

    return check
