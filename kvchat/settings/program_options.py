"""The options of the program around a chat, declared once: saved chats, and what is shown how."""

from dataclasses import dataclass

from kvchat.settings.kinds import (
    PATH,
    SWITCH,
    one_of,
)
from kvchat.settings.option import option

CHATS, SCREEN = "Chats", "Output"  # panels of the help
UI = "ui"  # a table of config.toml


@dataclass(frozen=True)
class ProgramOptions:
    """What the program does with a chat; None means "not given"."""

    last: bool = option("-C --continue", CHATS, "Go on with the last saved chat.", SWITCH)
    resume: str | None = option("-r --resume", CHATS, "Go on with the saved chat NAME.")
    session: str | None = option("--session", CHATS, "Go on with the chat NAME, or begin it.")
    save: bool = option("--save/--no-save", CHATS, "Save the chat.", SWITCH, UI, default=True)
    history: bool = option(
        "--history/--no-history", CHATS, "Remember typed lines.", SWITCH, UI, default=True
    )

    json: bool = option("--json", SCREEN, "One JSON object per answer.", SWITCH)
    jsonl: bool = option("--jsonl", SCREEN, "JSON events, a line each.", SWITCH)
    stream: bool = option(
        "--stream/--no-stream", SCREEN, "Show an answer while it is decoded.", SWITCH, default=True
    )
    raw: bool = option(
        "--raw", SCREEN, "Into a pipe or a file: answers with their control characters.", SWITCH
    )
    stats: str = option(
        "--stats",
        SCREEN,
        "Statistics after an answer.",
        one_of("off", "short", "long"),
        UI,
        default="short",
        live=True,
    )
    sources: bool = option(
        "--sources/--no-sources",
        SCREEN,
        "Say where in the documents an answer is from.",
        SWITCH,
        UI,
        default=True,
        live=True,
    )
    markdown: bool = option(
        "--markdown/--no-markdown", SCREEN, "Render Markdown.", SWITCH, UI, default=True, live=True
    )
    color: str = option(
        "--color", SCREEN, "Colours.", one_of("auto", "always", "never"), UI, default="auto"
    )
    plain: bool = option("--plain", SCREEN, "No live lines.", SWITCH, UI)
    vi: bool = option("--vi", SCREEN, "vi keys.", SWITCH, UI)
    notify: str = option(
        "--notify",
        SCREEN,
        "Tell when a long prefill has ended.",
        one_of("off", "bell", "osc9"),
        UI,
        default="off",
    )
    quiet: bool = option("-q --quiet", SCREEN, "Answers and errors only.", SWITCH)
    verbose: bool = option("-v --verbose", SCREEN, "Progress, tracebacks.", SWITCH)
    log_file: str | None = option(
        "--log-file", SCREEN, "Append notices, errors and statistics to a file.", PATH
    )
    yes: bool = option("-y --yes", SCREEN, "Do not ask.", SWITCH)
