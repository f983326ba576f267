"""Renders finished blocks of an answer with rich, losing nothing that the model wrote."""

from markdown_it import MarkdownIt
from rich.console import RenderableType
from rich.markdown import Markdown
from rich.syntax import Syntax
from rich.text import Text

from kvchat.app.blocks import Code, Prose
from kvchat.app.text import clean

THEME = "ansi_dark"  # the 16 names that every terminal has


def rendered(block: Prose | Code) -> RenderableType | None:
    """What to print for a block; None for the end of a code fence."""
    if isinstance(block, Prose):
        return markdown(clean(block.text))
    if block.last:
        return None
    code = Syntax(
        clean(block.text), block.language or "text", theme=THEME, background_color="default"
    )
    return code if block.text.strip() else Text("")


def markdown(text: str) -> Markdown:
    """Markdown whose HTML stays text, whose links show their address and whose line breaks stay.

    Without that, rich leaves out tags and link definitions, and joins the lines of a poem.
    """
    parser = MarkdownIt("commonmark").enable(["strikethrough", "table"])
    parser.disable(["html_block", "html_inline", "reference", "image"])
    document = Markdown("", hyperlinks=False, code_theme=THEME)
    document.markup, document.parsed = text, parser.parse(text)
    for token in document.parsed:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return document
