"""What a command may touch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kvchat.chat.chat import Chat
from kvchat.chat.chatlog_writer import Keeper
from kvchat.terminal.screen import Screen


class Quit(Exception):
    """The person wants to leave."""


@dataclass
class Context:
    """The chat, its file and the terminal."""

    chat: Chat
    screen: Screen
    keeper: Keeper


@dataclass(frozen=True)
class Command:
    """A function whose first docstring line is the help; `argument` is shown after the name.

    `completes` gives what may stand after the name, from what is typed there so far.
    """

    run: Callable[[Context, str], None]
    argument: str = ""
    completes: Callable[[Context, str], Iterable[str]] | None = None
    paths: bool = False  # completes file names

    @property
    def summary(self) -> str:
        """The help in a few words."""
        return self.lines[0].partition("; `/")[0].partition(", or `/")[0]

    @property
    def lines(self) -> list[str]:
        """The help: its first line, then paragraphs of a line each."""
        paragraphs = (self.run.__doc__ or "").strip().split("\n\n")
        return [" ".join(paragraph.split()) for paragraph in paragraphs]
