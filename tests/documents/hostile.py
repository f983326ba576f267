"""Documents that somebody made to break us: text that patterns stumble over, and damaged files."""

import random
import re
import zipfile
from collections.abc import Iterator
from io import BytesIO

MEGABYTE = 10**6


def repeated(piece: str, before: str = "", after: str = "") -> bytes:
    """A megabyte of one piece."""
    return (before + piece * (MEGABYTE // len(piece)) + after).encode()


# What a pattern with two ways to match the same text, or a search that begins again and again,
# needs quadratic or exponential time for.
STUBBORN = {
    "comments": repeated("<!-- x -->\n", after="text"),
    "open comments": repeated("<!-- x"),
    "a comment that ends late": repeated("<!-", "<!--", "->"),
    "open tags": repeated("<a ", "<html>"),
    "tags in an open quote": repeated('<a b="', "<html>"),
    "quotes by turns": repeated("""<a b="'" c='""", "<html>"),
    "open attributes": repeated("a=", "<html><p "),
    "spaces in a tag": repeated(" ", "<html><p a="),
    "open end tags": repeated("</p ", "<html>"),
    "open scripts": repeated("<script>", "<html>"),
    "silent ones": repeated("<svg>", "<html>"),
    "declarations": repeated("<!a", "<html>"),
    "instructions": repeated("<?a", "<html>"),
    "open cdata": repeated("<![CDATA[", "<html>"),
    "angles": repeated("<", "<html>"),
    "references": repeated("&#x", "<html>"),
    "a number of a character": repeated("9", "<html>&#"),
    "named references": repeated("&amp", "<html>"),
    "white space": repeated(" \t", "<html>"),
    "a claim": repeated(" ", "<html charset"),
    "an xml declaration": repeated("<?xml ", " "),
    "line ends": repeated("\r\n\n\r"),
    "hyphens": repeated("a-\n "),
    "digits": repeated("1"),
    "numbers": repeated("1 ", after="\fb" * 9),
    "pages": repeated("1\n2\n3\n4\n\f"),
    "letters of the east": "\u3042\n".encode("cp932") * (MEGABYTE // 3),
    "groups": repeated("{\\a", "{\\rtf1"),
    "open groups": repeated("{", "{\\rtf1"),
    "control words": repeated("\\uc9\\u1 ", "{\\rtf1"),
    "a control word": repeated("a", "{\\rtf1\\"),
    "bytes that follow": repeated("\\bin9 }", "{\\rtf1"),
    "backslashes": repeated("\\'", "{\\rtf1"),
    "headers": repeated("a:\n", "Received: x\n"),
    "a header": repeated("=?utf-8?q?=41?= ", "Received: x\nSubject: "),
    "folded headers": repeated("a\n ", "Received: x\nSubject: "),
    "parts": repeated("--x\n", "Received: x\nContent-Type: multipart/mixed; boundary=x\n\n"),
    "parts of parts": repeated(
        "Content-Type: multipart/mixed; boundary=x\n\n--x\n", "Received: x\n"
    ),
    "parameters": repeated("a*0=b; ", "Received: x\nContent-Type: text/plain; "),
    "chapters in each other": repeated("<section>", "<FictionBook>"),
    "chapters": repeated("<a/>", "<FictionBook><body>", "</body></FictionBook>"),
    "form feeds": repeated("\f", after="text"),
}


def flipped(data: bytes, count: int, seed: int, bits: int = 3) -> Iterator[bytes]:
    """`count` copies, each with up to `bits` bits changed, or cut, or a stretch repeated."""
    draw = random.Random(seed)
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(draw.randint(1, bits)):
            copy[draw.randrange(len(copy))] ^= 1 << draw.randrange(8)
        fate = draw.random()
        if fate < 0.05:
            del copy[draw.randrange(len(copy)) :]
        elif fate < 0.1:
            at = draw.randrange(len(copy))
            copy[at:at] = copy[at : at + draw.randrange(64)]
        yield bytes(copy)


def zipped(members: dict[str, bytes], stored: bool = False) -> bytes:
    """An archive; `stored`: as they are, so that damage reaches what is inside."""
    data = BytesIO()
    how = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(data, "w", how) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return data.getvalue()


ODD = (
    "",
    "-1",
    "9" * 5000,
    "../../x",
    "/etc/hostname",
    "http://x/",
    "\u0661",
    "1e9",
    " ",
    "a" * 9999,
)
VALUE = re.compile(rb'="[^"]*"|>[^<]+<')


def spoilt(members: dict[str, bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` archives whose sums are right and one of whose members is not: bits are changed, a
    value or a text is an odd one, a stretch is left out, repeated or wrapped."""
    draw = random.Random(seed)
    names = sorted(members)
    for _ in range(count):
        name = draw.choice(names)
        text = members[name]
        for _ in range(draw.randint(1, 3)):
            text = draw.choice((_flip, _odd, _odd, _stretch))(text, draw)
        found = members | {name: text}
        if draw.random() < 0.05:
            del found[draw.choice(names)]
        yield zipped(found, stored=True)


def _flip(text: bytes, draw: random.Random) -> bytes:
    return next(flipped(text, 1, draw.randrange(10**6))) if text else text


def _odd(text: bytes, draw: random.Random) -> bytes:
    places = list(VALUE.finditer(text))
    if not places:
        return text
    place, value = draw.choice(places), draw.choice(ODD).encode()
    around = (b'="', b'"') if place[0].startswith(b"=") else (b">", b"<")
    return text[: place.start()] + around[0] + value + around[1] + text[place.end() :]


def _stretch(text: bytes, draw: random.Random) -> bytes:
    cuts = sorted(draw.choice([0, *(m.start() for m in re.finditer(b"<", text))]) for _ in range(2))
    before, piece, after = text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :]
    return before + draw.choice((b"", piece * 2, b"<x>" * 250 + piece + b"</x>" * 250)) + after
