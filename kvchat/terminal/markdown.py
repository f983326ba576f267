"""Renders finished blocks of an answer with rich, losing nothing that the model wrote."""

from markdown_it import MarkdownIt
from rich.console import RenderableType
from rich.markdown import Markdown
from rich.syntax import Syntax
from rich.text import Text

from kvchat.terminal.markdown_blocks import Code, Prose
from kvchat.terminal.text import clean


def rendered(block: Prose | Code, theme: str = "dark") -> RenderableType | None:
    """What to print for a block; None for the end of a code fence.

    `theme` is what the terminal's background is; code has the 16 colours that every terminal has.
    """
    if isinstance(block, Prose):
        return markdown(clean(block.text), theme)
    if block.last:
        return None
    code = Syntax(
        clean(block.text),
        block.language or "text",
        theme=f"ansi_{theme}",
        background_color="default",
    )
    return code if block.text.strip() else Text("")


def markdown(text: str, theme: str = "dark") -> Markdown:
    """Markdown whose HTML stays text, whose links show their address and whose line breaks stay.

    Without that, rich leaves out tags and link definitions, and joins the lines of a poem.
    """
    parser = MarkdownIt("commonmark").enable(["strikethrough", "table"])
    parser.disable(["html_block", "html_inline", "reference", "image"])
    document = Markdown("", hyperlinks=False, code_theme=f"ansi_{theme}")
    document.markup, document.parsed = text, parser.parse(text)
    for token in document.parsed:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return document
