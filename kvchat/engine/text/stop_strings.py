"""An answer while its tokens come: its text, and what may be the beginning of a stop string."""

from dataclasses import dataclass, field

from kvchat.engine.text.tokenizer import TextStream


@dataclass
class Answer:
    """The text of an answer so far; holds back what may be the beginning of a stop string."""

    stream: TextStream
    stops: tuple[str, ...]
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    held: str = ""
    stopped: bool = False
    safe: list[tuple[int, int]] = field(default_factory=list)  # (tokens, characters) at whole text

    def push(self, token: int, is_end: bool) -> str:
        """Text that is certain after `token`; an end token has none."""
        self.tokens.append(token)
        if is_end:
            return ""
        sure = self._release(self.stream.push(token), final=False)
        if self.stream.is_whole and not self.stopped:
            self.safe.append((len(self.tokens), len(self.text) + len(self.held)))
        return sure

    @property
    def whole_tokens(self) -> int:
        """Tokens, from the first, whose text is whole and lies inside the answer's."""
        inside = (tokens for tokens, characters in self.safe if characters <= len(self.text))
        return max(inside, default=0)

    def flush(self) -> str:
        """The rest of the text, once no more tokens come."""
        return "" if self.stopped else self._release(self.stream.flush(), final=True)

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
