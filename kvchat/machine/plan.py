"""What a reading will need, by arithmetic from the config alone. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from kvchat.engine.budget import Budget, Geometry
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.naming import Spec
from kvchat.engine.methods.options import ASK
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.sizes import (
    ASKED,
    CODED,
    MASS_VALUES,
    PER_CENTROID,
    REPLAY,
    REQUEST,
    code_bytes,
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
class Cost:
    """What a method costs beside its budget.

    Kept entries are stored in `bits` bits, or as they are. The document is told `told` times again
    while it is read, `step` tokens in one go; then its layers compete, if they `pool` their budget.
    With a `code` of so many parts and bits every entry is kept, and the budget is what is read.
    """

    bits: int | None = None
    told: float = 0.0
    step: int = 0
    pool: bool = False
    code: tuple[int, int] | None = None


@dataclass(frozen=True)
class Plan:
    """Bytes, estimated: what a reading and the chat after it hold."""

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
    read: int = 0  # of the kept entries by a written token; 0: all of them

    @property
    def reading(self) -> int:
        """At most, while the last layer is read."""
        parts = (self.weights, self.kv_kept, self.dense_layer, self.hidden, self.workspace)
        return self.base + sum(parts) + self.replays

    @property
    def chatting(self) -> int:
        """With the window full."""
        return self.base + self.weights + self.kv_kept + self.tail

    @property
    def reads(self) -> str:
        """What a written token reads of what is kept, if it is not all of it."""
        return f", a written token reads {sizes(self.read, self.kv_kept)}" if self.read else ""


def repeated(chunk: int) -> float:
    """Tokens that are told for each of a document that is repeated `chunk` at a time."""
    return 1 + REQUEST / chunk


def cost_of_spec(spec: Spec) -> Cost:
    """What a method costs beside its budget."""
    entry, values = METHODS[spec.name], spec.values
    code = (values["m"], values["code_bits"]) if entry.retrieves else None
    if not entry.told:
        return Cost(spec.bits, pool=entry.pools, code=code)
    asks, chunk = values["tell"] == ASK, values["chunk"]
    told, step = (ASKED, REPLAY) if asks else (repeated(chunk), chunk)
    return Cost(spec.bits, told, step, entry.pools, code)


def geometry_of(config: ModelConfig, itemsize: int, tokens: int) -> Geometry:
    """What a method's budget is shared out over."""
    return Geometry(tokens, config.num_kv_heads, config.num_layers, config.head_dim, itemsize)


def make_plan(
    config: ModelConfig,
    itemsize: int,
    tokens: int,
    budget: Budget,
    limit: int,
    chunk: int,
    cuda: bool = False,
    cost: Cost = Cost(),
    weights: str = "auto",
) -> Plan:
    """The plan of reading `tokens` tokens with a budget, values of `itemsize` bytes.

    Raises KvchatError("usage") if the budget cannot hold an entry per head.
    """
    per_token = config.kv_values_per_token * itemsize
    geometry = replace(geometry_of(config, itemsize, tokens), bits=cost.bits)
    layers, entries = config.num_layers, budget.entries(geometry) if tokens else 0
    step = min(max(chunk, cost.step), max(tokens, 1))
    # of one chunk: the MLP's two inner activations and a few of the hidden size, one in fp32
    wide = 3 * config.intermediate_size + 6 * config.hidden_size
    kept, hidden = round(entries * geometry.entry_bytes) * layers, config.hidden_size * itemsize
    # the newest layer's entries twice, and all at full precision, until the layers have competed
    pooled = per_token * tokens // layers + entries * geometry.plain_bytes * layers - kept
    read = training = 0
    if cost.code is not None:
        heads, dim = config.num_kv_heads, config.head_dim
        coded = tokens - entries // heads > CODED  # or there is too little to choose from
        codes = code_bytes(tokens, heads, dim, *cost.code) if coded else 0
        kept, read = per_token * tokens + layers * codes, kept if coded else 0
        training = 8 * min(tokens, PER_CENTROID * 2 ** cost.code[1]) * heads * dim  # fp32, twice
    return Plan(
        weights=weights_bytes(config, itemsize, weights),
        kv_full=per_token * tokens,
        kv_kept=kept,
        dense_layer=per_token * tokens // layers,
        hidden=tokens * hidden,
        workspace=step * wide * max(itemsize, 4) + SCORING + training,
        tail=per_token * max(limit - tokens, 0),
        base=CONTEXT if cuda else PROCESS,
        replays=round(cost.told * (tokens + cost.step)) * hidden + (pooled if cost.pool else 0),
        weights_int4=0 if refused(config, "int4") else weights_bytes(config, itemsize, "int4"),
        read=read,
    )


def longest(
    config: ModelConfig,
    itemsize: int,
    budget: Budget,
    limit: int,
    chunk: int,
    free: int,
    cuda: bool,
    cost: Cost = Cost(),
    weights: str = "auto",
) -> int:
    """The most tokens that can be read in `free` bytes with the reserve to talk about them."""
    reserve = reserve_of(limit)

    def fits(tokens: int) -> bool:
        plan = make_plan(
            config, itemsize, tokens, budget, tokens + reserve, chunk, cuda, cost, weights
        )
        return max(plan.reading, plan.chatting) <= free

    low, high = 0, limit - reserve
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
    """Raise KvchatError("memory") if reading needs more than is free.

    `fitting()` is the longest document that could be read with the method, `others()` says who else
    holds memory.
    """
    if plan.reading <= free:
        return
    enough = plan.reading - plan.kv_kept + plan.kv_full // 4
    elsewhere = f"; {held}" if (held := others()) else ""
    compressed = [f"--method adakv --budget 25%  (needs {size(enough)})"] if enough <= free else []
    raise KvchatError(
        "memory",
        f"reading with {method} needs {size(plan.reading)}, {size(free)} are free on {where} "
        f"(weights {size(plan.weights)}, KV {size(plan.kv_kept)}, one layer dense "
        f"{size(plan.dense_layer)}, hidden states {size(plan.hidden)}){elsewhere}",
        *compressed,
        *([f"a document of at most {most:,} tokens, with {method}"] if (most := fitting()) else []),
        *smaller_weights(plan, free),
        "a smaller model, or --dtype bf16 if the weights are f32",
        needed=plan.reading,
        free=free,
    )


def smaller_weights(plan: Plan, free: int) -> list[str]:
    """`--weights int4` as a way out, if the plan then fits."""
    needed = plan.reading - plan.weights + plan.weights_int4
    fits = plan.weights_int4 and plan.weights_int4 < plan.weights and needed <= free
    return [f"--weights int4  (needs {size(needed)})"] if fits else []


def require_copy(plan: Plan, free: int, beside: bool) -> None:
    """Raise KvchatError("memory") if a full copy of the KV needs more host memory than is free.

    `beside`: what reading needs is in the same memory.
    """
    needed = plan.kv_full + (plan.reading if beside else 0)
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
