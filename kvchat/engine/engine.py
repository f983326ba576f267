"""`Engine`: a loaded model that reads and writes token ids. Knows nothing of text."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from kvchat.engine import attribution, compaction, features, gates, ops, selection
from kvchat.engine.attention.choice import choose
from kvchat.engine.cache.archive import Archive
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.low_rank import Features
from kvchat.engine.decode.loop import Writer, compile_beside
from kvchat.engine.decode.sampler import Constraint, Sampler
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.decode.together import together
from kvchat.engine.devices import entry, on_its_card
from kvchat.engine.events import Progress, Smaller, drain
from kvchat.engine.gates import Gate, Scorer
from kvchat.engine.kernels import kernels_on
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.needs import Needs
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.prefill import prefill, walk
from kvchat.engine.prefill.append import append
from kvchat.engine.prefill.archive_writer import Archiving, Notes
from kvchat.engine.prefill.prefill import Compression, Prefill
from kvchat.engine.prefill.replay import Replay
from kvchat.engine.prefill.stream import stream
from kvchat.engine.ranks import Lead
from kvchat.engine.sizes import CHUNKS, Streamed

R = TypeVar("R")


class Engine:
    """One model on one device, or a rank's part of it. Every public entry runs in inference mode;
    with a `lead` the other ranks do the same."""

    lead: Lead | None = None
    number = 0  # of the lead's models

    def __init__(
        self,
        model: Decoder,
        attention: str = "auto",
        kernels: str = "auto",
        without: Mapping[str, str] | None = None,
    ):
        """`without`: attention backends that are not asked, and why."""
        self.model, self.attention = model, attention
        self.config, self.peers = model.whole, model.peers
        self.device, self.dtype = model.device, model.dtype
        self.here()
        self.backend = choose(attention, self.device, self.config.attention_cap, without)
        self.chunk = CHUNKS[self.device.type]
        self.kernels = kernels_on(self.device.type, kernels)
        ops.use(self.kernels)
        self.writer = Writer.on(model, self.device, self.kernels)

    def here(self) -> None:
        """Make the engine's card the one on which this thread starts kernels and records graphs."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights, tied ones once."""
        return sum(p.nbytes for p in self.model.parameters())

    @cached_property
    def gate(self) -> Gate | None:
        """The gate of the model, if there is one."""
        return gates.find(self.model)

    @cached_property
    def features(self) -> list[Features] | None:
        """The maps of LESS of every layer that attends to all tokens, if they were fitted."""
        return features.find(self.model)

    @property
    def weights(self) -> str:
        """How weights are stored, as in `int4 and bfloat16`; see `Decoder.stored`."""
        return self.model.stored

    def kv_bytes(self, tokens: int) -> int:
        """Bytes that so many tokens hold in an uncompressed cache."""
        return self.config.kv_values(tokens) * self.dtype.itemsize

    @entry
    def empty_cache(self) -> KVCache:
        """A cache that has seen nothing."""
        return walk.empty_cache(self.model, self.backend)

    @entry
    def prefill(
        self,
        ids: Sequence[int],
        compressions: Sequence[Compression],
        probes: Sequence[Sequence[int]] = (),
        replays: Sequence[Replay] = (),
        archiving: Archiving | None = None,
        gate: Scorer | None = None,
    ) -> Generator[Progress | Smaller, None, Prefill]:
        """Read `ids` once into one cache per compression; see `prefill.prefill`.

        The `gate` is the model's own if none is given. Raises KvchatError("usage") for a method
        that needs one, or maps, where there are none.
        """
        assert ids, "an empty document has nothing to read"
        needs = [archiving.needs] if archiving is not None else []
        if gate is None:
            gate = self._prepared([each.method for each in compressions], needs)
        given = (self.model, ids, compressions, self.backend, self.chunk, probes, replays)
        found = yield from prefill.prefill(*given, archiving, gate)
        if isinstance(archiving, Notes):
            for cache in found.caches:
                archiving.add_to(cache)
        return found

    @entry
    def stream(
        self,
        ids: Sequence[int],
        compression: Compression,
        streamed: Streamed,
        probes: Sequence[Sequence[int]] = (),
        replays: Sequence[Sequence[Replay]] = (),
    ) -> Generator[Progress | Smaller, None, Prefill]:
        """Read `ids` that are longer than the window, part by part; see `stream.stream`."""
        gate = self._prepared([compression.method])
        given = self.model, ids, compression, self.backend, self.chunk, streamed, probes, replays
        return (yield from stream(*given, gate))

    @entry
    def append(
        self, cache: KVCache, ids: Sequence[int], method: Method, replays: Sequence[Replay] = ()
    ) -> Generator[Progress | Smaller, None, float]:
        """Put a document behind those of a cache, compressed by itself; see `append.append`."""
        gate = self._prepared([method])
        return (yield from append(self.model, cache, ids, method, self.chunk, replays, gate))

    def _give_maps(self, needs: Sequence[Needs]) -> None:
        if any(each.features for each in needs):
            features.give(self.model, self.features)

    def _prepared(self, methods: Sequence[Method], needs: Sequence[Needs] = ()) -> Gate | None:
        """Compile what the methods' segments need, give the blocks the maps that are needed; the
        gate, if one is. Raises KvchatError("usage") where gate or maps are not there."""
        for method in methods if self.kernels == "numba" else ():
            if method.kind:
                compile_beside(self.dtype, method.kind)
        asked = [*needs, *(method.needs for method in methods)]
        self._give_maps(asked)
        return gates.required(self.gate) if any(each.gate for each in asked) else None

    @entry
    def extend(
        self, cache: KVCache, ids: Sequence[int]
    ) -> Generator[Progress | Smaller, None, Tensor]:
        """Append `ids` to a cache; the generator's value is the last logits `[vocab]`."""
        x = yield from walk.extend(self.model, cache, ids, self.chunk)
        return self.model.logits(x[-1:])[0]

    @entry
    def extend_all(
        self, caches: Sequence[KVCache], ids: Sequence[Sequence[int]]
    ) -> Generator[Progress, None, Tensor]:
        """Append to each cache its `ids`, all at once, see `together.together`; the generator's
        value are the last logits `[B, vocab]`."""
        return (yield from together(self.model, caches, ids))

    @entry
    def extend_choosing(
        self, cache: KVCache, ids: Sequence[int], method: Method
    ) -> Generator[Progress | Smaller, None, tuple[Tensor, float]]:
        """Append a question's `ids` and keep what it needs, see `selection.extend_choosing`. The
        generator's value are the last logits `[vocab]` and the seconds that choosing took."""
        self._give_maps([method.needs])
        steps = selection.extend_choosing(self.model, cache, ids, self.chunk, method)
        x, seconds = yield from steps
        return self.model.logits(x[-1:])[0], seconds

    @entry
    def chosen(self, archives: Sequence[Archive], method: Method) -> KVCache | None:
        """The cache of a document whose archives are there, as a prefill would have left it; None
        if archives cannot tell: see `selection.archived`."""
        cache = selection.archived(self.empty_cache(), archives, method)
        if cache is not None:
            self.choose(cache, method)
        return cache

    @entry
    def choose(self, cache: KVCache, method: Method) -> float:
        """Choose again what is kept, from the cache's archive; see `selection.choose`."""
        self._give_maps([method.needs])
        return selection.choose(self.model, cache, method)

    @entry
    def fold(self, cache: KVCache, method: Method, since: int, end: int) -> None:
        """Compress the entries between positions `since` and `end`; see `compaction.fold`."""
        compaction.fold(self.model, cache, method, since, end)

    @entry
    def pace(self, chunk: int) -> None:
        """Let so many tokens walk a layer at once."""
        self.chunk = chunk

    @entry
    def everywhere(self, work: Callable[..., R], *about: Any) -> R:
        """What `work(engine, *about)` gives, which every rank does with its part; a cache in what
        it gives is one of all ranks."""
        return work(self, *about)

    @entry
    def weights_held(self) -> list[int]:
        """Bytes of the weights on each rank."""
        return self.peers.joined(torch.tensor([self.weights_bytes])).tolist()

    @entry
    def kept(self, cache: KVCache, end: int) -> list[list[int]]:
        """Entries of each layer's heads, those of all ranks, that are kept of the first `end`
        tokens, where segments begin."""
        return self.peers.joined(
            torch.tensor([layer.kept(end) for layer in cache.layers]), 1
        ).tolist()

    @entry
    def held(self, cache: KVCache, end: int) -> list[int]:
        """Bytes that each rank holds of the first `end` tokens."""
        return self.peers.joined(torch.tensor([cache.held(end)])).tolist()

    @entry
    def watch(self, cache: KVCache, method: Method, since: int) -> None:
        """Let a cache gather what a method will want to know; see `compaction.watch`."""
        compaction.watch(cache, method, since)

    @entry
    def score(self, cache: KVCache, ids: Sequence[int], written: int = 0) -> Tensor:
        """Logits `[T, vocab]` after each of `ids`; the cache is left as it was.

        The last `written` of them are fed one by one, as if they were being written, if a token
        by itself reads less than several do.
        """
        before = cache.position
        together = len(ids) - (written if any(layer.sliding for layer in cache.layers) else 0)
        parts = [ids[:together], *([i] for i in ids[together:])]
        entries = [walk.extend(self.model, cache, part, self.chunk) for part in parts if part]
        x = torch.cat([drain(entry) for entry in entries])
        cache.truncate(before)
        return self.model.logits(x)

    def recorded(self, cache: KVCache) -> AbstractContextManager[list[attribution.Queries]]:
        """Keep queries of what passes meanwhile, to tell what an answer is from.

        None are kept where tokens are decoded by a recorded step, which shows nobody its queries,
        nor where other ranks have some of them.
        """
        if self.device.type == "cuda" or self.peers.count > 1:
            return nullcontext([])
        return attribution.recorded(self.config, cache)

    @entry
    def attended(
        self,
        cache: KVCache,
        ids: Sequence[int],
        following: Mapping[int, int],
        document: Sequence[int],
        found: Sequence[attribution.Queries] = (),
    ) -> Tensor:
        """How much the cache's newest tokens `ids` attend to each token of its document, `[N]`: by
        the queries that were recorded, else they pass again; see `attribution.attended`."""
        found = found or attribution.replayed(self.model, cache, ids)
        return attribution.attended(found, following, document, self.peers)

    @entry
    def feed(self, cache: KVCache, token: int) -> Tensor:
        """Append a token to the cache; the logits `[vocab]` after it, until the next call."""
        return self.writer.after(cache, token)

    @on_its_card
    def decode(
        self,
        cache: KVCache,
        logits: Tensor,
        sampling: Sampling,
        drawn: Sequence[int] = (),
        constraint: Constraint | None = None,
    ) -> Iterator[int]:
        """Tokens after `logits [vocab]`, without end, or until a constraint lets nothing follow.

        `drawn` are the tokens that were drawn before: the random stream and the repetition penalty
        go on after them. A token is fed to the cache when the next one is asked for: the last one
        that was yielded is *pending* and belongs to the next `extend`.
        """
        sampler = Sampler(sampling, self.device, drawn, constraint)
        feed = self.feed if self.peers.count > 1 else None
        yield from self.writer.write(cache, logits, sampler, feed)

    @entry
    def step(self, caches: Sequence[KVCache], tokens: Sequence[int]) -> Tensor:
        """Append to each cache its token; the logits `[B, vocab]` after them, until the next call.

        The weights are read once for all: several answers at once take little longer than one.
        """
        return self.writer.together(caches, tokens)
