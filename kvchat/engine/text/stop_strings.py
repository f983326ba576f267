"""An answer while its tokens come: its thought, its text, and what may be the beginning of a stop
string."""

from dataclasses import dataclass, field

from kvchat.engine.text.thoughts import Splitter
from kvchat.engine.text.tokenizer import TextStream


@dataclass
class Answer:
    """The text of an answer so far; holds back what may be the beginning of a stop string.

    `marks` are special tokens whose text tells a thought from the answer. A thought ends at no stop
    string; the first `thought_tokens` of the tokens are the thought's, its marks included.
    """

    stream: TextStream
    stops: tuple[str, ...]
    splitter: Splitter = field(default_factory=lambda: Splitter(None))
    marks: dict[int, str] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    thought: str = ""
    thought_tokens: int = 0
    held: str = ""
    stopped: bool = False
    safe: list[tuple[int, int]] = field(default_factory=list)  # (tokens, characters) at whole text

    def push(self, token: int, is_end: bool) -> str:
        """Text of the answer that is certain after `token`; an end token has none."""
        self.tokens.append(token)
        if is_end:
            return ""
        sure = self._take(self.stream.push(token) + self.marks.get(token, ""), final=False)
        place = self.splitter.place
        if place == "thought" or (place == "gap" and self.stream.is_whole):
            self.thought_tokens = len(self.tokens)
        # what waits to be told a thought or not may lie behind a stop string yet
        if self.stream.is_whole and not self.stopped and place != "begin":
            self.safe.append((len(self.tokens), len(self.text) + len(self.held)))
        return sure

    @property
    def whole_tokens(self) -> int:
        """Tokens, from the first, whose text is whole and lies inside the answer's."""
        inside = (tokens for tokens, characters in self.safe if characters <= len(self.text))
        return max(inside, default=0)

    @property
    def reasoning(self) -> str:
        """The thought, without white space around it."""
        return self.thought.rstrip()

    def flush(self) -> str:
        """The rest of the text, once no more tokens come."""
        return "" if self.stopped else self._take(self.stream.flush(), final=True)

    def _take(self, new: str, final: bool) -> str:
        thought, rest = self.splitter.push(new, final)
        self.thought = (self.thought + thought).lstrip()
        return self._release(rest, final)

    def _release(self, new: str, final: bool) -> str:
        self.held += new
        found = [at for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if found:
            self.stopped, self.held = True, self.held[: min(found)]
        keep = 0 if final or self.stopped else self._unsure()
        sure, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        self.text += sure
        return sure

    def _unsure(self) -> int:
        """Characters at the end that begin some stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for length in range(min(longest, len(self.held)), 0, -1):
            if any(stop.startswith(self.held[-length:]) for stop in self.stops):
                return length
        return 0
