"""Thoughts: what a model writes before its answer, between marks that its template knows."""

from dataclasses import dataclass

# How models mark a thought; a template that has one of either kind knows thoughts.
MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("Here is my thought process:", "Here is my response:"),
)
GAP = "\n\n"  # after a thought, and inside of an empty one


@dataclass(frozen=True)
class Thoughts:
    """What a template does about thoughts; all but `switch` are text.

    `wanted` and `closed` are headers (what follows a question) that ask for a thought and for none;
    `switch` says that the template itself has both. Where history drops thoughts, `past` stands
    there before an answer that had one and `bare` before one that had none; `past` None: history
    keeps them. `renews` are the positions of the switch for which something else would stand before
    the document than stands there now.
    """

    open: str
    close: str
    wanted: str = ""
    closed: str = ""
    past: str | None = None
    bare: str = ""
    switch: bool = False
    renews: tuple[bool, ...] = ()

    def is_open(self, header: str) -> bool:
        """Whether a header ends inside of a thought."""
        return header.rfind(self.open) > header.rfind(self.close)

    def shut(self, header: str) -> str:
        """A header with an empty thought behind it."""
        if not self.is_open(header):
            return f"{header}{self.open}{GAP}{self.close}{GAP}"
        begun = header[header.rfind(self.open) + len(self.open) :]
        return f"{header}{GAP[begun.count(chr(10)) :]}{self.close}{GAP}"


def marks_of(template: str) -> tuple[str, str] | None:
    """The marks of thoughts in a template; None if it knows none."""
    return next((marks for marks in MARKS if any(mark in template for mark in marks)), None)


class Splitter:
    """Parts text that comes in pieces into a thought at its beginning and what follows.

    `inside`: the text begins inside of a thought. White space after a thought belongs to neither.
    """

    def __init__(self, thoughts: Thoughts | None, inside: bool = False):
        self._thoughts = thoughts
        self.place = "answer" if thoughts is None else "thought" if inside else "begin"
        self._held = ""

    def push(self, text: str, final: bool = False) -> tuple[str, str]:
        """What is certain of the thought and of the rest after another piece; all if `final`."""
        if self.place == "answer" or self._thoughts is None:
            return "", text
        self._held += text
        thought = ""
        if self.place == "begin":
            begun = self._held.lstrip()
            if begun.startswith(self._thoughts.open):
                self.place, self._held = "thought", begun[len(self._thoughts.open) :]
            elif final or not self._thoughts.open.startswith(begun):
                return "", self._rest()
        if self.place == "thought":
            thought, found, after = self._held.partition(self._thoughts.close)
            if found:
                self.place, self._held = "gap", after
            else:
                keep = 0 if final else _beginning(self._held, self._thoughts.close)
                thought, self._held = _cut(self._held, keep)
        if self.place == "gap":
            self._held = self._held.lstrip()
            if self._held:
                return thought, self._rest()
        return thought, ""

    def _rest(self) -> str:
        rest, self._held, self.place = self._held, "", "answer"
        return rest


def _beginning(text: str, mark: str) -> int:
    """Characters at the end of a text that begin a mark."""
    lengths = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((length for length in lengths if mark.startswith(text[-length:])), 0)


def _cut(text: str, keep: int) -> tuple[str, str]:
    return text[: len(text) - keep], text[len(text) - keep :]
