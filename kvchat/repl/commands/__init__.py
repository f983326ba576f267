"""Slash commands: a table of functions whose first docstring line is the help text."""

from difflib import get_close_matches

from kvchat.errors import KvchatError
from kvchat.repl.commands import about, chats, compression, documents, setting, speed, turns, views
from kvchat.repl.commands.context import Command, Context, Quit
from kvchat.repl.commands.documents import attach_text

__all__ = ["ALIASES", "COMMANDS", "Command", "Context", "Quit", "attach_text", "find", "run"]


def help_(context: Context, argument: str) -> None:
    """list the commands; `/help NAME` says more about one

    `/NAME?` is the same. Names may be shortened as long as they are clear.
    """
    if argument:
        name = find(argument.lstrip("/"))
        command = COMMANDS[name]
        context.screen.tell(f"/{name} {command.argument}".rstrip())
        context.screen.rows([line] for line in command.lines)
        return
    context.screen.rows(
        (f"/{name} {command.argument}".rstrip(), command.summary)
        for name, command in COMMANDS.items()
    )
    context.screen.tell("  /help NAME says more · /keys · Ctrl-C stops an answer · Ctrl-D quits")


COMMANDS: dict[str, Command] = {
    "help": Command(help_, "[NAME]", lambda context, typed: COMMANDS),
    "keys": Command(about.keys),
    "file": Command(documents.file, "PATH…", paths=True),
    "paste": Command(documents.paste),
    "drop": Command(documents.drop, "N"),
    "files": Command(documents.files),
    "system": Command(documents.system, "[TEXT]"),
    "set": Command(setting.set_, "[KEY [VALUE]]", setting.completes),
    "show": Command(about.show, "[WHAT]", lambda context, typed: about.PARTS),
    "method": Command(compression.method, "[SPEC]", compression.completes),
    "budget": Command(compression.budget, "[SIZE]"),
    "reread": Command(compression.reread, "[QUESTION]"),
    "compare": Command(compression.compare, "[METHOD] [QUESTION]", compression.completes),
    "memory": Command(views.memory),
    "heads": Command(views.heads, "[LAYER]"),
    "coverage": Command(views.coverage),
    "ctx": Command(views.ctx),
    "retry": Command(turns.retry),
    "more": Command(turns.more),
    "edit": Command(turns.edit),
    "undo": Command(turns.undo, "[N]"),
    "clear": Command(turns.clear),
    "reset": Command(documents.reset),
    "save": Command(chats.save, "[NAME]"),
    "rename": Command(chats.rename, "NAME"),
    "fork": Command(chats.fork, "[NAME]"),
    "load": Command(chats.load, "[NAME]", chats.completes),
    "sessions": Command(chats.sessions),
    "export": Command(chats.export, "[FILE]", paths=True),
    "copy": Command(about.copy, "[N]"),
    "bench": Command(speed.bench),
    "quit": Command(about.quit_),
}
ALIASES = {"exit": "quit", "bye": "quit", "q": "quit"}


def find(name: str) -> str:
    """The command that `name` is, or begins, unambiguously. Raises KvchatError("usage")."""
    if name in COMMANDS:
        return name
    if name in ALIASES:
        return ALIASES[name]
    matches = [known for known in COMMANDS if name and known.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    close = matches or get_close_matches(name, [*COMMANDS, *ALIASES], n=2)
    hint = f" – did you mean {', '.join(f'/{other}' for other in close)}?" if close else ""
    raise KvchatError(
        "usage",
        f"unknown command /{name}{hint}",
        *([] if close else ["/help"]),
        "start with a space to send it as text",
    )


def run(line: str, context: Context) -> None:
    """Run a line that begins with a slash; `/x?` is help on x."""
    word, _, argument = line[1:].partition(" ")
    if word.endswith("?") and len(word) > 1:
        word, argument = "help", word[:-1]
    name = find(word)
    argument = argument.strip()
    if argument and not COMMANDS[name].argument:
        raise KvchatError("usage", f"/{name} takes nothing after it", f"/{name}")
    COMMANDS[name].run(context, argument)
