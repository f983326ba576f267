"""Colours of the terminal: those that can be read on white and on black alike.

Of the 16 that every terminal has these are red and magenta; beside them there are bold, dim and
underlined text in the terminal's own colour.
"""

from typing import Any

from rich.console import Console
from rich.theme import Theme

NOTICE, ERROR, FAINT = "magenta", "red", "dim"
THEME = Theme(
    {
        "bar.back": "dim",
        "bar.complete": "magenta",
        "bar.finished": "magenta",
        "bar.pulse": "magenta",
        "progress.percentage": "",
        "progress.remaining": "dim",
        "progress.spinner": "magenta",
        "markdown.code": "bold",
        "markdown.code_block": "bold",
        "markdown.block_quote": "italic",
        "markdown.list": "",
        "markdown.item.bullet": "bold",
        "markdown.item.number": "bold",
        "markdown.hr": "dim",
        "markdown.h1": "bold",
        "markdown.h2": "bold underline",
        "markdown.h3": "bold",
        "markdown.h4": "italic",
        "markdown.link": "underline",
        "markdown.link_url": "underline",
        "markdown.kbd": "bold",
        "markdown.table.border": "dim",
        "markdown.table.header": "bold",
    }
)


def console(color: str = "auto", **options: Any) -> Console:
    """A console in these colours whose text is never markup.

    `color` is auto, always or never; auto is as the terminal and NO_COLOR, FORCE_COLOR and
    TERM=dumb in the environment say. `options` are rich's.
    """
    if color == "always":
        options |= {"force_terminal": True, "no_color": False}
    elif color == "never":
        options |= {"color_system": None}
    return Console(highlight=False, markup=False, theme=THEME, **options)
