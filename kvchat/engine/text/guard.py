"""Tokenizers that came from anywhere: what they make of a text is bounded before they see one.

The library panics where a pattern backtracks too long, and ends the process where memory is short.
"""

import base64
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from tempfile import TemporaryFile
from threading import RLock, Thread
from typing import Any, TypeVar

from kvchat.errors import KvchatError

T = TypeVar("T")
ALONE = RLock()  # stderr is the whole process's
GROWTH_CAP = 32  # times that a text may grow before it is cut into tokens; Unicode's own is 18
LONG = 20_000  # characters; what is shorter takes no thread
SECONDS, PER_SECOND = 30.0, 5_000  # to tokenise a text: this, and a second for so many characters
# Of a pattern what opens and closes groups, repeats and chooses.
MARKS = re.compile(r"\(|\)+[*+{]?|(?<!\()[*+?]|,\d*\}|\|")


class Guard:
    """Calls a tokenizer's backend. Raises KvchatError("model") when it fails or takes too long."""

    def __init__(self, hf: Any):
        """Raises ValueError if the backend would multiply what it is given."""
        self.is_wild = False
        if (backend := getattr(hf, "_tokenizer", None)) is None:
            return
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            described = _described(getattr(backend, part, None))
            self.is_wild |= any(map(wild, _patterns(described)))
            if (growth := _growth(described)) > GROWTH_CAP:
                raise ValueError(
                    f"its {part} makes up to {growth:,} characters of one (at most {GROWTH_CAP})"
                )

    def __call__(self, work: Callable[[], T], characters: int) -> T:
        """What `work` returns for a text of so many characters."""
        with refused(), _silent() if self.is_wild else nullcontext():
            if characters < LONG and not self.is_wild:
                return work()
            return _in_time(work, SECONDS + characters / PER_SECOND)


def wild(pattern: str) -> bool:
    """Whether a group is repeated that has a repetition or a choice inside: it may match the same
    text in many ways."""
    inside = False
    for mark in MARKS.finditer(pattern):
        text = mark[0]
        if text[0] == ")":
            if inside and text[-1] in "*+{":
                return True
            inside = text[-1] in "*+"
        else:
            inside = text != "("
    return False


@contextmanager
def refused(where: str = "the tokenizer") -> Iterator[None]:
    """Whatever a tokenizer raises inside, panics too, is a KvchatError("model")."""
    try:
        yield
    except (KvchatError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # a panic is no Exception
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise KvchatError(
            "model", f"{where} cannot be used: {reason[:200]}", "--tokenizer FOLDER"
        ) from None


def _in_time(work: Callable[[], T], seconds: float) -> T:
    """What `work` returns, from a thread: the library cannot be interrupted."""
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            raised.append(error)

    thread = Thread(target=run, name="tokenizer", daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not found:
        raise KvchatError(
            "model",
            f"the tokenizer takes more than {seconds:.0f} s for this text",
            "--tokenizer FOLDER",
        )
    return found[0]


@contextmanager
def _silent() -> Iterator[None]:
    """What is written to stderr meanwhile appears afterwards; not at all after a panic, which
    writes what it knows there before it can be caught."""
    sys.stderr.flush()
    with ALONE, suppress(OSError), TemporaryFile() as aside:
        kept = os.dup(2)
        os.dup2(aside.fileno(), 2)
        said = False
        try:
            yield
            said = True
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            if said:
                aside.seek(0)
                os.write(2, aside.read())
        return
    yield  # there is no place for it, or no stderr


def _described(part: Any) -> dict[str, Any]:
    """A part of the backend as the JSON that tokenizer.json has of it."""
    found = json.loads(part.__getstate__()) if part is not None else {}
    return found if isinstance(found, dict) else {}


def _steps(part: dict[str, Any]) -> list[dict[str, Any]]:
    for several in ("normalizers", "pretokenizers", "decoders"):
        if several in part:
            return [step for each in part[several] for step in _steps(each)]
    return [part]


def _patterns(part: dict[str, Any]) -> list[str]:
    found = (step.get("pattern") for step in _steps(part))
    return [each["Regex"] for each in found if isinstance(each, dict) and "Regex" in each]


def _growth(part: dict[str, Any]) -> int:
    """How many characters a part may make of one, Unicode's own forms left out."""
    growth = 1
    for step in _steps(part):
        if step.get("type") == "Replace":
            replaced = len(step["pattern"].get("String", ""))
            growth *= max(1, -(-len(step["content"]) // max(replaced, 1)) + (replaced == 0))
        elif step.get("type") == "Precompiled":
            # a table of its size, then all replacements, each ended by a zero
            table = base64.b64decode(step.get("precompiled_charsmap") or "")
            texts = table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")
            growth *= max(1, *(len(text.decode("utf-8", "replace")) for text in texts))
    return growth
