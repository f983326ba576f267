"""`/bench`: how fast the present model reads and writes this document, in about ten seconds."""

from kvchat.engine.methods.naming import name_of
from kvchat.repl.commands.context import Context
from kvchat.terminal.interrupt import Interrupt
from kvchat.terminal.text import kept_of


def bench(context: Context, argument: str) -> None:
    """measure reading and writing, ten seconds

    Writing is over the present cache, which is left as it was. `kvchat bench` compares methods.
    """
    # imports torch
    from kvchat.repl.measuring import read, write

    chat, screen = context.chat, context.screen
    with Interrupt() as interrupt:
        if chat.session.document:
            with screen.busy("measuring: reading"):
                tokens, took = read(chat, interrupt)
            screen.tell(
                f"  reading  {tokens / took:,.0f} tok/s with {name_of(chat.method)} "
                f"{chat.method.budget} ({tokens:,.0f} tokens in {took:.1f} s)"
            )
        if interrupt.asked():
            raise KeyboardInterrupt
        with screen.busy("measuring: writing"):
            tokens, took = write(chat, interrupt)
    session = chat.session
    screen.tell(
        f"  writing  {tokens / took:,.1f} tok/s after {session.cache.position:,} tokens, KV "
        f"{kept_of(session.memory().total, session.full_bytes())}"
    )
