"""From a prepared chat to an open one: planned and checked before anything large is loaded."""

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch

from kvchat import process
from kvchat.chat import auto
from kvchat.chat.chat import Chat
from kvchat.chat.chatlog import saved_day
from kvchat.chat.generation import with_model_defaults
from kvchat.chat.prefill import prefill_first, timed
from kvchat.chat.prepare import Prepared
from kvchat.chat.tails import cascade_of, require_levels, require_tail
from kvchat.chat.thinking import how
from kvchat.documents.document_ids import Book, compose
from kvchat.engine import gates
from kvchat.engine.budget import Budget
from kvchat.engine.devices import resolve_device, resolve_dtype
from kvchat.engine.engine import Engine
from kvchat.engine.events import Loading
from kvchat.engine.methods import AUTO, UNSEEN
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import name_of
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.shard import Shard
from kvchat.engine.session import Session
from kvchat.engine.sizes import CHUNKS, Streamed, reserve_of
from kvchat.errors import KvchatError
from kvchat.hub.find import longer_windows
from kvchat.hub.tokenizer import load_tokenizer
from kvchat.machine import gpu_processes, ranks
from kvchat.machine import resources as machine
from kvchat.machine.plan import (
    Plan,
    Workload,
    geometry_of,
    longest,
    make_plan,
    planned,
    require_copy,
    require_memory,
)
from kvchat.prompt_cache.documents import PromptCache
from kvchat.prompt_cache.files import folder
from kvchat.settings.options import Options
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import alike, size, unicode


@dataclass(frozen=True)
class Setup:
    """What is settled before the weights load: how to compute, and how to compress."""

    prepared: Prepared
    options: Options
    device: torch.device
    dtype: torch.dtype
    limit: int
    chunk: int
    method: Method
    ends: list[int]

    def free(self) -> int:
        """Bytes that are free for each part of the model."""
        free = machine.free(self.device, self.options.mem_limit)
        return free if self.device.type == "cuda" else free // ranks.wanted(self.options.devices)

    def workload(self, tokens: int) -> Workload:
        """What is planned for a document of so many tokens."""
        return Workload(
            self.prepared.config,
            self.dtype.itemsize,
            tokens,
            planned(self.method),
            self.limit,
            self.chunk,
            self.device.type == "cuda",
            self.options.weights,
            self.options.streams,
            self.options.attention,
            ranks.wanted(self.options.devices),
        )


def open_chat(prepared: Prepared, screen: Screen, interactive: bool = False) -> Chat:
    """Plan, load, prefill. Raises KvchatError before the weights load if it can.

    `interactive`: Ctrl-C during the prefill asks, and may leave a chat without the document.
    """
    timings: dict[str, float] = {}
    setup = settle(prepared)
    options, wanted = setup.options, setup.method
    loading = _checked_weights(setup)
    with screen.busy("tokenising"), timed(timings, "tokenize"):
        book = _book(setup)
    _check(setup, book, screen)
    why = ""
    if not book.files:  # a system prompt alone is not worth a choice
        setup = replace(setup, method=Full())
    elif auto.is_open(options):
        setup, why = _by_memory(setup, len(book.ids))
    elif why := auto.few(len(book.ids), setup.method):
        setup = replace(setup, method=Full())
    config, device = prepared.config, setup.device
    require_levels(options, len(book.ids) - book.saved, setup.limit)
    if book.ids:  # a budget that cannot be met is refused before the weights load
        setup.method.entries(geometry_of(config, setup.dtype.itemsize, len(book.ids)))
    plan, free = make_plan(setup.workload(len(book.ids))), setup.free()
    if book.files:
        _introduce(setup, book, plan, free, screen)
        if why:
            screen.say(f"      {why}")
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
    process.interruptible()
    with timed(timings, "load"):
        engine = screen.watch(loading, "loading")
    for line in engine.warnings:
        screen.warn(line, "kernels")
    engine.pace(setup.chunk)
    if engine.peers.count > 1:
        held = " + ".join(alike(*engine.weights_held()))
        screen.say(f"weights on {engine.peers.count} devices: {held}")
    session = Session(
        engine,
        book.dialogue,
        setup.ends,
        setup.limit,
        options.tail_budget,
        options.by_question,
        options.streams,
        cascade_of(options),
    )
    root = folder(options.prompt_cache_dir)
    policy, full_copy = options.prompt_cache, options.full_copy
    cache = PromptCache(screen, engine, prepared.model, policy, root, full_copy)
    chat = Chat(options, prepared.model, session, setup.method, book, cache, screen, timings)
    chat.interactive = interactive
    prefill_first(chat, wanted)
    return chat


def settle(prepared: Prepared) -> Setup:
    """Device, method, sampling and sizes. Raises KvchatError."""
    options, config = prepared.options, prepared.config
    if options.threads:
        torch.set_num_threads(options.threads)
    method = chosen_method(options, gated(prepared))
    if options.full_copy == "disk" and options.prompt_cache != "on":
        raise KvchatError(
            "usage",
            "a full copy on disk is part of the prompt cache, and --prompt-cache is "
            f"{options.prompt_cache}",
            "--prompt-cache on",
            "--keep-full host",
        )
    if options.select == "question" and options.full_copy == "off" and not options.foreseen:
        raise KvchatError(
            "usage",
            "--select question chooses from a full copy for every question, and --keep-full is off",
            "--keep-full host",
            "-p QUESTION  (known before the prefill)",
        )
    require_tail(options, method)
    if options.select == "question":
        ranks.refuse(options.devices, "--select question")
    if options.full_copy == "disk":
        ranks.refuse(options.devices, "--keep-full disk")
    if options.prompt_cache != "off" and ranks.wanted(options.devices) > 1:
        options = options.changed("prompt_cache", "off", "--devices")
    options, ends = with_model_defaults(options, prepared.model)
    device = resolve_device(options.device)
    return Setup(
        prepared,
        options,
        device,
        resolve_dtype(options.dtype, config, options.weights),
        context_limit(config, options),
        options.prefill_chunk or CHUNKS[device.type],
        method,
        ends,
    )


def chosen_method(options: Options, gated: bool) -> Method:
    """The method of `--method`, `-O` and `--budget`; where memory decides, the one for questions
    that are not known yet. `gated`: whether the model has a gate. Raises KvchatError("usage").
    """
    if options.method == AUTO:
        return auto.unseen(options, gated)
    budget = Budget.parse(options.budget) if options.budget else None
    method = parse_method(options.method, budget, options.method_pairs)
    if budget is not None and isinstance(method, Full) and options.origin("budget") == "flag":
        raise KvchatError(
            "usage",
            "full keeps everything and takes no budget",
            f"--method {UNSEEN} --budget {budget}",
        )
    return method


def gated(prepared: Prepared) -> bool:
    """Whether there is a gate for the model, as its checkpoint says."""
    return gates.exists(prepared.model.path, prepared.config)


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


def context_limit(config: ModelConfig, options: Options) -> int:
    """The model's window, or that of `--ctx-size`: a smaller one, or one that its scaled positions
    reach."""
    if options.ctx_size is None:
        return config.context_limit
    most = config.stretched  # the window, or more
    if not 1 <= options.ctx_size <= most:
        raise KvchatError(
            "usage",
            f"--ctx-size {options.ctx_size:,} is outside 1–{most:,}, the model's window",
            f"--ctx-size {most}",
        )
    return options.ctx_size


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


def _checked_weights(setup: Setup) -> Generator[Loading, None, Engine]:
    """The loading of the weights, begun: their names and shapes are checked, nothing is read."""
    options, prepared = setup.options, setup.prepared
    wanted = options.dtype, options.device, options.weights, options.attention, options.kernels
    config = prepared.config.within(setup.limit)
    Shard(0, ranks.wanted(options.devices)).of(config)  # refused before others begin
    lead = ranks.begin(options.devices)
    loading = Engine.load(prepared.model.path, config, *wanted, lead)
    next(loading)
    return loading


def _book(setup: Setup) -> Book:
    """Documents and system prompt as ids that fit. Raises KvchatError("too_long")."""
    prepared, options = setup.prepared, setup.options

    def ways(needed: int) -> list[str]:
        own = prepared.config.context_limit
        if needed + reserve_of(own) <= own:
            return [f"--ctx-size {own}  (the model's own window)"]
        return longer_windows(needed)

    tokenizer, system = load_tokenizer(prepared.model), unicode(options.system)
    day = saved_day(prepared.saved) if prepared.saved else None
    return compose(
        tokenizer,
        prepared.files,
        system,
        setup.limit,
        options.overflow,
        ways,
        day,
        options.thinks,
        options.folds,
    )


def _check(setup: Setup, book: Book, screen: Screen) -> None:
    """Say what a reader should know of a book. Raises KvchatError("model")."""
    model, vocabulary = setup.prepared.model, setup.prepared.config.vocab_size
    if not book.dialogue.form.is_template and model.template != "":
        screen.warn(
            f"{model.name} has no usable chat template ({book.dialogue.why_plain}): plain Question "
            "/ Answer form (--chat-template FILE gives it one)",
            "no template",
        )
    if setup.options.think is not None:
        said = how(book.dialogue, setup.options.think)
        asked = setup.options.origin("think") == "flag"
        (screen.warn if asked and book.dialogue.form.thoughts is None else screen.say)(said)
    if book.ids and max(book.ids) >= vocabulary:
        raise KvchatError(
            "model",
            f"the tokenizer of {model.text_path} makes token {max(book.ids):,}; the model has "
            f"{vocabulary:,}",
        )
    if book.cut:
        screen.warn(f"{book.title}: {book.cut}")


def _introduce(setup: Setup, book: Book, plan: Plan, free: int, screen: Screen) -> None:
    """The lines about document and plan."""
    streamed = book.streamed
    if streamed is not None:
        streamed = replace(streamed, replayed=bool(setup.method.needs.kinds))
    screen.say(window_line(len(book.ids), setup.limit, streamed))
    count = ranks.wanted(setup.options.devices)
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
