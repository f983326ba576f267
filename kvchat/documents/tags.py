"""HTML cut into tags and text, in time that is linear in its length whatever it contains.

Every step moves behind what it has looked at, and a search that can find nothing is not made.
"""

import html
import re
from collections.abc import Iterator
from typing import NamedTuple

TAG = re.compile(r"</?([A-Za-z][^\s/<>]*)")
# Up to the tag's end; a quote counts behind `=` only, and one that is never closed not at all. What
# another tag begins in was never closed either.
ATTRIBUTES = re.compile(r"""(?:[^<>=]++|=\s*+(?:"[^"]*+"|'[^']*+')?+)*+""")
RAW = {"script": "</script", "style": "</style"}  # up to here there are no tags inside
# Digits of a character that does not exist: `int` would refuse thousands of them with an error.
ENDLESS = re.compile(r"&#\d{9,}+;?")


class Tag(NamedTuple):
    """A tag in lower case; one that `closes` itself is a beginning and an end."""

    name: str
    opens: bool
    closes: bool


def tokens(source: str) -> Iterator[Tag | str]:
    """Tags and the texts between them, references to characters resolved; comments are left out."""
    at, last = 0, len(source)
    ends = {mark: source.rfind(mark) for mark in ("-->", "]]>", ">")}  # behind these is none

    def end(mark: str, start: int) -> int:
        """Behind the next such mark; -1 if there is none."""
        return source.find(mark, start) + len(mark) if start <= ends[mark] else -1

    while at < last:
        begin = source.find("<", at)
        if begin < 0:
            begin = last
        if begin > at:
            yield _resolved(source[at:begin])
        if begin == last:
            return
        if found := TAG.match(source, begin):
            inside = ATTRIBUTES.match(source, found.end())
            assert inside is not None  # it matches nothing as well
            at = inside.end() + source.startswith(">", inside.end())
            tag = Tag(found[1].lower(), source[begin + 1] != "/", inside[0].endswith("/"))
            yield tag
            if tag.opens and not tag.closes and tag.name in RAW:
                at = _behind_raw(source, at, RAW[tag.name])
        elif source.startswith("<!--", begin) and (close := end("-->", begin + 2)) > 0:
            at = close
        elif source.startswith("<![CDATA[", begin) and (close := end("]]>", begin + 9)) > 0:
            yield source[begin + 9 : close - 3]
            at = close
        elif source.startswith(("<!", "<?", "</"), begin) and (close := end(">", begin + 2)) > 0:
            at = close
        else:
            yield "<"
            at = begin + 1


def _behind_raw(source: str, at: int, mark: str) -> int:
    """Where the end tag of a script or a style begins; the end of the source if there is none."""
    found = re.compile(mark, re.IGNORECASE).search(source, at)
    return found.start() if found else len(source)


def _resolved(text: str) -> str:
    return html.unescape(ENDLESS.sub("\ufffd", text)) if "&" in text else text
