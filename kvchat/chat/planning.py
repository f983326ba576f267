"""The plan of a chat: what compresses the document, what it takes, and whether that is there."""

from dataclasses import replace

import torch

from kvchat.chat import auto
from kvchat.chat.setup import Setup, gated, parts
from kvchat.chat.tails import require_levels
from kvchat.documents.document_ids import Book
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import name_of
from kvchat.engine.sizes import Streamed
from kvchat.machine import gpu_processes
from kvchat.machine import resources as machine
from kvchat.machine.plan import (
    Plan,
    Workload,
    geometry_of,
    longest,
    make_plan,
    require_copy,
    require_memory,
)
from kvchat.prompt_cache.files import folder
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import alike, size


def planned_chat(setup: Setup, book: Book, screen: Screen) -> Setup:
    """The setup with what compresses the book; says the plan, and refuses what cannot be met.

    Raises KvchatError("memory") if the plan needs more than is free, KvchatError("usage") for a
    budget that is too small.
    """
    options, device, wanted, why, whole = setup.options, setup.device, setup.method, "", ""
    if not book.files:  # a system prompt alone is not worth a choice
        setup = replace(setup, method=Full())
    elif auto.is_open(options):
        setup, why = _by_memory(setup, len(book.ids))
    elif whole := auto.few(len(book.ids), setup.method):
        setup = replace(setup, method=Full())
    require_levels(options, len(book.ids) - book.saved, setup.limit)
    if book.ids:
        geometry = geometry_of(setup.prepared.config, setup.dtype.itemsize, len(book.ids))
        setup.method.entries(geometry)  # refuses a budget that cannot be met
    plan, free = make_plan(setup.workload(len(book.ids))), setup.free()
    if book.files:
        _introduce(setup, book, plan, free, screen)
        if why:
            screen.say(f"      {why}")
        if whole:  # another method was asked for
            screen.warn(whole)
    require_memory(
        plan,
        free,
        machine.place(device, options.mem_limit),
        name_of(setup.method),
        lambda: longest(setup.workload(0), free),
        lambda: gpu_processes.other_processes(device),
    )
    if options.full_copy != "off" and book.files:
        _plan_copy(screen, options.full_copy, setup.method, plan, device)
    needs = wanted.needs
    if (options.by_question and not needs.queries) or (options.foreseen and not needs.sees):
        screen.warn(f"{name_of(wanted)} keeps the same entries whatever is asked")
    return setup


def _by_memory(setup: Setup, tokens: int) -> tuple[Setup, str]:
    """The setup with the method that memory allows for a document, and why it is that one."""
    options, device = setup.options, setup.device
    free = setup.free()
    host = machine.free(machine.CPU) if device.type == "cuda" else 0
    space = auto.Space.beside(free, host, folder(options.prompt_cache_dir))

    def work(method: Method) -> Workload:
        return replace(setup, method=method).workload(tokens)

    method, why = auto.choose(options, gated(setup.prepared), work, space)
    return replace(setup, method=method), why


def _plan_copy(
    screen: Screen, where: str, method: Method, plan: Plan, device: torch.device
) -> None:
    """Say what a full copy takes beside the plan. Raises KvchatError("memory")."""
    if isinstance(method, Full):
        screen.warn("full keeps every entry: a full copy has nothing to add")
        return
    screen.say(f"      and a full copy of the KV, {size(plan.kv_full)} on {where}")
    if where == "host":
        require_copy(plan, machine.free(machine.CPU), beside=device.type == "cpu")


def _introduce(setup: Setup, book: Book, plan: Plan, free: int, screen: Screen) -> None:
    """The lines about document and plan."""
    streamed = book.streamed
    if streamed is not None:
        streamed = replace(streamed, replayed=bool(setup.method.needs.kinds))
    screen.say(window_line(len(book.ids), setup.limit, streamed))
    count = parts(setup.options)
    full, kept = alike(count * plan.kv_full, count * plan.kv_kept)
    compressed = f" in full → {kept} with {name_of(setup.method)} {setup.method.budget}{plan.reads}"
    what = "" if setup.method == Full() else compressed
    screen.say(f"plan: KV {full}{what} (estimated)")
    prefill, chat, left = alike(plan.prefill, plan.chat, free)
    each = f"on each of {count} devices " if count > 1 else ""
    screen.say(
        f"      {each}{prefill} during the prefill, {chat} with the window full; "
        f"{left} free on {setup.device}"
    )


def window_line(tokens: int, limit: int, streamed: Streamed | None) -> str:
    """How a document of so many tokens fits into the context window."""
    if streamed is None:
        return (
            f"{tokens:,} tokens · {tokens / limit:.0%} of the {limit:,} context window, "
            f"{limit - tokens:,} left for questions and answers"
        )
    return (
        f"{tokens:,} tokens · {tokens / limit:.1f} times the {limit:,} context window: read in "
        f"{len(streamed.parts)} parts, {limit - streamed.room:,} left for questions and answers"
    )
