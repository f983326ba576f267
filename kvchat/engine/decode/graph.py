"""A decode step that needs nothing of the host, so that it can be recorded and run again: a CUDA
graph, which the host starts with one call in place of hundreds.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kvchat.engine.cache.layer import KVCache
from kvchat.engine.decode.sampler import Sampler
from kvchat.engine.model.decoder import Decoder

Work = Callable[[], None]
Record = Callable[[Work], Work]


def cuda_graph(work: Work) -> Work:
    """Record what `work` starts on the card, without running it; the result runs it again.

    It must have run before, so that every kernel is compiled. Never done on a card.
    """
    graph = torch.cuda.CUDAGraph()
    # other threads may copy to the host meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


class Step:
    """Feeds the `token [1]` that is in its memory and puts the next one there.

    Entries go behind those of the tails, which count them when `KVCache.accept` is called; the
    tails must have room. Whatever changes from step to step is in tensors that stay where they are.
    """

    def __init__(self, model: Decoder, cache: KVCache, token: int, sampler: Sampler):
        self.model, self.layers, self.sampler = model, cache.layers, sampler
        tail = cache.layers[0].tail
        device = tail.k.device
        self.token = torch.tensor([token], device=device)
        self.position = torch.tensor([cache.rotary], device=device)
        self.place = torch.tensor([tail.place], device=device)  # in the tails' stores
        length = [tail.length] * len(tail.k)
        self.length = torch.tensor(length, dtype=torch.int32, device=device)

    def __call__(self) -> None:
        """One token more."""
        self.length += 1
        x = self.model.embed(self.token.clamp(min=0))  # -1 is said to the host, and not looked up
        rotations = self.model.rotations(self.position)
        for block, layer in zip(self.model.blocks, self.layers, strict=True):
            q, k, v = block.project(x, rotations[block.kind.rope])
            layer.tail.write(k, v, self.place)
            o, _ = layer.attend(q, q.shape[-1] ** -0.5, self.length)
            x = block.finish(x, o)
        self.token.copy_(self.sampler.choose(self.model.logits(x)[0]))
        self.position += 1
        self.place += 1


class Coming:
    """Tokens on their way to the host, at most two."""

    def __init__(self, device: torch.device):
        cuda = device.type == "cuda"
        self._slots = torch.empty(2, dtype=torch.int64, pin_memory=cuda)
        self._events = [torch.cuda.Event() for _ in self._slots] if cuda else []
        self._sent = self._received = 0

    def send(self, token: Tensor) -> None:
        """Copy `token [1]` when the device has computed it; nobody waits."""
        slot = self._sent % 2
        self._slots[slot : slot + 1].copy_(token, non_blocking=True)
        if self._events:
            self._events[slot].record()
        self._sent += 1

    def receive(self) -> int:
        """Wait for the next token."""
        slot = self._received % 2
        self._received += 1
        if self._events:
            self._events[slot].synchronize()
        return int(self._slots[slot])

    def wait(self) -> None:
        """Wait for all that was sent."""
        for event in self._events:
            event.synchronize()


def ahead(step: Step, count: int, record: Record) -> Iterator[int]:
    """`count` tokens of a step; each is given out when the next one is being computed.

    The first step runs as it is, the others are recorded.
    """
    coming, run = Coming(step.token.device), step.__call__
    try:
        for number in range(count):
            run()
            step.sampler.spend()
            coming.send(step.token)
            if number:
                yield coming.receive()
            elif count > 1:
                run = record(step)
        yield coming.receive()
    finally:
        coming.wait()  # what runs needs the recording
