"""What a command may touch, and what the table knows of one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kvchat.chat.chat import Chat
from kvchat.chat.chatlog_writer import ChatLogWriter
from kvchat.errors import KvchatError
from kvchat.terminal.screen import Screen


class Quit(Exception):
    """The person wants to leave."""


@dataclass
class Context:
    """The chat, its file and the terminal."""

    chat: Chat
    screen: Screen
    writer: ChatLogWriter


@dataclass(frozen=True)
class Command:
    """A function whose docstring is the help; `argument` is shown after the name.

    `completes` gives what may stand after the name, from what is typed there so far.
    """

    run: Callable[[Context, str], None]
    argument: str = ""
    completes: Callable[[Context, str], Iterable[str]] | None = None
    paths: bool = False  # completes file names
    rare: bool = False  # stands by its name alone in the list of /help

    @property
    def summary(self) -> str:
        """The help in a few words."""
        return self.lines[0]

    @property
    def lines(self) -> list[str]:
        """The help: its first line, then paragraphs of a line each."""
        paragraphs = (self.run.__doc__ or "").strip().split("\n\n")
        return [" ".join(paragraph.split()) for paragraph in paragraphs]


def number(command: str, text: str, least: int, most: int) -> int:
    """The whole number that stands after a command. Raises KvchatError("usage")."""
    value = int(text) if text.isascii() and text.isdecimal() else -1
    if not least <= value <= most:
        raise KvchatError(
            "usage", f"{command} takes a number from {least} to {most:,}", f"{command} {least}"
        )
    return value
