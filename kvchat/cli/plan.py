"""`kvchat plan`: what reading needs, from config.json alone. Imports no torch, loads nothing."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvchat.engine.budget import DEFAULT_BUDGET, Budget
from kvchat.engine.methods import DEFAULT, METHODS
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.sizes import ASKED, CHUNK, CHUNKS, CODES, DTYPES, ITEM_BYTES, REPLAY, reserve_of
from kvchat.engine.weights.bits import computes_in, require_shapes, weights_bytes
from kvchat.errors import KvchatError
from kvchat.hub.find import find_model
from kvchat.machine.dummy import dummy
from kvchat.machine.plan import Cost, Plan, longest, make_plan, repeated, smaller_weights
from kvchat.settings import config as config_file
from kvchat.settings.kinds import SIZE
from kvchat.settings.lists import METHOD_SPECS, counts
from kvchat.settings.option import option, shared
from kvchat.settings.options import CACHE, DUMMY, MODEL, Options
from kvchat.terminal.text import clean, size

SHARES = (8, 4, 2, 1)  # of the window, where no `--tokens` are given


@dataclass(frozen=True)
class PlanOptions:
    """Options of `kvchat plan`."""

    model: str | None = shared(Options, "model")
    dummy: str | None = option("--dummy", MODEL, DUMMY)
    tokens: Sequence[int] = option("--tokens", CACHE, "Document tokens: 32k,128k.", counts())
    fit: int | None = option(
        "--fit", CACHE, "Memory to fit into: 24GiB. The longest document then.", SIZE
    )
    methods: Sequence[str] = option(
        "--method", CACHE, "Methods; a list.", METHOD_SPECS, default=("full", DEFAULT)
    )
    budget: str | None = shared(Options, "budget")
    ctx_size: int | None = shared(Options, "ctx_size")
    chunk: int | None = shared(Options, "prefill_chunk")
    dtype: str = shared(Options, "dtype")
    weights: str = shared(Options, "weights")
    device: str = shared(Options, "device", default="cpu", help="cpu or cuda: what to plan for.")
    json: bool = shared(Options, "json", help="As JSON.")


@dataclass(frozen=True)
class Frame:
    """What all rows of the table share."""

    name: str
    config: ModelConfig
    itemsize: int
    limit: int
    chunk: int
    cuda: bool
    weights: str

    def plan(self, tokens: int, budget: Budget, spec: str) -> Plan:
        """The plan of one row."""
        return make_plan(
            self.config,
            self.itemsize,
            tokens,
            budget,
            self.limit,
            self.chunk,
            self.cuda,
            cost_of_spec(spec),
            self.weights,
        )


def run(wanted: PlanOptions) -> int:
    """Print a line per method and length, or the longest document that fits."""
    frame = settle(wanted)
    budgets = {spec: budget_of(spec, wanted.budget) for spec in wanted.methods}
    if wanted.fit:
        lengths = {
            spec: longest(
                frame.config,
                frame.itemsize,
                budget,
                frame.limit,
                frame.chunk,
                wanted.fit,
                frame.cuda,
                cost_of_spec(spec),
                frame.weights,
            )
            for spec, budget in budgets.items()
        }
        rows = [
            (
                spec,
                count,
                replace(frame, limit=count + reserve_of(frame.limit)).plan(count, budget, spec),
            )
            for (spec, count), budget in zip(lengths.items(), budgets.values(), strict=True)
        ]
    else:
        rows = [
            (spec, count, frame.plan(count, budget, spec))
            for spec, budget in budgets.items()
            for count in lengths_of(wanted.tokens, frame)
        ]
    if wanted.json:
        plans = [
            {"method": spec, "budget": str(budgets[spec]), "tokens": tokens, **asdict(plan)}
            | {"reading": plan.reading, "chatting": plan.chatting, "full_copy": plan.kv_full}
            for spec, tokens, plan in rows
        ]
        print(json.dumps({"schema": 1, "model": frame.name, "window": frame.limit, "plans": plans}))
        return 0
    show(frame, budgets, rows, wanted.fit)
    return 0


def settle(wanted: PlanOptions) -> Frame:
    """Model, dtype, window and chunk. Raises KvchatError."""
    if wanted.device not in CHUNKS:
        raise KvchatError("usage", f"--device {clean(wanted.device)!r}: there are cpu and cuda")
    asked = config_file.settle({"model": wanted.model}, config_file.load())
    if wanted.dummy is not None:
        name, config = dummy(wanted.dummy)
    else:
        model = find_model(asked.model, asked.aliases)
        name, config = model.name, ModelConfig.load(model.folder)
    kind = computes_in(wanted.dtype, wanted.weights)
    require_shapes(config, wanted.weights)
    dtype = config.dtype if kind == "auto" else DTYPES.get(kind, kind)
    if dtype not in ITEM_BYTES:
        raise KvchatError("usage", f"{clean(dtype)!r} is not a dtype", "--dtype bf16")
    limit = min(wanted.ctx_size or config.context_limit, config.context_limit)
    chunk = wanted.chunk or CHUNKS[wanted.device]
    cuda = wanted.device == "cuda"
    return Frame(name, config, ITEM_BYTES[dtype], limit, chunk, cuda, wanted.weights)


def budget_of(spec: str, given: str | None) -> Budget:
    """What a method keeps; from its spec; imports it for a preset only. Raises KvchatError."""
    name = spec.partition(":")[0].partition("@")[0]
    if name not in METHODS:
        raise KvchatError(
            "usage", f"unknown method {clean(name)!r}; there are {', '.join(METHODS)}"
        )
    if name == "full":
        return Budget(fraction=1.0)
    if "@" in spec:
        # presets are attributes of the classes, which import torch
        from kvchat.engine.methods.spec import parse_method

        return parse_method(spec, Budget.parse(given) if given else None).budget
    inline = re.search(r"[:,]\s*budget\s*=\s*([^,]+)", spec)
    text = inline[1] if inline else given
    return Budget.parse(text) if text else DEFAULT_BUDGET


def cost_of_spec(spec: str) -> Cost:
    """What a method costs beside its budget, read from its spec. Raises KvchatError."""
    entry = METHODS[spec.partition(":")[0].partition("@")[0]]
    tells_asking = re.search(r"[:,]\s*tell\s*=\s*ask\b", spec)
    fitted = bool(re.search(r"[:,]\s*refit\s*=\s*(bias|all)\b", spec))
    chunk = re.search(r"[:,]\s*chunk\s*=\s*([1-9]\d*)", spec)
    part = int(chunk[1]) if chunk else CHUNK
    asks = tells_asking is not None or entry.told == ASKED
    told = ASKED if asks else repeated(part) if entry.told else 0.0
    if fitted and not asks:
        asks, told = True, told + ASKED
    step = REPLAY if asks else part
    code = code_of(spec) if entry.retrieves else None
    return Cost(bits_of(spec), told, step if told else 0, entry.pools, fitted, code)


def code_of(spec: str) -> tuple[int, int]:
    """Parts and bits of the codes that a spec asks for."""
    preset = spec.partition(":")[0].partition("@")[2].strip()
    parts, bits = CODES.get(preset, CODES[""])
    inline = dict(re.findall(r"[:,]\s*(m|code_bits)\s*=\s*(\d+)", spec))
    return int(inline.get("m", parts)), min(int(inline.get("code_bits", bits)), 8)


def bits_of(spec: str) -> int | None:
    """In how many bits a spec stores rows, None for as they are. Raises KvchatError."""
    inline = re.search(r"[:,]\s*bits\s*=\s*([^,\s]+)", spec)
    if inline is None or inline[1] == "16":
        return None
    if inline[1] not in ("8", "4"):
        raise KvchatError("usage", f"bits={clean(inline[1])} is none of 16, 8 and 4", "bits=4")
    return int(inline[1])


def lengths_of(found: Sequence[int], frame: Frame) -> list[int]:
    """Document lengths: as given, or parts of the window. Raises KvchatError."""
    most = frame.limit - reserve_of(frame.limit)
    if not found:
        return [frame.limit // share if share > 1 else most for share in SHARES]
    if max(found) > most:
        raise KvchatError(
            "too_long",
            f"{max(found):,} tokens do not fit the window of {frame.name}: {frame.limit:,}, of "
            f"which {frame.limit - most:,} are kept for questions and answers",
            f"--tokens {most}",
            needed=max(found),
            limit=frame.limit,
        )
    return [*found]


def show(
    frame: Frame,
    budgets: dict[str, Budget],
    rows: list[tuple[str, int, Plan]],
    fit: int | None,
) -> None:
    """The table for the eye."""
    console = Console(highlight=False, markup=False)
    config = frame.config
    weights = weights_bytes(config, frame.itemsize, frame.weights)
    stored_as = f" in {frame.weights}" if frame.weights != "auto" else ""
    console.print(
        f"{clean(frame.name)} · {config.family}, {config.parameters / 1e6:,.1f} M parameters · "
        f"window {frame.limit:,} tokens · {size(config.kv_values_per_token * frame.itemsize)} of "
        f"KV per token · weights {size(weights)}{stored_as}",
        soft_wrap=False,
    )
    if fit:
        console.print(f"the longest document that fits into {size(fit)}:")
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    last = f"+ {reserve_of(frame.limit):,} tokens" if fit else "window full"
    for column in ("method", "tokens", "KV full", "KV kept", "reading", last):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    labels = {
        spec: clean(spec) if "budget" in spec else f"{clean(spec)} {budget}"
        for spec, budget in budgets.items()
    }
    for spec, tokens, plan in rows:
        table.add_row(
            Text(labels[spec]),
            f"{tokens:,}",
            *map(size, (plan.kv_full, plan.kv_kept, plan.reading, plan.chatting)),
        )
    console.print(table)
    if fit and not any(tokens for _, tokens, _ in rows):
        for way in smaller_weights(rows[0][2], fit):
            console.print(f"nothing fits; try: {way}")
    for spec, tokens, plan in rows:
        if plan.read:
            console.print(Text(f"{labels[spec]}, {tokens:,} tokens{plan.reads}"))
    console.print("beside it --keep-full host holds KV full in RAM, --keep-full disk on disk")
    where = "the CUDA context" if frame.cuda else "the process"
    console.print(Text(f"estimated; the last two columns include weights and {where}", "dim"))
