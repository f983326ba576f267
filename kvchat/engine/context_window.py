"""What turns take of the context window, and whether it has room."""

from collections.abc import Iterable

from kvchat.engine.events import Turn
from kvchat.engine.sizes import reserve_of
from kvchat.errors import KvchatError


def ids_of(turns: Iterable[Turn]) -> list[int]:
    """What turns put into the cache, one after the other."""
    return [i for turn in turns for i in turn.ids]


def tokens_of(turns: Iterable[Turn]) -> int:
    """How many tokens that is."""
    return sum(len(turn.ids) for turn in turns)


def require_fit(tokens: int, limit: int, name: str = "the document") -> None:
    """Raise KvchatError("too_long") unless `tokens` leave room for a question in the window."""
    reserve = reserve_of(limit)
    if tokens + reserve > limit:
        share = (limit - reserve) / tokens
        raise KvchatError(
            "too_long",
            f"{name} needs {tokens:,} tokens; the model takes {limit:,} "
            f"({reserve:,} are kept for questions and answers)",
            f"give {tokens + reserve - limit:,} tokens less: about the first {share:.0%} fit",
            "--model with a longer context window",
            needed=tokens,
            limit=limit,
            reserve=reserve,
        )


def require_room(limit: int, saved: int, used: int, needed: int, turns: bool) -> int:
    """Tokens for an answer after a question that needs some, where `used` ones stand before it.

    `saved` positions of those take none of the window's `limit`; with `turns` some can go. Raises
    KvchatError("too_long").
    """
    room = limit + saved - used - needed
    if room < 1:
        ways = ["a shorter question or document"]
        if turns:
            ways = ["/undo  (forgets the last turn)", "/clear  (keeps only the document)"]
        raise KvchatError(
            "too_long",
            f"the question needs {needed:,} tokens and one for the answer; of the window's "
            f"{limit:,} tokens {used - saved:,} are used",
            *ways,
            needed=used + needed - saved,
            limit=limit,
        )
    return room
