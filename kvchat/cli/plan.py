"""`kvchat plan`: the memory that prefill needs, from config.json alone; nothing is loaded."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from kvchat.cli.flags import takes
from kvchat.engine.budget import Budget
from kvchat.engine.methods import METHODS, UNSEEN
from kvchat.engine.methods.specs import Spec, parse_spec
from kvchat.engine.model.read import load_config
from kvchat.engine.sizes import CHUNKS, DTYPES, ITEM_BYTES, Streamed, reserve_of
from kvchat.engine.weights.bits import computes_in, require_shapes, weights_bytes
from kvchat.errors import KvchatError
from kvchat.hub.find import find_model
from kvchat.machine.dummy import dummy
from kvchat.machine.fit import Room, room
from kvchat.machine.plan import Plan, Workload, longest, make_plan, smaller_weights
from kvchat.settings import config as config_file
from kvchat.settings.chat_options import CACHE, DUMMY, MODEL
from kvchat.settings.kinds import SIZE
from kvchat.settings.lists import METHOD_SPECS, counts
from kvchat.settings.option import option, read_all, shared
from kvchat.settings.options import Options
from kvchat.terminal.colours import NOTICE, console
from kvchat.terminal.text import alike, clean, size

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
        "--method", CACHE, "Methods; a list.", METHOD_SPECS, default=("full", UNSEEN)
    )
    budget: str | None = shared(Options, "budget")
    ctx_size: int | None = shared(Options, "ctx_size")
    overflow: str = shared(Options, "overflow", help="stream: plan documents beyond the window.")
    chunk: int | None = shared(Options, "prefill_chunk")
    dtype: str = shared(Options, "dtype")
    weights: str = shared(Options, "weights")
    device: str = shared(Options, "device", default="cpu", help="cpu or cuda: what to plan for.")
    devices: int | None = shared(
        Options, "devices", help="How many share the model out: a part of it is planned (1)."
    )
    json: bool = shared(Options, "json", help="As JSON.")


@dataclass(frozen=True)
class Frame:
    """What all rows of the table share: a model by name, and the work before it has a length."""

    name: str
    work: Workload
    path: Path | None = None  # of the checkpoint

    def plan(self, method: Spec, tokens: int) -> Plan:
        """The plan of one row."""
        return make_plan(replace(self.work, method=method, tokens=tokens))

    def lacks(self, method: str) -> bool:
        """Whether a method wants something that was not fitted to the model."""
        if not (fitted := METHODS[method].fitted):
            return False
        with suppress(KvchatError):  # a checkpoint without weights has no norms
            found = import_module(fitted)
            return self.path is None or not found.exists(self.path, self.work.config)
        return True


@takes(PlanOptions)
def plan(**given: Any) -> int:
    """What a prefill needs, by arithmetic from config.json alone: nothing is loaded."""
    wanted = read_all(PlanOptions, given)
    frame = settle(wanted)
    budget = Budget.parse(wanted.budget) if wanted.budget else None
    methods = {spec: parse_spec(spec, budget) for spec in wanted.methods}
    unfitted = [spec for spec, method in methods.items() if frame.lacks(method.name)]
    if wanted.fit is not None:
        reserve = reserve_of(frame.work.limit)
        rows = []
        for spec, method in methods.items():
            count = longest(replace(frame.work, method=method), wanted.fit)
            fitted = replace(frame, work=replace(frame.work, limit=count + reserve))
            rows.append((spec, count, fitted.plan(method, count)))
    else:
        rows = [
            (spec, count, frame.plan(method, count))
            for spec, method in methods.items()
            for count in lengths_of(wanted.tokens, frame)
        ]
    if wanted.json:
        plans = [
            {"method": spec, "budget": str(methods[spec].budget), "tokens": tokens, **asdict(each)}
            | {"prefill": each.prefill, "chat": each.chat, "full_copy": each.kv_full}
            for spec, tokens, each in rows
        ]
        told = {"schema": 2, "model": frame.name, "window": frame.work.limit, "plans": plans}
        told |= {"too_long": [] if wanted.fit is not None else too_long(wanted.tokens, frame)}
        told |= {"unfitted": unfitted}
        print(json.dumps(told))
        return 0
    labels = {
        spec: clean(spec) if "budget" in spec else f"{clean(spec)} {method.budget}"
        for spec, method in methods.items()
    }
    show(frame, labels, rows, wanted.fit)
    for spec in unfitted:
        purpose = methods[spec].name
        why = f"{labels[spec]}: kvchat calibrate MODEL --for {purpose} has to come before it"
        console(stderr=True).print(Text(why, NOTICE))
    if wanted.fit is None and room(wanted.device).device == wanted.device:
        usable = [row for row in rows if row[0] not in unfitted]
        if usable:
            console().print(Text(recommendation(labels, usable, room(wanted.device))))
    if wanted.fit is None and (beyond := too_long(wanted.tokens, frame)):
        console(stderr=True).print(Text(refusal(beyond, frame), NOTICE))
    return 0


def recommendation(labels: dict[str, str], rows: list[tuple[str, int, Plan]], here: Room) -> str:
    """Which row to take on this machine for the longest document.

    Of those that fit into half of what is free the first one, full if it is there; else the one
    that needs least.
    """
    longest = max(tokens for _, tokens, _ in rows)
    needs = {spec: max(each.prefill, each.chat) for spec, tokens, each in rows if tokens == longest}
    easy = [spec for spec, bytes_ in needs.items() if 2 * bytes_ <= here.free]
    spec = easy[0] if easy else min(needs, key=lambda name: needs[name])
    fits = "" if needs[spec] <= here.free else ", too much: fewer tokens or --weights int4"
    needed, free = alike(needs[spec], here.free)
    return (
        f"recommended here for {longest:,} tokens: {labels[spec]} "
        f"({needed} of {free} free on {here.device}{fits})"
    )


def settle(wanted: PlanOptions) -> Frame:
    """Model, dtype, window and chunk. Raises KvchatError."""
    if wanted.device not in CHUNKS:
        raise KvchatError("usage", f"--device {clean(wanted.device)!r}: there are cpu and cuda")
    asked = config_file.settle({"model": wanted.model}, config_file.load())
    if wanted.dummy is not None:
        (name, config), path = dummy(wanted.dummy), None
    else:
        model = find_model(asked.model, asked.aliases)
        name, path, config = model.name, model.path, load_config(model.path)
    kind = computes_in(wanted.dtype, wanted.weights)
    require_shapes(config, wanted.weights)
    dtype = config.dtype if kind == "auto" else DTYPES.get(kind, kind)
    if dtype not in ITEM_BYTES:
        raise KvchatError("usage", f"{clean(dtype)!r} is not a dtype", "--dtype bf16")
    limit = config.window(wanted.ctx_size)
    chunk, cuda = wanted.chunk or CHUNKS[wanted.device], wanted.device == "cuda"
    itemsize = ITEM_BYTES[dtype]
    streams = wanted.overflow == "stream"
    given = config, itemsize, 0, parse_spec("full"), limit, chunk, cuda, wanted.weights, streams
    return Frame(name, Workload(*given, devices=wanted.devices or 1), path)


def lengths_of(found: Sequence[int], frame: Frame) -> list[int]:
    """Document lengths: those that were given and fit, or parts of the window.

    Raises KvchatError("too_long") if none fits.
    """
    limit = frame.work.limit
    most = limit - reserve_of(limit)
    if not found:
        return [limit // share if share > 1 else most for share in SHARES]
    beyond = too_long(found, frame)
    fitting = [tokens for tokens in found if tokens not in beyond]
    if not fitting:
        raise KvchatError(
            "too_long",
            refusal(beyond, frame),
            f"--tokens {most}",
            "--overflow stream  (reads longer ones part by part)",
            needed=max(found),
            limit=limit,
        )
    return fitting


def too_long(found: Sequence[int], frame: Frame) -> list[int]:
    """The lengths that the context window does not take."""
    work = frame.work
    return [] if work.streams else [each for each in found if Streamed.of(each, work.limit)]


def refusal(lengths: Sequence[int], frame: Frame) -> str:
    """Why these lengths have no plan."""
    limit = frame.work.limit
    return (
        f"{' and '.join(f'{tokens:,}' for tokens in lengths)} tokens do not fit the context window "
        f"of {clean(frame.name)}: {limit:,}, of which {reserve_of(limit):,} are kept for questions "
        "and answers"
    )


def show(
    frame: Frame,
    labels: dict[str, str],
    rows: list[tuple[str, int, Plan]],
    fit: int | None,
) -> None:
    """The table for the eye."""
    out = console()
    work, config = frame.work, frame.work.config
    weights = weights_bytes(config, work.itemsize, work.weights)
    stored_as = f" in {work.weights}" if work.weights != "auto" else ""
    out.print(
        f"{clean(frame.name)} · {config.family}, {config.parameters / 1e6:,.1f} M parameters · "
        f"window {work.limit:,} tokens · {size(config.kv_values_per_token * work.itemsize)} of "
        f"KV per token · weights {size(weights)}{stored_as}",
        soft_wrap=False,
    )
    if fit is not None:
        out.print(f"the longest document that fits into {size(fit)}:")
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    last = f"+ {reserve_of(work.limit):,} tokens" if fit is not None else "window full"
    for column in ("method", "tokens", "KV full", "KV kept", "prefill", last):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for spec, tokens, each in rows:
        table.add_row(
            Text(labels[spec]),
            f"{tokens:,}",
            *map(size, (each.kv_full, each.kv_kept, each.prefill, each.chat)),
        )
    out.print(table)
    where = "the CUDA context" if work.cuda else "the process"
    if fit is not None and not any(tokens for _, tokens, _ in rows):
        out.print(f"nothing fits: the weights and {where} alone take more")
        for way in smaller_weights(rows[0][2], fit):
            out.print(f"  try: {way}")
    for spec, tokens, each in rows:
        if each.read:
            out.print(Text(f"{labels[spec]}, {tokens:,} tokens{each.reads}"))
    if work.devices > 1:
        out.print(f"all of it on each of {work.devices} devices")
    out.print("beside it --keep-full host holds KV full in RAM, --keep-full disk on disk")
    out.print(Text(f"estimated; the last two columns include weights and {where}", "dim"))
