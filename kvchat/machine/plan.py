"""What prefill of a document and the chat after it need, by arithmetic from the config alone."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from kvchat.engine.budget import Geometry
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.lookup_options import LookupOptions
from kvchat.engine.methods.needs import Chosen
from kvchat.engine.methods.options import ASK
from kvchat.engine.methods.specs import Spec, options_class, parse_spec, spec_of
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.shard import Shard
from kvchat.engine.sizes import (
    ASKED,
    MASS_VALUES,
    PLAIN,
    REPLAY,
    REQUEST,
    Streamed,
    reserve_of,
)
from kvchat.engine.weights.bits import refused, weights_bytes
from kvchat.errors import KvchatError
from kvchat.terminal.text import size, sizes

# Interpreter, torch, tokenizer and their libraries in RAM: measured with the demo model on Linux.
PROCESS = 420 * 2**20
# On the card: what the CUDA context takes before the first tensor.
CONTEXT = 460 * 2**20

# Logits, masses, masks and ranks of one slice of scored entries, each of 4 bytes or more.
SCORING = 16 * MASS_VALUES


@dataclass(frozen=True)
class Workload:
    """What is planned: prefill of `tokens` tokens, `chunk` at a time, compressed by a method.

    Keys and values have `itemsize` bytes each, the context window is `limit` tokens. `cuda`:
    whether on a card. `weights` and `attention` are as `--weights` and `--attention` say it. If it
    `streams`, what does not fit into the window is read part by part. What is planned is the part
    of one of `devices`.
    """

    config: ModelConfig
    itemsize: int
    tokens: int
    method: Spec
    limit: int
    chunk: int
    cuda: bool
    weights: str = "auto"
    streams: bool = False
    attention: str = "auto"
    devices: int = 1


@dataclass(frozen=True)
class Cost:
    """What a method costs beside its budget.

    Kept entries are stored in `bits` bits (16: plain), but for the last `residual` of a head;
    plain ones have a bias if they are `biased`. `replayed` tokens are replayed for each of the
    document during prefill, `step` tokens in one go; then its layers compete, if they `pool`
    their budget. With a `lookup` every entry is kept, and the budget is what a decoded token
    attends to.
    """

    bits: int = 16
    replayed: float = 0.0
    step: int = 0
    pool: bool = False
    lookup: LookupOptions | None = None
    residual: int = 0
    biased: bool = False


def planned(method: Chosen) -> Spec:
    """A method that was made by now, as a plan takes it."""
    return parse_spec(spec_of(method), method.budget)


def cost_of(spec: Spec) -> Cost:
    """What a method costs beside its budget."""
    entry, values = METHODS[spec.name], spec.values
    bits, means = values.get("bits", 16), values.get("means", 0)
    residual, biased = values.get("residual", 0) + means, means > 0
    if entry.retrieves:
        return Cost(lookup=options_class(spec.name)(**values))
    if not entry.told:
        return Cost(bits, pool=entry.pools, residual=residual, biased=biased)
    asks, chunk = values["tell"] == ASK, values["chunk"]
    replayed, step = (ASKED, REPLAY) if asks else (1 + REQUEST / chunk, chunk)
    return Cost(bits, replayed, step, entry.pools, residual=residual, biased=biased)


@dataclass(frozen=True)
class Plan:
    """Bytes, estimated: what prefill and the chat after it use."""

    weights: int
    kv_full: int
    kv_kept: int
    dense_layer: int
    hidden: int
    workspace: int
    tail: int
    base: int = PROCESS
    replays: int = 0
    weights_int4: int = 0  # the weights, were they stored in 4 bits; 0 if they cannot be
    read: int = 0  # of the kept entries by a decoded token; 0: all of them

    @property
    def prefill(self) -> int:
        """At most, during prefill of the last layer."""
        parts = (self.weights, self.kv_kept, self.dense_layer, self.hidden, self.workspace)
        return self.base + sum(parts) + self.replays

    @property
    def chat(self) -> int:
        """With the context window full."""
        return self.base + self.weights + self.kv_kept + self.tail

    @property
    def reads(self) -> str:
        """What a decoded token attends to, if that is not all that is kept."""
        of = f", each decoded token attends to {sizes(self.read, self.kv_kept)}"
        return of if self.read else ""


def geometry_of(config: ModelConfig, itemsize: int, tokens: int) -> Geometry:
    """What a method's budget is shared out over."""
    layers = len(config.full_layers)
    return Geometry(tokens, config.num_kv_heads, layers, config.head_dim, itemsize)


def make_plan(work: Workload) -> Plan:
    """The plan of a piece of work.

    Raises KvchatError("usage") if the budget cannot keep an entry per head.
    """
    config, itemsize, tokens = Shard(0, work.devices).of(work.config), work.itemsize, work.tokens
    cost, layers = cost_of(work.method), len(config.full_layers)
    per_token = config.kv_values_per_token * itemsize
    every = config.num_layers * config.layer_values_per_token * itemsize  # of turns, in the tails
    windows = config.kv_values(tokens) * itemsize - per_token * tokens
    geometry = geometry_of(config, itemsize, tokens)
    geometry = replace(geometry, bits=cost.bits, residual=cost.residual, biased=cost.biased)
    whole = replace(geometry, heads=work.config.num_kv_heads)  # a budget is that of all devices
    entries = work.method.budget.entries(whole) // work.devices if tokens else 0
    streamed = Streamed.of(tokens, work.limit) if work.streams else None
    if streamed:
        streamed = replace(streamed, replayed=cost.replayed > 0)
    taken, alive = (streamed.room, streamed.part) if streamed else (tokens, tokens)
    step = min(max(work.chunk, cost.step), max(alive, 1))
    # of one chunk: the MLP's two inner activations and a few of the hidden size, one in fp32
    wide = 3 * config.intermediate_size + 6 * config.hidden_size
    plain = min(entries, cost.residual * geometry.heads) if cost.bits < 16 else 0
    each = plain * geometry.plain_bytes + (entries - plain) * geometry.entry_bytes
    kept, hidden = round(each) * layers, config.hidden_size * itemsize
    # at full precision until the layers have competed, or all is read; the newest layer's twice
    unsettled = entries * geometry.plain_bytes * layers - kept if cost.pool or streamed else 0
    unsettled += per_token * alive // layers if cost.pool else 0
    read = training = beside = 0
    if work.cuda and (work.attention == "torch" or config.attention_cap):
        beside += PLAIN
    if (lookup := cost.lookup) is not None:
        heads, dim = config.num_kv_heads, config.head_dim
        dense = per_token * tokens
        coded = tokens - entries // heads > lookup.dense_below  # or there is too little to choose
        index = lookup.index_bytes(tokens, heads, dim) if coded else 0
        # of entries that are only half at home the other half is read in any case
        read = round(lookup.AWAY * kept + (1 - lookup.AWAY) * dense) if coded else 0
        outside = coded and (lookup.home == "disk" or (lookup.home == "host" and work.cuda))
        kept = (read if outside else dense) + layers * index
        training = lookup.training_bytes(tokens, heads, dim)
        unsettled = per_token * tokens if streamed and outside else 0
    in_int4 = 0 if refused(config, "int4") else weights_bytes(work.config, itemsize, "int4")
    return Plan(
        weights=weights_bytes(work.config, itemsize, work.weights) // work.devices,
        kv_full=per_token * tokens + windows,
        kv_kept=kept + windows,
        dense_layer=per_token * alive // layers,
        hidden=alive * hidden,
        workspace=step * wide * max(itemsize, 4) + SCORING + training + beside,
        tail=every * max(work.limit - taken, 0),
        base=CONTEXT if work.cuda else PROCESS,
        replays=round(cost.replayed * (alive + cost.step)) * hidden + unsettled,
        weights_int4=in_int4 // work.devices,
        read=read,
    )


def longest(work: Workload, free: int) -> int:
    """The most tokens, in place of those wanted, that fit into `free` bytes with the reserve for
    questions and answers."""
    reserve = reserve_of(work.limit)

    def fits(tokens: int) -> bool:
        plan = make_plan(replace(work, tokens=tokens, limit=tokens + reserve))
        return max(plan.prefill, plan.chat) <= free

    low, high = 0, work.limit - reserve
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def require_memory(
    plan: Plan,
    free: int,
    where: str,
    method: str,
    fitting: Callable[[], int] = lambda: 0,
    others: Callable[[], str] = lambda: "",
) -> None:
    """Raise KvchatError("memory") if prefill needs more than is free.

    `fitting()` is the longest document that would fit with the method, `others()` says who else
    uses memory.
    """
    if plan.prefill <= free:
        return
    enough = plan.prefill - plan.kv_kept + plan.kv_full // 4
    elsewhere = f"; {used}" if (used := others()) else ""
    compressed = [f"--method adakv --budget 25%  (needs {size(enough)})"] if enough <= free else []
    raise KvchatError(
        "memory",
        f"prefill with {method} needs {size(plan.prefill)}, {size(free)} are free on {where} "
        f"(weights {size(plan.weights)}, KV {size(plan.kv_kept)}, one layer dense "
        f"{size(plan.dense_layer)}, hidden states {size(plan.hidden)}){elsewhere}",
        *compressed,
        *([f"a document of at most {most:,} tokens, with {method}"] if (most := fitting()) else []),
        *smaller_weights(plan, free),
        "a smaller model, or --dtype bf16 if the weights are f32",
        needed=plan.prefill,
        free=free,
    )


def smaller_weights(plan: Plan, free: int) -> list[str]:
    """`--weights int4` as a way out, if the plan then fits."""
    needed = plan.prefill - plan.weights + plan.weights_int4
    fits = plan.weights_int4 and plan.weights_int4 < plan.weights and needed <= free
    return [f"--weights int4  (needs {size(needed)})"] if fits else []


def require_copy(plan: Plan, free: int, beside: bool) -> None:
    """Raise KvchatError("memory") if a full copy of the KV needs more host memory than is free.

    `beside`: what prefill needs is in the same memory.
    """
    needed = plan.kv_full + (plan.prefill if beside else 0)
    if needed > free:
        raise KvchatError(
            "memory",
            f"a full copy of the KV takes {size(plan.kv_full)}: {size(needed)} are needed in host "
            f"memory, {size(free)} are free",
            "--keep-full disk",
            "--keep-full off",
            needed=needed,
            free=free,
        )
