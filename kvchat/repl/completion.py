"""What Tab offers after a slash: commands, then keys, values, chats or paths."""

from collections.abc import Iterator

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from kvchat.errors import KvchatError
from kvchat.repl.commands import COMMANDS, Context, find


class SlashCompleter(Completer):
    """Completes commands and what may follow them."""

    def __init__(self, context: Context):
        self._context = context
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        """Everything that can stand where the cursor is."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        word, space, typed = text[1:].partition(" ")
        if not space:
            for name, command in COMMANDS.items():
                if name.startswith(word):
                    yield Completion(name, -len(word), display_meta=command.summary)
            return
        try:
            command = COMMANDS[find(word).partition(" ")[0]]
        except KvchatError:
            return
        if command.paths:
            last = typed.rpartition(" ")[2]
            yield from self._paths.get_completions(Document(last, len(last)), event)
        elif command.completes:
            for choice in command.completes(self._context, typed):
                if choice.startswith(typed):
                    yield Completion(choice, -len(typed))
