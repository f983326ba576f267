"""Work of a chat behind a bar: Ctrl-C asks whether to go on; memory that runs out is explained."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

from kvchat.chat.chat import Chat
from kvchat.chat.shortage import out_of_memory
from kvchat.engine.events import Progress, Smaller
from kvchat.terminal.interrupt import Interrupt
from kvchat.terminal.key_prompt import choose
from kvchat.terminal.screen import Pause

R = TypeVar("R")
Work = Generator[Progress | Smaller, None, R]


class Dropped(Exception):
    """The person stopped a prefill."""


class Later(Dropped):
    """The person wants to go on later with what is read by now."""


def run(chat: Chat, work: Work[R], label: str, tokens: int, waits: bool = False) -> R:
    """Run work of a chat behind a bar. Where somebody sits there, Ctrl-C asks whether to go on.

    Raises `Dropped` if not, KvchatError("memory") with what was planned and what is there if memory
    runs out. Work that `waits` may be left as it is, with `Later`, to be run on.
    """
    left = False
    try:
        if not chat.interactive:
            return chat.screen.watch(work, label, tokens)
        with Interrupt() as interrupt:

            def check(pause: Pause) -> None:
                interrupt.leave_if_told()
                if not interrupt.asked():
                    return
                interrupt.forget()
                with pause(), interrupt.idle():
                    later, keys = (" / [l]ater", "cld") if waits else ("", "cd")
                    key = choose(
                        f"interrupted · [c]ontinue (Enter){later} / [d]rop the {label}",
                        keys,
                        "c",
                        "d",
                    )
                if key != "c":
                    raise Dropped if key == "d" else Later

            return chat.screen.watch(work, label, tokens, check)
    except Dropped as stopped:
        left = isinstance(stopped, Later)
        raise
    except Exception as error:
        raise out_of_memory(chat, error) from error
    finally:
        if not left:
            work.close()


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds that a block takes."""
    begin = perf_counter()
    yield
    timings[name] = perf_counter() - begin
