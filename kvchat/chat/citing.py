"""Where in the documents the last answer is from."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kvchat.chat.chat import Chat
from kvchat.documents.passages import Source
from kvchat.terminal.text import fitted

QUOTED = 20  # characters of a passage that are worth a place in a line


def sources(chat: Chat) -> list[Source]:
    """The passages that the last answer attends to most, heaviest first."""
    turns = chat.session.turns
    if not turns or not chat.book.files:
        return []
    if chat.cited is None or chat.cited[0] is not turns[-1]:
        weights = chat.session.attended()
        known = weights is not None and len(weights) == len(chat.book.begins)
        found = chat.book.sources(weights.tolist()) if weights is not None and known else []
        chat.cited = turns[-1], found
    return chat.cited[1]


def reported(found: Sequence[Source]) -> list[dict[str, Any]]:
    """For `--json`."""
    return [asdict(source) for source in found]


def place(source: Source, chat: Chat) -> str:
    """`[p. 12]`, with the document's name if there are several."""
    titles = {file.name: file.title for file in chat.book.files}
    several = f"{titles[source.document]}, " if len(titles) > 1 else ""
    return f"[{several}{source.label}]"


def line(found: Sequence[Source], chat: Chat, width: int) -> str:
    """`from [p. 12] "The lock opens with …" · [p. 40]`, in so many columns."""
    first, *others = (place(source, chat) for source in found)
    rest = fitted([(each, number + 1) for number, each in enumerate(others)], width // 3)
    after = f" · {rest}" if rest else ""
    text = " ".join(found[0].text.split())
    room = width - len(f'from {first} ""{after}')
    if room < min(QUOTED, len(text)):
        return f"from {first}{after}"
    quoted = text if len(text) <= room else f"{text[: room - 1].rstrip()}…"
    return f'from {first} "{quoted}"{after}'


def sources_begin(chat: Chat) -> list[int]:
    """Where the last answer's sources begin in the text of all documents."""
    return [chat.book.place_of(source) for source in sources(chat)]
