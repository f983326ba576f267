"""Peers: the processes that hold one model together, each its own KV heads, and how numbers pass
between them.

Nothing is ever summed over processes on the way to a token: parts are joined. So each computes, bit
for bit, what one process alone would, and all decide alike.
"""

import pickle
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from kvchat.errors import KvchatError

T = TypeVar("T")


class Peers:
    """One process alone, which has everything: the case of which others are the general form."""

    rank, count = 0, 1

    def own(self, x: Tensor, dim: int = 0) -> Tensor:
        """This rank's part of a tensor of all heads; the parts are equal."""
        each = x.shape[dim] // self.count
        return x.narrow(dim, self.rank * each, each)

    def joined(self, x: Tensor, dim: int = 0, sizes: Sequence[int] = ()) -> Tensor:
        """The parts of all ranks one after the other, in the order of ranks. They are equal, or
        have these `sizes` along `dim`."""
        return x

    def ragged(self, x: Tensor) -> tuple[Tensor, slice]:
        """The vectors `[n]` of all ranks, whose lengths differ, one after the other; and where this
        rank's is among them."""
        return x, slice(0, len(x))

    def added(self, x: Tensor) -> Tensor:
        """The sum over ranks, each rank's in turn. For counts, and for what is only shown."""
        return x

    def merged(self, x: Tensor) -> Tensor:
        """A tensor of which each rank has some numbers, and zeros for those of others; in place."""
        return x

    def exchanged(self, value: Any) -> list[Any]:
        """What every rank has of something, in the order of ranks."""
        return [value]

    def agreed(self, work: Callable[[], T], *errors: type[Exception]) -> T:
        """What `work` gives here, if it gives something on every rank. Where one of these `errors`
        ends it, all raise that of the first such rank."""
        problem: Exception | None = None
        try:
            found = work()
        except errors as error:
            problem = error
        for each in self.exchanged(problem):
            if each is not None:
                raise each
        return found


ALONE = Peers()


class Group(Peers):
    """Several processes, by torch.distributed.

    `connect` is called once, before the first operation; `why` tells what became of a rank that
    has ended.
    """

    def __init__(
        self,
        rank: int,
        count: int,
        connect: Callable[[], None] = lambda: None,
        why: Callable[[], str] = lambda: "",
    ):
        self.rank, self.count, self.connect, self.why = rank, count, connect, why
        self._connected = False

    def joined(self, x: Tensor, dim: int = 0, sizes: Sequence[int] = ()) -> Tensor:
        front = x.movedim(dim, 0)
        most = max(sizes, default=len(front))
        if len(front) < most:
            front = torch.cat((front, front.new_zeros(most - len(front), *front.shape[1:])))
        front = front.contiguous()
        found = front.new_empty(self.count, *front.shape)
        self._do(lambda d: _gather(d)(_bytes(found), _bytes(front)))
        if len(set(sizes)) > 1:
            whole = torch.cat([part[:n] for part, n in zip(found, sizes, strict=True)])
        else:
            whole = found.flatten(0, 1)
        return whole.movedim(0, dim).contiguous()  # products of others are others

    def ragged(self, x: Tensor) -> tuple[Tensor, slice]:
        sizes = self.joined(torch.tensor([len(x)], device=x.device)).tolist()
        begin = sum(sizes[: self.rank])
        return self.joined(x, 0, sizes), slice(begin, begin + len(x))

    def added(self, x: Tensor) -> Tensor:
        return self.joined(x[None]).sum(dim=0)

    def merged(self, x: Tensor) -> Tensor:
        self._do(lambda d: d.all_reduce(_bytes(x)))  # a byte and zeros: nothing is rounded
        return x

    def exchanged(self, value: Any) -> list[Any]:
        text = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = self.joined(torch.tensor([len(text)])).tolist()
        parts = self.joined(text, 0, sizes).split(sizes)
        return [pickle.loads(part.numpy().tobytes()) for part in parts]

    def send(self, payload: bytes | None = None) -> bytes:
        """What the first rank says: it gives a payload, the others wait for it, however long."""
        size = torch.tensor([0 if payload is None else len(payload)])
        self._do(lambda d: d.broadcast(size, 0))
        if not int(size):
            return b""
        text = torch.empty(int(size), dtype=torch.uint8)
        if payload is not None:
            text = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        self._do(lambda d: d.broadcast(text, 0))
        return text.numpy().tobytes()

    def leave(self) -> None:
        """Let go of the connections."""
        import torch.distributed

        if self._connected and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _do(self, work: Callable[[Any], Any]) -> None:
        """A collective operation. Raises KvchatError("device") if a rank has ended."""
        import torch.distributed

        try:
            if not self._connected:
                self.connect()
                self._connected = True
            work(torch.distributed)
        except RuntimeError as error:
            why = self.why() or broken(error)
            raise KvchatError(
                "device",
                f"one of the {self.count} processes that hold the model has ended: {why}",
                "the same again",
                "--devices 1",
                ranks=self.count,
            ) from None


def broken(error: RuntimeError) -> str:
    """What libraries say of a connection that broke, without the place in their source and advice:
    `Read error [10.0.0.2]:31928: Connection reset by peer`."""
    text = re.sub(r"^\[\S+\] ", "", str(error).partition("\n")[0])
    return re.split(r"\. |$", text)[0][:200]


def _gather(distributed: Any) -> Any:
    """Its name changed with torch 2.13."""
    name = "all_gather_single"
    return getattr(distributed, name if hasattr(distributed, name) else "all_gather_into_tensor")


def _bytes(x: Tensor) -> Tensor:
    """A contiguous tensor as bytes: not every backend takes every dtype."""
    return x.view(-1).view(torch.uint8)
