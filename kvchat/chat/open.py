"""From a prepared chat to an open one: planned and checked before anything large is loaded."""

from collections.abc import Generator

from kvchat import process
from kvchat.chat.chat import Chat
from kvchat.chat.chatlog import saved_day
from kvchat.chat.planning import planned_chat
from kvchat.chat.prefill import prefill_first
from kvchat.chat.prepare import Prepared
from kvchat.chat.setup import Setup, parts, settle
from kvchat.chat.tails import cascade_of
from kvchat.chat.thinking import how
from kvchat.chat.work import timed
from kvchat.documents.document_ids import Book, compose
from kvchat.engine.attention.choice import warnings
from kvchat.engine.engine import Engine
from kvchat.engine.events import Loading
from kvchat.engine.loading import load_engine
from kvchat.engine.model.shard import Shard
from kvchat.engine.session import Session
from kvchat.engine.sizes import reserve_of
from kvchat.errors import KvchatError
from kvchat.hub.find import longer_windows
from kvchat.hub.tokenizer import load_tokenizer
from kvchat.machine import ranks
from kvchat.prompt_cache.documents import PromptCache
from kvchat.prompt_cache.files import folder
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import alike, unicode


def open_chat(prepared: Prepared, screen: Screen, interactive: bool = False) -> Chat:
    """Plan, load, prefill. Raises KvchatError before the weights load if it can.

    `interactive`: Ctrl-C during the prefill asks, and may leave a chat without the document.
    """
    timings: dict[str, float] = {}
    setup = settle(prepared)
    options, wanted = setup.options, setup.method  # which also compresses turns
    loading = _checked_weights(setup)
    with screen.busy("tokenising"), timed(timings, "tokenize"):
        book = _book(setup)
    _check(setup, book, screen)
    setup = planned_chat(setup, book, screen)
    process.interruptible()
    with timed(timings, "load"):
        engine = screen.watch(loading, "loading")
    for line in warnings(engine.backend):
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


def _checked_weights(setup: Setup) -> Generator[Loading, None, Engine]:
    """The loading of the weights, begun: their names and shapes are checked, nothing is read."""
    options, prepared = setup.options, setup.prepared
    wanted = options.dtype, options.device, options.weights, options.attention, options.kernels
    config = prepared.config.within(setup.limit)
    count = parts(options)
    Shard(0, count).of(config)  # refused before others begin
    lead = ranks.begin(options.devices) if count > 1 else None
    loading = load_engine(prepared.model.path, config, *wanted, lead)
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
