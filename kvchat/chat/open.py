"""From options to an open chat: find, check and plan before anything large is loaded."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch

from kvchat import __version__, documents, process
from kvchat.chat.auto_budget import promised
from kvchat.chat.chat import Chat
from kvchat.chat.generation import generation_settings
from kvchat.chat.prefill import read_first, timed
from kvchat.chat.sources import read_documents
from kvchat.documents.document_ids import Book, compose
from kvchat.engine.budget import Budget
from kvchat.engine.engine import Engine, resolve_device, resolve_dtype
from kvchat.engine.events import Loading
from kvchat.engine.fold import folding
from kvchat.engine.methods import DEFAULT
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.full import Full
from kvchat.engine.methods.naming import name_of
from kvchat.engine.methods.spec import parse_method, with_budget
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.session import Session
from kvchat.engine.sizes import CHUNKS, LADDER, reserve_of
from kvchat.engine.weights.bits import INPUTS
from kvchat.errors import KvchatError
from kvchat.hub.find import Model, longer_windows
from kvchat.hub.offer import model_of
from kvchat.hub.tokenizer import load_tokenizer, with_text
from kvchat.machine import gpu_processes as others
from kvchat.machine import resources as machine
from kvchat.machine.plan import (
    Plan,
    Workload,
    geometry_of,
    longest,
    make_plan,
    planned,
    require_memory,
)
from kvchat.prompt_cache.library import folder as readings_folder
from kvchat.prompt_cache.saved_documents import Readings, plan_copy
from kvchat.settings.options import Options
from kvchat.settings.settings import Settings
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import size, unicode


@dataclass(frozen=True)
class Setup:
    """Everything that is settled before anything large is read."""

    options: Options
    model: Model
    config: ModelConfig
    device: torch.device
    dtype: torch.dtype
    limit: int
    chunk: int
    method: Method
    settings: Settings
    ends: Sequence[int]


def open_chat(options: Options, screen: Screen, interactive: bool = False) -> Chat:
    """Find, check, plan, load, read. Raises KvchatError before the weights load if it can.

    `interactive`: Ctrl-C while reading asks, and may leave a chat without the document.
    """
    timings: dict[str, float] = {}
    setup = settle(options, screen)
    loading = checked_weights(setup)
    files = read_documents(options, screen)
    with screen.busy("tokenising"), timed(timings, "tokenize"):
        book = make_book(setup, files, unicode(options.system))
    check_book(setup, book, screen)
    wanted = setup.method
    if not files:  # a system text alone is not worth a choice
        setup = replace(setup, method=Full())
    if book.ids:  # a budget that cannot be met is refused before the weights load
        setup.method.entries(geometry_of(setup.config, setup.dtype.itemsize, len(book.ids)))
    plan = make_plan(workload(setup, len(book.ids)))
    free = machine.free(setup.device, options.mem_limit)
    introduce(setup, book, plan, free, screen)
    where = machine.place(setup.device, options.mem_limit)
    require_memory(
        plan,
        free,
        where,
        name_of(setup.method),
        lambda: fitting(setup, free),
        lambda: others.holders(setup.device),
    )

    if options.full_copy != "off" and book.files:
        plan_copy(screen, options.full_copy, setup.method, plan, setup.device)
    needs, by_question = wanted.needs, setup.options.by_question
    if (by_question and not needs.queries) or (options.foreseen and not needs.sees):
        screen.warn(f"{name_of(wanted)} keeps the same entries whatever is asked")

    process.interruptible()
    with timed(timings, "load"):
        engine = screen.watch(loading, "loading")
    engine.chunk = setup.chunk
    session = Session(
        engine, book.dialogue, setup.ends, setup.limit, options.tail_budget, options.by_question
    )
    root = readings_folder(options.kv_cache_dir)
    readings = Readings(screen, options.kv_cache, root, options.full_copy)
    chat = Chat(
        setup.options,
        setup.model,
        session,
        setup.method,
        setup.settings,
        book,
        readings,
        timings,
    )
    read_first(chat, screen, interactive, wanted)
    return chat


def settle(options: Options, screen: Screen) -> Setup:
    """Model, device, method and settings. Raises KvchatError."""
    if options.threads:
        torch.set_num_threads(options.threads)
    method = chosen_method(options)
    if options.full_copy == "disk" and options.kv_cache != "on":
        raise KvchatError(
            "usage",
            f"a full copy on disk is a saved reading, and --kv-cache is {options.kv_cache}",
            "--kv-cache on",
            "--keep-full host",
        )
    options = replace(options, auto_loss=promised(options, method))
    if options.auto_loss is not None:
        method = with_budget(method, Budget(fraction=min(1.0, sum(LADDER))))  # while it is chosen
    if options.select == "question" and options.full_copy == "off" and not options.foreseen:
        raise KvchatError(
            "usage",
            "--select question chooses from a full copy for every question, and --keep-full is off",
            "--keep-full host",
            "-p QUESTION  (known before the document is read)",
            "/reread QUESTION  (reads it again)",
        )
    if options.tail_budget:
        folding(method, options.tail_budget)  # refused now if it cannot fold
    model = with_text(model_of(options, screen), options)
    if options.model is None:
        screen.warn(
            "no model given or configured: using the bundled demo model "
            "(small; -m NAME picks another)"
        )
    config = ModelConfig.load(model.folder)
    device = resolve_device(options.device)
    settings, ends = generation_settings(model, options)
    return Setup(
        options,
        model,
        config,
        device,
        resolve_dtype(options.dtype, config, options.weights),
        context_limit(config, options),
        options.prefill_chunk or CHUNKS[device.type],
        method,
        settings,
        ends,
    )


def checked_weights(setup: Setup) -> Generator[Loading, None, Engine]:
    """The loading of the weights, begun: their names and shapes are checked, nothing is read."""
    options = setup.options
    wanted = options.dtype, options.device, options.weights, options.attention
    loading = Engine.load(setup.model.folder, setup.config, *wanted)
    next(loading)
    return loading


def make_book(setup: Setup, files: Sequence[documents.Document], system: str) -> Book:
    """Documents and system text as ids that fit. Raises KvchatError("too_long")."""
    tokenizer = load_tokenizer(setup.model)
    overflow = setup.options.overflow

    def ways(needed: int) -> list[str]:
        own = setup.config.context_limit
        if needed + reserve_of(own) <= own:
            return [f"--ctx-size {own}  (the model's own window)"]
        return longer_windows(needed)

    return compose(tokenizer, files, system, setup.limit, overflow, ways)


def check_book(setup: Setup, book: Book, screen: Screen) -> None:
    """Say what a reader should know of a book. Raises KvchatError("model")."""
    if not book.dialogue.form.is_template and setup.model.template != "":
        screen.warn(
            f"{setup.model.name} has no usable chat template: plain Question / Answer form "
            "(--chat-template FILE gives it one)",
            "no template",
        )
    if book.ids and max(book.ids) >= setup.config.vocab_size:
        raise KvchatError(
            "model",
            f"the tokenizer of {setup.model.text_folder} makes token {max(book.ids):,}; the model "
            f"has {setup.config.vocab_size:,}",
        )
    if book.cut:
        screen.warn(f"{book.title}: {book.cut}")


def introduce(setup: Setup, book: Book, plan: Plan, free: int, screen: Screen) -> None:
    """The lines above the chat: model, documents, plan."""
    config, device = setup.config, setup.device
    where = f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else f"{device}"
    screen.say(
        f"kvchat {__version__} · {setup.model.name} ({config.family}, "
        f"{config.parameters / 1e6:,.1f} M parameters, {computing(setup)}) · {where}",
        "bold",
    )
    for file in book.files:
        pages = f", {len(file.places):,} {file.unit}" if len(file.places) > 1 else ""
        characters = f"{len(file.text):,} characters"
        screen.say(f"{file.title} · {size(file.size)}, {file.encoding}{pages}, {characters}")
    if not book.files:
        return
    tokens, limit = len(book.ids), setup.limit
    screen.say(
        f"{tokens:,} tokens · {tokens / limit:.0%} of the {limit:,} window, "
        f"{limit - tokens:,} left for questions and answers"
    )
    screen.say(
        f"plan: KV {size(plan.kv_full)} in full → {size(plan.kv_kept)} with "
        f"{name_of(setup.method)} {setup.method.budget}{plan.reads} (estimated)"
    )
    screen.say(
        f"      {size(plan.reading)} while reading, {size(plan.chatting)} with the window full; "
        f"{size(free)} free"
    )


def computing(setup: Setup) -> str:
    """The dtype that is computed in, and how weights are stored if that differs."""
    dtype, weights = str(setup.dtype).removeprefix("torch."), setup.options.weights
    return f"{dtype}, weights in {weights}" if weights in INPUTS else dtype


def fitting(setup: Setup, free: int) -> int:
    """Tokens of the longest document that can be read in `free` bytes."""
    return longest(workload(setup, 0), free)


def workload(setup: Setup, tokens: int) -> Workload:
    """What is planned for a document of so many tokens."""
    return Workload(
        setup.config,
        setup.dtype.itemsize,
        tokens,
        planned(setup.method),
        setup.limit,
        setup.chunk,
        setup.device.type == "cuda",
        setup.options.weights,
    )


def chosen_method(options: Options) -> Method:
    """The method of `--method`, `-O` and `--budget`. Raises KvchatError("usage")."""
    budget = Budget.parse(options.budget) if options.budget else None
    method = parse_method(options.method or DEFAULT, budget, options.method_options)
    if budget is not None and isinstance(method, Full) and _by_flag(options, "budget"):
        raise KvchatError(
            "usage",
            "full keeps everything and takes no budget",
            f"--method {DEFAULT} --budget {budget}",
        )
    return method


def _by_flag(options: Options, name: str) -> bool:
    return options.origins.get(name, "flag") == "flag"


def context_limit(config: ModelConfig, options: Options) -> int:
    """The model's window, or the smaller one of `--ctx-size`."""
    if options.ctx_size is None:
        return config.context_limit
    if not 1 <= options.ctx_size <= config.context_limit:
        raise KvchatError(
            "usage",
            f"--ctx-size {options.ctx_size:,} is outside 1–{config.context_limit:,}, "
            "the model's window",
            f"--ctx-size {config.context_limit}",
        )
    return options.ctx_size
