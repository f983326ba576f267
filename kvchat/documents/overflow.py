"""A text that exceeds the context window: what is cut of it, or why it is refused, with numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvchat.documents import Document
from kvchat.engine.sizes import reserve_of
from kvchat.errors import KvchatError

WORD = 100  # characters within which a word ends; there are languages without spaces
# The share of the text that stays in front of the cut, by the part that is cut.
FRONT = {"head": 0.0, "tail": 1.0, "middle": 0.5}


@dataclass(frozen=True)
class Cut:
    """What `--overflow` left out, from character `start` on; `tokens` is estimated if the text is
    far too long."""

    policy: str
    tokens: int
    characters: int
    total_tokens: int
    start: int = 0

    def report(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "policy": self.policy,
            "dropped_tokens": self.tokens,
            "dropped_characters": self.characters,
            "total_tokens": self.total_tokens,
        }

    def __str__(self) -> str:
        where = {"head": "from the beginning", "tail": "from the end", "middle": "from the middle"}
        return (
            f"{self.tokens:,} of {self.total_tokens:,} tokens ({self.characters:,} characters) "
            f"were cut {where[self.policy]}, as --overflow {self.policy} says"
        )


def ends(text: str, kept: int, front: float) -> tuple[str, str]:
    """The first `front` share of `kept` characters and the rest from the end, in whole words where
    one ends within `WORD` characters."""
    head = text[: int(kept * front)]
    if part := re.search(r"\s\S*\Z", head[-WORD:]):
        head = head[: len(head) - len(part[0])].rstrip()
    count = kept - int(kept * front)
    tail = text[len(text) - count :] if count else ""
    if part := re.match(r"\S*\s", tail[:WORD]):
        tail = tail[len(part[0]) :]
    return head, tail


def too_long(
    title: str,
    files: Sequence[Document],
    needed: int,
    limit: int,
    estimated: bool,
    ways: Sequence[str],
) -> KvchatError:
    reserve = reserve_of(limit)
    over, share = needed + reserve - limit, (limit - reserve) / needed
    about = "about " if estimated else ""
    until, pages = _parts(files, share)
    return KvchatError(
        "too_long",
        f"{title or 'the system prompt'} needs {about}{needed:,} tokens; the context "
        f"window has {limit:,} ({reserve:,} are kept for questions and answers)",
        "--overflow stream  (reads all of it, part by part)",
        f"--overflow tail  (keeps the first {share:.0%}{until})",
        f"--overflow middle  (cuts {about}{over:,} tokens from the middle)",
        f"--overflow head  (keeps the last {share:.0%})",
        *pages,
        *ways,
        needed=needed,
        limit=limit,
        reserve=reserve,
    )


def _parts(files: Sequence[Document], share: float) -> tuple[str, list[str]]:
    """Where the share that fits ends, and `--pages` for it, if there are places with names."""
    if len(files) != 1 or len(files[0].places) < 2:
        return "", []
    file, room = files[0], share * len(files[0].text)
    starts = [place.start for place in file.places]
    reached = sum(start < room for start in starts)
    fitting = sum(end <= room for end in [*starts[1:], len(file.text)])
    until = f", into {file.places[reached - 1].name}" if reached else ""
    way = f"--pages 1-{fitting}  ({fitting} of {len(starts)} {file.unit})"
    return until, [way] if fitting else []
