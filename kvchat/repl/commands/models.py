"""`/model`: which one answers."""

import re
from collections.abc import Iterable

from kvchat.chat.chatlog import new_path
from kvchat.chat.chatlog_writer import ChatLogWriter
from kvchat.chat.other_model import switch
from kvchat.errors import KvchatError
from kvchat.repl.commands.context import Context
from kvchat.repl.commands.show import PARTS
from kvchat.terminal.text import counted


def model(context: Context, argument: str) -> None:
    """show the model, or go on with another one

    `/model NAME` loads it beside the present one and lets it read the same documents and turns,
    which takes memory for both until then. It is a new chat among the saved ones; the old one
    stays. `kvchat models` lists names.
    """
    chat, screen = context.chat, context.screen
    if not argument:
        PARTS["model"](context, "")
        return
    try:
        done = switch(chat, argument)
    except KvchatError as error:  # what is said at a start has another name here
        ways = [re.sub(r"^(-m|--model)\b", "/model", way) for way in error.tries]
        raise KvchatError(error.code, error.message, *ways, **error.details) from error
    if not done:
        return
    context.writer.close()
    path = new_path() if chat.options.save else None
    context.writer = ChatLogWriter(screen, path)
    turns = counted(len(chat.session.turns), "turn")
    screen.tell(f"going on with {chat.model.name}: {turns}, {chat.book.title or 'no document'}")


def completes(context: Context, typed: str) -> Iterable[str]:
    """The names of config.toml."""
    return context.chat.options.aliases
