"""`Engine`: a loaded model that reads and writes token ids. Knows nothing of text."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from kvchat.engine import attribution, compaction, ops, selection
from kvchat.engine.attention.choice import choose
from kvchat.engine.cache.archive import Archive
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.cache.low_rank import Features
from kvchat.engine.decode.loop import Writer, compile_beside
from kvchat.engine.decode.sampler import Constraint, Sampler
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.decode.together import together
from kvchat.engine.decode.warm_card import Warming
from kvchat.engine.devices import entry, on_its_card, resolve_device, resolve_dtype
from kvchat.engine.events import Loading, Progress, Smaller, drain
from kvchat.engine.features import find as find_features
from kvchat.engine.gates import Gate, Scorer, find
from kvchat.engine.kernels import kernels_on
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.needs import Needs
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.model.shard import Shard
from kvchat.engine.peers import ALONE, Peers
from kvchat.engine.prefill import prefill, walk
from kvchat.engine.prefill.append import append
from kvchat.engine.prefill.archive_writer import Archiving, Notes
from kvchat.engine.prefill.prefill import Compression, Prefill
from kvchat.engine.prefill.replay import Replay
from kvchat.engine.prefill.stream import stream
from kvchat.engine.ranks import Lead
from kvchat.engine.sizes import CHUNKS, Streamed
from kvchat.engine.weights.checkpoint import load_weights
from kvchat.engine.weights.linear import STORED, Embedding, Linear
from kvchat.errors import KvchatError

WARMED = ("full", "kvzip:budget=50%", "adakv:budget=50%", "pqcache:budget=30%")
WAIT = 0.2  # seconds between two looks at what is compiled


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

    @classmethod
    def load(
        cls,
        folder: Path,
        config: ModelConfig,
        dtype: str = "auto",
        device: str = "auto",
        weights: str = "auto",
        attention: str = "auto",
        kernels: str = "auto",
        lead: Lead | None = None,
        peers: Peers = ALONE,
    ) -> Generator[Loading, None, "Engine"]:
        """Stream a checkpoint in; the generator's value is the engine.

        With a `lead`, this is the first of several ranks, and the others load their parts beside;
        those are told the same with their `peers`.
        Kernels that have to be compiled are, beside it: those of a card are waited for. If they
        cannot run there, and nobody asked for them by name, the engine does without and
        `warnings` say why.
        """
        if lead is not None:
            peers = lead.group
            Shard(peers.rank, peers.count).of(config)  # refused before anybody begins
        where, kind = resolve_device(device, peers), resolve_dtype(dtype, config, weights)
        backend = choose(attention, where, config.attention_cap)  # refused now if it cannot run
        compiled, warming = kernels_on(where.type, kernels), None
        if compiled == "numba":
            compile_beside(kind)
        model = None
        loading = load_weights(folder, config, kind, where, weights, peers)
        begun = next(loading)  # names and shapes are checked by now
        assert not isinstance(begun, Decoder), "load_weights begins with sizes"
        yield Loading(*begun)
        total = begun[1]
        if lead is not None:
            lead.load(folder, config, dtype, device, weights, attention, kernels)
        for item in loading:
            if isinstance(item, Decoder):
                model = item
                break
            if warming is None and compiled == "triton":
                methods = [parse_method(spec) for spec in WARMED]
                warming = Warming(config, kind, where, weights, backend, methods)
            yield Loading(*item)
            total = item[1]
        assert model is not None, "load_weights ends with the model"
        while warming is not None and not warming.ended(WAIT):
            yield Loading(total, total, "compiling kernels for this card: the first time only")
        without = {"triton": warming.problem} if warming is not None and warming.problem else None
        if without and "triton" in (attention, kernels):
            raise KvchatError(
                "device",
                f"the kernels do not run here: {without['triton']}",
                "--attention torch --kernels torch",
                why=without["triton"],
            )
        engine = cls(model, attention, "torch" if without else kernels, without)
        engine.lead, engine.number = lead, lead.loaded if lead is not None else 0
        return engine

    def here(self) -> None:
        """Make the engine's card the one on which this thread starts kernels and records graphs."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    @property
    def warnings(self) -> list[str]:
        """What should run here and does not, and what that costs."""
        broken: dict[str, str] = getattr(self.backend, "broken", {})
        slower = {"flash": "documents are read by our own kernels", "triton": "torch is slower"}
        return [f"{name} does not run: {why} ({slower[name]})" for name, why in broken.items()]

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights, tied ones once."""
        return sum(p.nbytes for p in self.model.parameters())

    @cached_property
    def gate(self) -> Gate | None:
        """The gate of the model, if there is one."""
        return find(self.model)

    def required_gate(self) -> Gate:
        """The gate of the model. Raises KvchatError("usage") if there is none."""
        if self.gate is None:
            raise KvchatError(
                "usage",
                "there is no gate for this model, and kvzap needs one",
                "kvchat calibrate MODEL  (fits one: some minutes)",
                "--method kvzip  (reads the document twice)",
            )
        return self.gate

    @cached_property
    def features(self) -> list[Features] | None:
        """The maps of LESS of every layer that attends to all tokens, if they were fitted."""
        return find_features(self.model)

    def _fitted(self, needs: Sequence[Needs]) -> None:
        """Give the blocks maps that are needed. Raises KvchatError("usage") if there are none."""
        if not any(each.features for each in needs):
            return
        if self.features is None:
            raise KvchatError(
                "usage",
                "there are no maps for this model, and less needs them",
                "kvchat calibrate MODEL --for less  (fits them: some minutes)",
                "--method h2o  (the same entries, without a state of the others)",
            )
        for block, features in zip(self.model.full_blocks, self.features, strict=True):
            block.features = features

    @property
    def weights(self) -> str:
        """How weights are stored: in few bits, the dtype that is computed in, or what of these a
        GGUF file leads to, as in `int4 and bfloat16` (matrices; norms do not count)."""
        stored = self.model.weights
        if stored in STORED:
            return stored
        kinds = {type(module) for module in self.model.modules()}
        plain = str(self.dtype).removeprefix("torch.")
        few = [name for name, kind in STORED.items() if kind in kinds]
        dense = [plain] if kinds & {Linear, Embedding} or not few else []
        return " and ".join([*few, *dense])

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
        that needs one where there is none. What only the caches' segments need is compiled beside.
        """
        assert ids, "an empty document has nothing to read"
        needs = [archiving.needs] if archiving is not None else []
        if gate is None:
            gate = self._prepared([each.method for each in compressions], needs)
        given = (self.model, ids, compressions, self.backend, self.chunk, probes, replays)
        found = yield from prefill.prefill(*given, archiving, gate)
        for cache in found.caches if isinstance(archiving, Notes) else ():
            archiving.add_to(cache)  # type: ignore[union-attr]
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
        gate = self._prepared([compression.method], [])
        given = self.model, ids, compression, self.backend, self.chunk, streamed, probes, replays
        return (yield from stream(*given, gate))

    @entry
    def append(
        self, cache: KVCache, ids: Sequence[int], method: Method, replays: Sequence[Replay] = ()
    ) -> Generator[Progress | Smaller, None, float]:
        """Put a document behind those of a cache, compressed by itself; see `append.append`."""
        gate = self._prepared([method], [])
        return (yield from append(self.model, cache, ids, method, self.chunk, replays, gate))

    def _prepared(self, methods: Sequence[Method], needs: Sequence[Needs]) -> Gate | None:
        """The gate, if methods or other needs ask for it; what their segments need is compiled."""
        for method in methods if self.kernels == "numba" else ():
            if method.kind:
                compile_beside(self.dtype, method.kind)
        asked = [*needs, *(method.needs for method in methods)]
        self._fitted(asked)
        return self.required_gate() if any(each.gate for each in asked) else None

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
        """Append to each cache its `ids`, all at once; the generator's value are the last logits
        `[B, vocab]`; see `together.together`."""
        return (yield from together(self.model, caches, ids))

    @entry
    def extend_choosing(
        self, cache: KVCache, ids: Sequence[int], method: Method
    ) -> Generator[Progress | Smaller, None, tuple[Tensor, float]]:
        """Append a question's `ids` and keep what it needs, from the cache's archive.

        The generator's value are the last logits `[vocab]` and the seconds that choosing took; see
        `selection.extend_choosing`.
        """
        self._fitted([method.needs])
        steps = selection.extend_choosing(self.model, cache, ids, self.chunk, method)
        x, seconds = yield from steps
        return self.model.logits(x[-1:])[0], seconds

    @entry
    def chosen(self, archives: Sequence[Archive], method: Method) -> KVCache | None:
        """The cache of a document whose archives are there, as a prefill would have left it.

        None if they do not hold what the method wants to be shown, or if the model has sliding
        layers: archives do not have their windows.
        """
        if len(self.config.full_layers) < self.config.num_layers:
            return None
        cache = self.empty_cache()
        for layer, archive in zip(cache.layers, archives, strict=True):
            layer.archive = archive
        if not selection.can_choose(cache, method):
            return None
        self._fitted([method.needs])
        selection.choose(self.model, cache, method)
        return cache

    @entry
    def choose(self, cache: KVCache, method: Method) -> float:
        """Choose again what is kept, from the cache's archive; see `selection.choose`."""
        self._fitted([method.needs])
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
    def weights_held(self) -> list[int]:
        """Bytes of the weights on each rank."""
        return self.peers.joined(torch.tensor([self.weights_bytes])).tolist()

    @entry
    def kept(self, cache: KVCache, end: int) -> list[list[int]]:
        """Entries of each layer's heads, those of all ranks, that are kept of the first `end`
        tokens, where segments begin."""
        local = torch.tensor([layer.kept(end) for layer in cache.layers])
        return self.peers.joined(local, 1).tolist()

    @entry
    def held(self, cache: KVCache, end: int) -> list[int]:
        """Bytes that each rank holds of the first `end` tokens."""
        found = sum(layer.window_bytes for layer in cache.layers)
        segments = (s for layer in cache.layers for s in layer.segments if s.span[0] < end)
        found += sum(segment.memory().total for segment in segments)
        return self.peers.joined(torch.tensor([found])).tolist()

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
        singly = written if any(layer.sliding for layer in cache.layers) else 0
        together = len(ids) - singly
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

    @on_its_card
    def replayed(self, cache: KVCache, ids: Sequence[int]) -> list[attribution.Queries]:
        """The same of the cache's newest tokens, which pass again; see `attribution.replayed`."""
        return attribution.replayed(self.model, cache, ids)

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
        go on after them.
        A token is fed to the cache when the next one is asked for: the last one that was yielded
        is *pending* and belongs to the next `extend`.
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
