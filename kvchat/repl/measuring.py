"""How fast the present model reads and writes the document of a chat."""

from time import perf_counter

import torch

from kvchat.chat.chat import Chat
from kvchat.chat.whole import whole
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import Progress
from kvchat.engine.prefill.prefill import Compression
from kvchat.errors import KvchatError
from kvchat.terminal.interrupt import Interrupt

SECONDS = 5.0  # for reading, and as many for writing
TOKENS = 128  # written at most
SAMPLE = 4096  # of the document's tokens are read at most


def read(chat: Chat, interrupt: Interrupt) -> tuple[float, float]:
    """Read the beginning of the document anew: tokens (layers in part count in part), seconds."""
    session, method, _ = whole(chat)
    ids = session.document[:SAMPLE]
    begin, share = perf_counter(), 0.0
    work = session.engine.prefill(ids, [Compression(method)])
    for event in work:
        share = event.done / event.total if isinstance(event, Progress) else share
        if interrupt.asked() or perf_counter() - begin > SECONDS:
            work.close()
            break
    return len(ids) * share, perf_counter() - begin


def write(chat: Chat, interrupt: Interrupt) -> tuple[int, float]:
    """Write tokens after the present cache and take them back: tokens, seconds."""
    session = whole(chat).session
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
