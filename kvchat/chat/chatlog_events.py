"""The events of a saved chat: what each must have, checked once, where a file is read."""

from collections.abc import Callable
from datetime import date
from typing import Any

Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return type(value) is str


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _counts(value: Any) -> bool:
    return type(value) is list and all(map(_count, value))


def _switch(value: Any) -> bool:
    return type(value) is bool


def _plain(value: Any) -> bool:
    return value is None or type(value) in (str, int, float, bool)


def _table(value: Any) -> bool:
    return type(value) is dict and all(map(_plain, value.values()))


def _day(value: Any) -> bool:
    if not value:
        return value is None or value == ""
    return _text(value) and bool(date.fromisoformat(value))


def _files(value: Any) -> bool:
    return type(value) is list and all(
        type(file) is dict
        and _text(file["name"])
        and _or_none(_text)(file["path"])
        and _text(file["sha256"])
        and _text(file.get("text", ""))
        for file in value
    )


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


# What an event cannot do without.
NEEDED: dict[str, dict[str, Check]] = {
    "chat": {"schema": _count},
    "document": {"files": _files},
    "name": {"name": _text},
    "undo": {"count": _count},
    "turn": {
        "question": _text,
        "answer": _text,
        "finish_reason": _text,
        "ids": _counts,
        "asked": _count,
        "pending": _counts,
    },
}
# What it may have: files of earlier versions do without some of it.
OTHERS: dict[str, dict[str, Check]] = {
    "chat": dict.fromkeys(("name", "model", "folder", "tokenizer"), _text),
    "document": {
        "day": _day,
        "clean": _switch,
        "ctx_size": _or_none(_count),
        "overflow": _text,
    }
    | dict.fromkeys(
        ("system", "encoding", "pages", "loader", "tokenizer", "chat_template"), _or_none(_text)
    ),
    "method": {
        "name": _text,
        "budget": _or_none(_text),
        "options": _table,
        "tail_budget": _or_none(_count),
        "tail": _or_none(_text),
        "in_view": _text,
    },
    "turn": {
        "reasoning": _text,
        "thought": _count,
        "thinks": _or_none(_switch),
        "replaces": _count,
    },
}


def require(event: Any) -> str:
    """The kind of an event that is as it was written, or of one that is not known.

    Raises KeyError, TypeError or ValueError for one that is not.
    """
    kind = event.get("event") if isinstance(event, dict) else None
    if not isinstance(kind, str):
        raise TypeError("it is no event")
    for key, check in NEEDED.get(kind, {}).items():
        if not check(event[key]):
            raise TypeError(f"{key} is {event[key]!r:.40}")
    for key, check in OTHERS.get(kind, {}).items():
        if key in event and not check(event[key]):
            raise TypeError(f"{key} is {event[key]!r:.40}")
    if kind == "turn" and not event["asked"] <= len(event["ids"]):
        raise ValueError(f"asked is {event['asked']} of {len(event['ids'])} tokens")
    return kind
