"""Markdown of an answer: cut into blocks that will not change any more while it streams, each
rendered by rich, losing nothing that the model wrote."""

import re
from dataclasses import dataclass

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import Heading, Markdown
from rich.style import Style
from rich.syntax import ANSISyntaxTheme, Syntax
from rich.text import Text

from kvchat.terminal.text import clean

# Colours of code, as in `colours`.
CODE = ANSISyntaxTheme(
    {
        ("Comment",): Style(dim=True, italic=True),
        ("Keyword",): Style(bold=True),
        ("Operator", "Word"): Style(bold=True),
        ("Name", "Tag"): Style(bold=True),
        ("Literal", "String"): Style(color="magenta"),
        ("Literal", "Number"): Style(color="magenta"),
    }
)
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)")


@dataclass(frozen=True)
class Prose:
    """A finished block of Markdown."""

    text: str


@dataclass(frozen=True)
class Code:
    """A finished line inside a code fence; `last` ends the fence."""

    text: str
    language: str
    last: bool = False


class Blocks:
    """Text in, in pieces of any size; finished blocks out, the same for every way of cutting it.

    A block of prose ends at a blank line that is followed by a line without indentation (an
    indented one may belong to a list item). Inside a code fence every line is finished by itself.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []  # of the open block of prose
        self._partial = ""
        self._fence: tuple[str, str] | None = None  # marks, language

    @property
    def rest(self) -> str:
        """What has come since the last finished block."""
        return "\n".join([*self._lines, self._partial])

    @property
    def in_code(self) -> bool:
        """Whether a code fence is open."""
        return self._fence is not None

    def push(self, text: str) -> list[Prose | Code]:
        """The blocks that `text` finishes."""
        done: list[Prose | Code] = []
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            done += self._line(line)
        if self._partial[:1].strip() and self._fence is None and self._gap():
            done += self._end()
        return done

    def close(self) -> list[Prose | Code]:
        """What is left, once no more text comes."""
        last, self._partial = self._partial, ""
        return [*(self._line(last) if last else []), *self._end()]

    def _line(self, line: str) -> list[Prose | Code]:
        if self._fence:
            marks, language = self._fence
            if line.strip().startswith(marks) and not line.strip(f" {marks[0]}"):
                self._fence = None
                return [Code("", language, last=True)]
            return [Code(line, language)]
        if fence := FENCE.match(line):
            done = self._end()
            self._fence = (fence[1], fence[2])
            return done
        done = self._end() if line[:1].strip() and self._gap() else []
        self._lines.append(line)
        return done

    def _gap(self) -> bool:
        return bool(self._lines) and not self._lines[-1].strip()

    def _end(self) -> list[Prose | Code]:
        text = "\n".join(self._lines).strip("\n")
        self._lines = []
        return [Prose(text)] if text.strip() else []


def code_blocks(text: str) -> list[str]:
    """The code of every fence in a text."""
    blocks = Blocks()
    found: list[list[str]] = [[]]
    for block in [*blocks.push(text), *blocks.close()]:
        if isinstance(block, Code) and not block.last:
            found[-1].append(block.text)
        elif found[-1]:  # prose, or the end of a fence
            found.append([])
    return ["\n".join(lines) for lines in found if lines]


def rendered(block: Prose | Code) -> RenderableType | None:
    """What to print for a block; None for the end of a code fence."""
    if isinstance(block, Prose):
        return markdown(clean(block.text))
    if block.last:
        return None
    code = Syntax(
        clean(block.text),
        block.language or "text",
        theme=CODE,
        background_color="default",
    )
    return code if block.text.strip() else Text("")


class _Heading(Heading):
    """A heading at the left: in the middle of a wide terminal nobody looks for it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _Document(Markdown):
    elements = Markdown.elements | {"heading_open": _Heading}


def markdown(text: str) -> Markdown:
    """Markdown whose HTML stays text, whose links show their address and whose line breaks stay.

    Without that, rich leaves out tags and link definitions, and joins the lines of a poem.
    """
    parser = MarkdownIt("commonmark").enable(["strikethrough", "table"])
    parser.disable(["html_block", "html_inline", "reference", "image"])
    document = _Document("", hyperlinks=False, code_theme=CODE)  # type: ignore[arg-type]
    document.markup, document.parsed = text, parser.parse(text)
    for token in document.parsed:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return document
