"""Slash commands: a table of functions whose docstrings are the help."""

from difflib import get_close_matches

from kvchat.errors import KvchatError
from kvchat.repl.commands import chats, compression, documents, models, show, think, turns
from kvchat.repl.commands.context import Command, Context, Quit
from kvchat.repl.commands.documents import attach_text
from kvchat.repl.commands.turns import answer
from kvchat.settings.options import OPTIONS

__all__ = [
    "ALIASES",
    "COMMANDS",
    "Command",
    "Context",
    "Quit",
    "answer",
    "attach_text",
    "find",
    "run",
]

KEYS = (
    ("Enter", "send"),
    ("Alt-Enter, Esc Enter", "new line"),
    ('"""', "begins and ends a text of several lines"),
    ("Tab", "complete commands, settings, values, paths and chats"),
    ("Up, Down; Ctrl-R; →", "history; search in it; take the suggestion"),
    ("Ctrl-C", "interrupt an answer or a prefill; clear the line; twice on an empty one: quit"),
    ("Ctrl-D", "quit, on an empty line"),
    ("Ctrl-G, Ctrl-X Ctrl-E", "edit the line in $EDITOR"),
    ("F2", "memory usage below the prompt, on or off"),
    ("Ctrl-L, Ctrl-Z", "clear the screen, suspend"),
)


def help_(context: Context, argument: str) -> None:
    """list the commands

    `/help NAME` says more about one, and so does `/NAME?`; `/help keys` lists the keys. Names may
    be shortened as long as they are clear.
    """
    screen = context.screen
    if not argument:
        hidden = ("help", "quit")  # in the last line: the list is one screen of 24 lines
        screen.columns(
            (f"/{name} {command.argument}".rstrip(), command.summary)
            for name, command in COMMANDS.items()
            if name not in hidden and not command.rare
        )
        rare = (f"/{name} {each.argument}".strip() for name, each in COMMANDS.items() if each.rare)
        screen.tell(f"  also {', '.join(rare)}")
        screen.tell("  /help NAME says more · /help keys · Ctrl-C interrupts · /quit or Ctrl-D")
    elif argument.lstrip("/") == "keys":
        screen.columns(KEYS)
    else:
        name = find(argument.lstrip("/")).partition(" ")[0]
        command = COMMANDS[name]
        screen.tell(f"/{name} {command.argument}".rstrip())
        screen.columns([line] for line in command.lines)


def quit_(context: Context, argument: str) -> None:
    """leave (also Ctrl-D); the chat is saved"""
    raise Quit


COMMANDS: dict[str, Command] = {
    "help": Command(help_, "[NAME | keys]", lambda context, typed: [*COMMANDS, "keys"]),
    "file": Command(documents.file, "[PATH… | -]", paths=True),
    "drop": Command(documents.drop, "N", rare=True),
    "system": Command(documents.system, "[TEXT | -]"),
    "search": Command(documents.search, "TEXT"),
    "model": Command(models.model, "[NAME]", models.completes, rare=True),
    "method": Command(compression.method, "[SPEC]", compression.completes),
    "budget": Command(compression.budget, "[SIZE]"),
    "select": Command(compression.select, "[QUESTION | -]"),
    "compare": Command(compression.compare, "[SPEC] [QUESTION]", compression.completes),
    "show": Command(show.show, "[WHAT]", lambda context, typed: show.PARTS),
    "set": Command(show.set_, "[KEY [VALUE]]", show.completes),
    "sources": Command(turns.sources_),
    "think": Command(
        think.think, "[show|hide|off]", lambda *_: OPTIONS["think"].kind.choices, rare=True
    ),
    "retry": Command(turns.retry),
    "edit": Command(turns.edit),
    "more": Command(turns.more),
    "undo": Command(turns.undo, "[N]"),
    "clear": Command(turns.clear),
    "reset": Command(documents.reset, rare=True),
    "save": Command(chats.save, "[NAME]"),
    "rename": Command(chats.rename, "NAME", rare=True),
    "load": Command(chats.load, "[NAME]", chats.completes),
    "export": Command(chats.export, "[FILE]", paths=True),
    "copy": Command(chats.copy, "[N]"),
    "quit": Command(quit_),
}
ALIASES = {"exit": "quit", "bye": "quit", "q": "quit", "memory": "show memory"}
# What other names of a command are now.
MOVED = {
    "bench": "kvchat bench  (in a shell)",
    "coverage": "/show coverage",
    "ctx": "/show window",
    "files": "/file",
    "fork": "/save NAME",
    "heads": "/show heads",
    "keys": "/help keys",
    "paste": "/file -",
    "reread": "/select",
    "sessions": "/load",
}


def find(name: str) -> str:
    """The command, with what an alias adds, that `name` is or begins, unambiguously.

    Raises KvchatError("usage").
    """
    if name in COMMANDS:
        return name
    if name in ALIASES:
        return ALIASES[name]
    if name in MOVED:
        raise KvchatError("usage", f"there is no /{name}: use {MOVED[name]}", MOVED[name])
    matches = [known for known in COMMANDS if name and known.startswith(name)]
    matches = matches or [known for known in ALIASES if name and known.startswith(name)]
    if len(matches) == 1:
        return find(matches[0])
    close = matches or get_close_matches(name, [*COMMANDS, *ALIASES, *MOVED], n=2)
    forms = [MOVED.get(other, f"/{other}") for other in close]
    hint = f" – did you mean {', '.join(forms)}?" if forms else ""
    raise KvchatError(
        "usage",
        f"unknown command /{name}{hint}",
        *(forms or ["/help"]),
        "start with a space to send it as text",
    )


def run(line: str, context: Context) -> None:
    """Run a line that begins with a slash; `/x?` is help on x."""
    word, _, argument = line[1:].partition(" ")
    if word.endswith("?") and len(word) > 1:
        word, argument = "help", word[:-1]
    name, _, argument = f"{find(word)} {argument.strip()}".strip().partition(" ")
    if argument and not COMMANDS[name].argument:
        raise KvchatError("usage", f"/{name} takes nothing after it", f"/{name}")
    COMMANDS[name].run(context, argument)
