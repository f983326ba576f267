"""Mails: subject, sender, day and the text; what is attached is left out and named."""

import re
from contextlib import suppress
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import Message
from email.policy import Compat32

from kvchat.documents.html import declared, text_of
from kvchat.documents.plain import decoded
from kvchat.documents.section import WHOLE, Section, Sections
from kvchat.documents.xml import damaged
from kvchat.errors import KvchatError

HEADERS = ("Subject", "From", "To", "Date")
LONGEST = 1000  # characters of a header
NESTED = 50  # messages and parts inside each other
MULTIPART = re.compile(rb"multipart/", re.IGNORECASE)


class Capped(Compat32):
    """Headers without their ends: the library looks at parameters in quadratic time."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        """Name and value of the lines of a header."""
        name, value = super().header_source_parse(sourcelines)
        return name, value[:LONGEST]


def load(name: str, data: bytes, encoding: str | None) -> Sections:
    """The mail as a text; of a text and its HTML the text. Raises KvchatError("input")."""
    if (count := len(MULTIPART.findall(data))) > NESTED:
        raise KvchatError("input", f"{name} has {count:,} parts of parts; {NESTED} are read")
    try:
        mail = message_from_bytes(data, policy=Capped())
        head = [f"{key}: {text}" for key in HEADERS if (text := _header(mail, key))]
        texts, others = _parts(name, mail, encoding)
    except (KvchatError, MemoryError):
        raise
    except Exception as error:  # the library raises many kinds
        damaged(name, error)
    if not texts:
        raise KvchatError("input", f"{name} has no text", "save the part that you need as a file")
    notices = (f"{name}: {len(others)} attachments are left out: {others[0]}",) if others else ()
    whole = "\n\n".join(["\n".join(head), *texts]).strip()
    return Sections((Section(name, whole),), WHOLE, "mail", notices)


def _header(mail: Message, key: str) -> str:
    text = str(mail.get(key, ""))
    with suppress(Exception):  # an encoding that there is not: as it stands
        text = str(make_header(decode_header(text)))
    return " ".join(text.split())


def _parts(name: str, mail: Message, encoding: str | None) -> tuple[list[str], list[str]]:
    """Texts, and the names of what is none."""
    texts: list[str] = []
    others: list[str] = []
    plain: Message | None = None  # the multipart/alternative whose text has been read
    for part, around in _walk(mail, None):
        kind = part.get_content_type()
        alternative = around is not None and around.get_content_subtype() == "alternative"
        if part.get_content_disposition() == "attachment" or part.get_content_maintype() != "text":
            others.append(str(part.get_filename() or kind)[:LONGEST])
        elif alternative and around is plain:
            continue
        else:
            body = part.get_payload(decode=True)
            source, _, _ = decoded(name, body if isinstance(body, bytes) else b"", _charset(part))
            text = text_of(source) if kind == "text/html" else source.strip()
            texts += [text] if text else []
            plain = around if text else plain
    return texts, others


def _walk(part: Message, around: Message | None) -> list[tuple[Message, Message | None]]:
    """Parts that have no parts, each with what it is a part of."""
    found: list[tuple[Message, Message | None]] = []
    waiting = [(part, around)]
    while waiting:
        part, around = waiting.pop()
        inner = part.get_payload()
        if part.is_multipart() and isinstance(inner, list):
            waiting += [(each, part) for each in reversed(inner) if isinstance(each, Message)]
        else:
            found.append((part, around))
    return found


def _charset(part: Message) -> str | None:
    claim = str(part.get_content_charset() or "")
    return declared(f'charset="{claim}"'.encode("ascii", "replace")) if claim else None
