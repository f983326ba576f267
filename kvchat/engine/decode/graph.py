"""A decode step that needs nothing of the host, so that it can be recorded and run again: a CUDA
graph, which the host starts with one call in place of hundreds.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.decode.sampler import Sampler
from kvchat.engine.model.decoder import Decoder

NO_WINDOW = 2**31 - 1
Work = Callable[[], None]
Record = Callable[[Work], Work]


def cuda_graph(work: Work) -> Work:
    """Record what `work` starts on the card, without running it; the result runs it again.

    It must have run before, so that every kernel is compiled. Never done on a card. If it fails
    the thread is on the stream again that it was on: torch's own context leaves it on the side
    stream when ending a broken capture raises.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # other threads may copy to the host meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
    finally:
        torch.cuda.set_stream(stream)
    return graph.replay


class Step:
    """Feeds the `token [1]` that is in its memory and puts the next one there.

    Entries go behind those of the tails, which count them when `KVCache.accept` is called; the
    tails must have room. Whatever changes from step to step is in tensors that stay where they are.
    Where queries are observed, those of `room` tokens are kept until `show`.
    """

    def __init__(self, model: Decoder, cache: KVCache, token: int, sampler: Sampler, room: int):
        self.model, self.layers, self.sampler = model, cache.walked, sampler
        device, config = model.device, model.config
        shape = room, config.num_heads, config.head_dim
        self.seen = {
            number: (
                torch.empty(shape, dtype=model.dtype, device=device),
                torch.empty(shape[:2], device=device),
            )
            for number, layer in enumerate(self.layers)
            if layer.observers
        }
        self.first = cache.rotary
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)
        self.token = torch.tensor([token], device=device)
        self.position = torch.tensor([cache.rotary], device=device)
        # layers whose tails are alike in size and window share their numbers
        kinds = [
            (tail.place, tail.length, tail.capacity, getattr(layer, "window", NO_WINDOW))
            for layer in self.layers
            if (tail := layer.tail)
        ]
        every = list(dict.fromkeys(kinds))
        self.numbers = [every.index(kind) for kind in kinds]
        tails = [self.layers[kinds.index(kind)].tail for kind in every]
        heads = len(tails[0].k)
        self.places = torch.tensor([[kind[0]] for kind in every], device=device)  # in the stores
        self.firsts = torch.stack([tail.first for tail in tails])
        lengths = [[kind[1]] * heads for kind in every]
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device=device)  # [kinds, H]
        windows = [[kind[3]] for kind in every]
        self.windows = torch.tensor(windows, dtype=torch.int32, device=device)
        self.visible, self.starts = torch.empty_like(self.lengths), torch.empty_like(self.lengths)

    def __call__(self) -> None:
        """One token more."""
        self.lengths += 1
        torch.minimum(self.lengths, self.windows, out=self.visible)
        torch.add(self.firsts, self.lengths, out=self.starts).sub_(self.visible)
        model, pending = self.model, None
        x = model.embed(self.token.clamp(min=0))  # -1 is said to the host, and not looked up
        rotations = model.rotations(self.position)
        every = zip(model.blocks, self.layers, self.numbers, strict=True)
        for number, (block, layer, kind) in enumerate(every):
            x, h = block.begin(x, pending)
            q = block.place(h, rotations[block.kind.rope], layer.tail, self.places[kind])
            ahead = layer.tail.entries_ahead(self.visible[kind], self.starts[kind])
            o, lse = layer.attend(q, q.shape[-1] ** -0.5, ahead)
            if number in self.seen:
                for kept, new in zip(self.seen[number], (q, lse), strict=True):
                    kept.index_copy_(0, self.slot, new)
            x, pending = block.attended(x, o)
        assert pending is not None, "a model has layers"
        _, h = pending.added(x, model.model.norm, model.config.rms_norm_eps)
        self.token.copy_(self.sampler.choose(model.predicted(h)[0]))
        self.position += 1
        self.places += 1
        if self.seen:
            self.slot += 1

    def show(self, tokens: int) -> None:
        """Let the layers' observers see the queries of the first `tokens` tokens, which count by
        now: all together, as those of a question."""
        if not self.seen or not tokens:
            return
        positions = torch.arange(self.first, self.first + tokens, device=self.token.device)
        rotations = self.model.rotations(positions)
        for number, (q, lse) in self.seen.items():
            layer, turned = self.layers[number], rotations[self.model.blocks[number].kind.rope]
            assert isinstance(layer, LayerCache), "sliding layers have no observers"
            given = q[:tokens], lse[:tokens], layer, q.shape[-1] ** -0.5, turned.cos, turned.sin
            for observer in layer.observers:
                observer.see(*given)


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
