"""`--method auto`: what memory allows decides how much of a document is kept, and how."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kvchat.engine import sizes
from kvchat.engine.budget import Budget
from kvchat.engine.methods import AUTO, UNSEEN, UNSEEN_AT_ONCE
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.build import parse_method, with_budget
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import name_of
from kvchat.machine.plan import Plan, Workload, make_plan
from kvchat.settings.options import Options
from kvchat.terminal.text import size

ROOM = 0.85  # of the free memory that a plan may take: other programs want some too
TALK = 4096  # tokens of questions and answers that there is to be room for: few fill a window
QUARTER = 0.25  # of a document that exceeds the window
FEWER = "8", "4"  # bits of a value, where 16 do not fit
READ = Budget(fraction=0.1)  # of entries outside of the device, by a decoded token


@dataclass(frozen=True)
class Space:
    """Bytes that are free: on the device, in host memory beside it (0 on a CPU), on the disk."""

    device: int
    host: int
    disk: int

    @classmethod
    def beside(cls, device: int, host: int, folder: Path) -> "Space":
        """With what the disk of a folder, which may not exist yet, has."""
        there = next(each for each in (folder, *folder.parents) if each.exists())
        return cls(device, host, shutil.disk_usage(there).free)


def unseen(options: Options, gated: bool) -> Method:
    """The method that needs no question, and makes use of one, with the budget of the options.

    Where the model has a gate it takes one prefill, else two.
    """
    budget = Budget.parse(options.budget) if options.budget else None
    name = UNSEEN_AT_ONCE if gated else UNSEEN
    pairs = [*options.usual_of(name), *options.method_options, *bits_of(options)]
    return parse_method(name, budget, pairs)


def bits_of(options: Options) -> list[str]:
    """`bits=8` if the options ask for that."""
    return [f"bits={options.kv_bits}"] if options.kv_bits else []


def is_open(options: Options) -> bool:
    """Whether memory is to decide: nobody named a method, a budget or what selects."""
    return options.method == AUTO and options.budget is None and not options.select


def choose(
    options: Options,
    gated: bool,
    work: Callable[[Method], Workload],
    space: Space,
    loaded: bool = False,
) -> tuple[Method, str]:
    """The method that keeps most of the document in the memory that is there, and why it is so.

    Everything if that fits with room to spare; else every KV pair in fewer bits, which loses less
    than evicting; else outside of the device, found again for each token; else the best ones in few
    bits, as many as fit. If nothing fits, the smallest. Of a document that is read part by part a
    quarter at most: where parts overlap, less is clearer.
    `loaded`: process and weights are there, and no longer to be planned for.
    """
    most = int(ROOM * space.device)

    def plan_of(method: Method) -> Plan:
        each = work(method)
        return make_plan(replace(each, limit=min(each.limit, each.tokens + TALK)))

    def fits(method: Method) -> bool:
        plan = plan_of(method)
        there = plan.weights + plan.base if loaded else 0
        return max(plan.prefill, plan.chat) - there <= most

    bits = bits_of(options)
    full = parse_method("full", extra=bits)
    plan, asked = plan_of(Full()), work(full)
    if asked.streams and sizes.Streamed.of(asked.tokens, asked.limit):
        method = _largest(options, gated, fits, QUARTER)
        why = (
            f"longer than the window: {name_of(method)} keeps the best {method.budget} of each part"
        )
        return method, why
    if fits(full):
        return full, f"every KV pair is kept: all fits into {size(space.device)}"
    short = f"KV in full takes {size(plan.kv_full)}, {size(space.device)} are free"
    for fewer in () if options.kv_bits else FEWER:
        method = parse_method("full", extra=[f"bits={fewer}"])
        if fits(method):
            return method, f"{short}: every KV pair is kept in {fewer} bits"
    for method, room in _outside(space):
        if not options.kv_bits and plan.kv_full <= ROOM * room and fits(method):
            where = "host memory" if room == space.host else "the disk"
            return method, f"{short}: every KV pair stays in {where}, each token reads {READ}"
    few = options if options.kv_bits else replace(options, kv_bits=FEWER[-1])
    method = _largest(few, gated, fits)
    return method, (
        f"{short}: {name_of(method)} keeps the best {method.budget} in {method.bits} bits"
    )


def _largest(
    options: Options, gated: bool, fits: Callable[[Method], bool], most: float = 1.0
) -> Method:
    """The method for questions that are not known yet with the largest budget that fits, or the
    smallest there is."""
    best = unseen(options, gated)
    methods = [with_budget(best, Budget(fraction=share)) for share in sizes.LADDER if share <= most]
    return next(filter(fits, methods), methods[-1])


def few(tokens: int, method: Method) -> str:
    """That a document of so many tokens is kept whole instead of by `method`, where it is: it takes
    less than a talk about it does. Empty for others."""
    if tokens >= sizes.SMALL or isinstance(method, Full):
        return ""
    return (
        f"{tokens:,} tokens are few: every KV pair is kept ({name_of(method)} compresses from "
        f"{sizes.SMALL:,} on)"
    )


def _outside(space: Space) -> Iterator[tuple[Method, int]]:
    """Methods that keep every entry elsewhere, and the bytes that are free there."""
    if space.host:
        yield parse_method("pqcache:home=host", READ), space.host
    yield parse_method("pqcache:home=disk", READ), space.disk
