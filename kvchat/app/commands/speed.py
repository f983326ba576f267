"""`/bench`: how fast the present model reads and writes this document, in about ten seconds."""

from time import perf_counter

import torch

from kvchat.app.commands.context import Context
from kvchat.app.interrupt import Interrupt
from kvchat.app.text import kept_of
from kvchat.engine.events import Progress
from kvchat.engine.methods.spec import name_of
from kvchat.engine.prefill import Compression
from kvchat.engine.sampling import Sampling
from kvchat.errors import KvchatError

SECONDS = 5.0  # for reading, and as many for writing
TOKENS = 128  # written at most
SAMPLE = 4096  # of the document's tokens are read at most


def bench(context: Context, argument: str) -> None:
    """measure reading and writing, ten seconds

    Writing is over the present cache, which is left as it was. `kvchat bench` compares methods.
    """
    chat, screen = context.chat, context.screen
    with Interrupt() as interrupt:
        if chat.session.document:
            with screen.busy("measuring: reading"):
                tokens, took = read(context, interrupt)
            screen.tell(
                f"  reading  {tokens / took:,.0f} tok/s with {name_of(chat.method)} "
                f"{chat.method.budget} ({tokens:,.0f} tokens in {took:.1f} s)"
            )
        if interrupt.asked():
            raise KeyboardInterrupt
        with screen.busy("measuring: writing"):
            tokens, took = write(context, interrupt)
    session = chat.session
    screen.tell(
        f"  writing  {tokens / took:,.1f} tok/s after {session.cache.position:,} tokens, KV "
        f"{kept_of(session.memory().total, session.full_bytes())}"
    )


def read(context: Context, interrupt: Interrupt) -> tuple[float, float]:
    """Read the beginning of the document anew: tokens (layers in part count in part), seconds."""
    chat = context.chat
    ids = chat.session.document[:SAMPLE]
    begin, share = perf_counter(), 0.0
    work = chat.session.engine.prefill(ids, [Compression(chat.method)])
    for event in work:
        share = event.done / event.total if isinstance(event, Progress) else share
        if interrupt.asked() or perf_counter() - begin > SECONDS:
            work.close()
            break
    return len(ids) * share, perf_counter() - begin


def write(context: Context, interrupt: Interrupt) -> tuple[int, float]:
    """Write tokens after the present cache and take them back: tokens, seconds."""
    session = context.chat.session
    room = min(TOKENS, session.limit - session.cache.position - 1)
    if room < 2:
        raise KvchatError("usage", "the window is full: nothing can be written", "/undo", "/clear")
    first = torch.zeros(session.engine.config.vocab_size, device=session.engine.device)
    count = 0
    try:
        written = session.engine.decode(session.cache, first, Sampling())
        next(written)  # the first token comes without work
        begin = perf_counter()
        while count < room and perf_counter() - begin < SECONDS and not interrupt.asked():
            next(written)
            count += 1
        return count, perf_counter() - begin
    finally:
        session.undo(0)
