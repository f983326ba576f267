"""Pictures: what is written in them is recognised, see `ocr`."""

from kvchat.documents.section import WHOLE, Section, Sections


def load(name: str, data: bytes, encoding: str | None) -> Sections:
    """A document whose text is not there yet."""
    return Sections((Section(name, ""),), WHOLE, "ocr", unread=(0,))
