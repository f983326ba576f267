"""What becomes of a long conversation: refused here where it cannot be."""

from kvchat.engine.compaction import folding
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.cascade import Cascade
from kvchat.engine.sizes import reserve_of
from kvchat.errors import KvchatError
from kvchat.settings.options import Options


def cascade_of(options: Options) -> Cascade | None:
    """The levels of `--tail`."""
    return Cascade(*options.cascade) if options.cascade else None


def require_tail(options: Options, method: Method) -> None:
    """Raise KvchatError("usage") if turns cannot be compressed as the options want it."""
    if options.tail_budget and options.cascade:
        raise KvchatError(
            "usage",
            f"--tail-budget {options.tail_budget} and --tail {options.tail} both compress turns",
            f"--tail {options.tail}",
            f"--tail-budget {options.tail_budget}",
        )
    if options.tail_budget or (options.cascade and method.retrieves):
        folding(method, options.tail_budget or 2)


def require_levels(options: Options, used: int, limit: int) -> None:
    """Raise KvchatError("usage") if the levels of `--tail`, behind `used` positions of a document,
    leave the window no room for a question and an answer."""
    if options.cascade is None:
        return
    levels, size = options.cascade
    free = limit - used - reserve_of(limit)
    if levels * size <= free:
        return
    fits = free // levels
    smaller = f"--tail cascade:{levels}x{fits}" if fits >= 16 else "a smaller document"
    raise KvchatError(
        "usage",
        f"--tail {options.tail} takes {levels * size:,} positions; the document leaves "
        f"{max(free, 0):,} of {limit:,}",
        smaller,
        needed=levels * size,
        free=free,
    )
