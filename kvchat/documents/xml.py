"""XML that came from anywhere: without entities, with caps on its elements."""

import re
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from kvchat.errors import KvchatError

ELEMENTS_CAP, DEPTH_CAP = 5 * 10**6, 200  # an element takes some hundred bytes


def local(element: Element) -> str:
    """An element's name without its namespace."""
    return element.tag.rpartition("}")[2]


def damaged(name: str, why: object) -> NoReturn:
    """Raise KvchatError("input") for a file that a library stumbles over."""
    if isinstance(why, MemoryError):
        raise why
    text = re.sub(r"\s+", " ", str(why)) or type(why).__name__
    raise KvchatError("input", f"{name} is damaged: {text}", "save it as plain text") from None


def parsed(data: bytes) -> Element:
    """The root of an XML document, names of elements as `{namespace}name`.

    Raises ValueError for what is no part of a document, and whatever the parser does.
    """
    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    builder = TreeBuilder()
    depth = count = 0

    def full(name: str) -> str:
        return f"{{{name}" if "}" in name else name

    def begin(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth, count
        depth, count = depth + 1, count + 1
        if depth > DEPTH_CAP or count > ELEMENTS_CAP:
            raise ValueError(
                f"more than {DEPTH_CAP} elements inside each other, or {ELEMENTS_CAP:,} in all"
            )
        builder.start(full(name), {full(key): value for key, value in attributes.items()})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(full(name))

    def entity(name: str, *_: object) -> None:
        raise ValueError(f"it defines entities ({name}), which are not read")

    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = entity
    parser.Parse(data, True)
    root: Element = builder.close()
    return root
