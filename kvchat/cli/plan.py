"""`kvchat plan`: what reading needs, from config.json alone. Imports no torch, loads nothing."""

import json
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvchat.cli import flags, lists
from kvchat.engine.budget import Budget
from kvchat.engine.methods.naming import Spec, parse_spec
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.sizes import CHUNKS, DTYPES, ITEM_BYTES, reserve_of
from kvchat.engine.weights.bits import computes_in, require_shapes, weights_bytes
from kvchat.errors import KvchatError
from kvchat.hub.find import find_model
from kvchat.machine.dummy import dummy
from kvchat.machine.plan import Plan, cost_of_spec, longest, make_plan, smaller_weights
from kvchat.settings import config as settings
from kvchat.terminal.text import clean, size

SHARES = (8, 4, 2, 1)  # of the window, where no `--tokens` are given


@dataclass(frozen=True)
class Wanted:
    """Options of `kvchat plan`."""

    model: str | None
    dummy: str | None
    tokens: list[str]
    fit: str | None
    methods: list[str]
    budget: str | None
    ctx_size: int | None
    chunk: int | None
    dtype: str
    weights: str
    device: str
    json: bool


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

    def plan(self, tokens: int, spec: Spec) -> Plan:
        """The plan of one row."""
        return make_plan(
            self.config,
            self.itemsize,
            tokens,
            spec.budget,
            self.limit,
            self.chunk,
            self.cuda,
            cost_of_spec(spec),
            self.weights,
        )


def run(wanted: Wanted) -> int:
    """Print a line per method and length, or the longest document that fits."""
    frame = settle(wanted)
    given = Budget.parse(wanted.budget) if wanted.budget else None
    specs = {text: parse_spec(text, given) for text in wanted.methods}
    budgets = {text: spec.budget for text, spec in specs.items()}
    if wanted.fit:
        room = flags.byte_count("--fit", wanted.fit)
        lengths = {
            text: longest(
                frame.config,
                frame.itemsize,
                spec.budget,
                frame.limit,
                frame.chunk,
                room,
                frame.cuda,
                cost_of_spec(spec),
                frame.weights,
            )
            for text, spec in specs.items()
        }
        rows = [
            (
                text,
                count,
                replace(frame, limit=count + reserve_of(frame.limit)).plan(count, specs[text]),
            )
            for text, count in lengths.items()
        ]
    else:
        rows = [
            (text, count, frame.plan(count, spec))
            for text, spec in specs.items()
            for count in counts(wanted.tokens, frame)
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


def settle(wanted: Wanted) -> Frame:
    """Model, dtype, window and chunk. Raises KvchatError."""
    if wanted.device not in CHUNKS:
        raise KvchatError("usage", f"--device {clean(wanted.device)!r}: there are cpu and cuda")
    values, _ = settings.settle({"model": wanted.model}, found := settings.load())
    if wanted.dummy is not None:
        name, config = dummy(wanted.dummy)
    else:
        model = find_model(values.get("model"), found.models)
        name, config = model.name, ModelConfig.load(model.folder)
    asked = computes_in(wanted.dtype, wanted.weights)
    require_shapes(config, wanted.weights)
    dtype = config.dtype if asked == "auto" else DTYPES.get(asked, asked)
    if dtype not in ITEM_BYTES:
        raise KvchatError("usage", f"{clean(dtype)!r} is not a dtype", "--dtype bf16")
    limit = min(wanted.ctx_size or config.context_limit, config.context_limit)
    chunk = wanted.chunk or CHUNKS[wanted.device]
    cuda = wanted.device == "cuda"
    return Frame(name, config, ITEM_BYTES[dtype], limit, chunk, cuda, wanted.weights)


def counts(given: list[str], frame: Frame) -> list[int]:
    """Document lengths: as given, or parts of the window. Raises KvchatError."""
    most = frame.limit - reserve_of(frame.limit)
    if not given:
        return [frame.limit // share if share > 1 else most for share in SHARES]
    found = lists.counts("--tokens", given, [])
    if max(found) > most:
        raise KvchatError(
            "too_long",
            f"{max(found):,} tokens do not fit the window of {frame.name}: {frame.limit:,}, of "
            f"which {frame.limit - most:,} are kept for questions and answers",
            f"--tokens {most}",
            needed=max(found),
            limit=frame.limit,
        )
    return found


def show(
    frame: Frame,
    budgets: dict[str, Budget],
    rows: list[tuple[str, int, Plan]],
    fit: str | None,
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
        console.print(f"the longest document that fits into {clean(fit)}:")
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
        for way in smaller_weights(rows[0][2], flags.byte_count("--fit", fit)):
            console.print(f"nothing fits; try: {way}")
    for spec, tokens, plan in rows:
        if plan.read:
            console.print(Text(f"{labels[spec]}, {tokens:,} tokens{plan.reads}"))
    console.print("beside it --keep-full host holds KV full in RAM, --keep-full disk on disk")
    where = "the CUDA context" if frame.cuda else "the process"
    console.print(Text(f"estimated; the last two columns include weights and {where}", "dim"))
