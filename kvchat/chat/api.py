"""The Python API: a chat about documents in a few lines, over the same parts as the program."""

import builtins
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import Any

from kvchat.chat import citing
from kvchat.chat.chat import Chat
from kvchat.chat.chatlog_writer import ChatLogWriter
from kvchat.chat.open import open_chat
from kvchat.chat.prepare import prepare
from kvchat.chat.recompress import recompress
from kvchat.documents.passages import Source
from kvchat.engine.answering import TurnEvents
from kvchat.engine.budget import Budget
from kvchat.engine.events import Delta, Forgotten, Thought, TurnDone
from kvchat.engine.methods.build import switched, with_budget
from kvchat.errors import KvchatError
from kvchat.settings.config import Config, settle
from kvchat.settings.option import options_of
from kvchat.settings.options import OPTIONS
from kvchat.settings.program_options import ProgramOptions
from kvchat.terminal.screen import Screen

__all__ = ["Answer", "Delta", "Forgotten", "OpenChat", "Source", "Thought", "TurnDone", "open"]

# Options of the program around a chat: its questions, saved chats and what it prints.
PROGRAM = {*options_of(ProgramOptions), "prompts", "prompt_file", "each", "system_file"}


@dataclass(frozen=True)
class Answer:
    """One answer: text, tokens, seconds, and bytes of the KV cache after it.

    `finish_reason` is `stop`, `length` (`max_tokens`), `window` (context window full) or
    `repetition` (it went round in circles; the repeats are not in `text`). `ttft` is the time to
    the first token, `decode_seconds` from the first to the last. `kv_bytes` are kept, `full_bytes`
    is what an uncompressed cache would hold. `reasoning` is what the model thought before, in so
    many of the completion's tokens. `sources` are the passages that it is from.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    ttft: float
    decode_seconds: float
    kv_bytes: int
    full_bytes: int
    reasoning: str = ""
    reasoning_tokens: int = 0
    sources: Sequence[Source] = ()


class OpenChat:
    """A chat about documents that are prefilled and compressed. A context manager: its end waits
    until the prompt cache is written."""

    def __init__(self, chat: Chat, screen: Screen):
        self._chat, self._screen = chat, screen

    def __enter__(self) -> "OpenChat":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._chat.cache.__exit__(kind, error, trace)

    def close(self) -> None:
        """The end, where `with` is not used."""
        self.__exit__(None, None, None)

    def ask(self, text: str) -> Answer:
        """Answer a question; the turn stays in the conversation. Raises KvchatError."""
        done = None
        for event in self.stream(text):
            if isinstance(event, TurnDone):
                done = event
        assert done is not None, "every turn ends with TurnDone"
        session = self._chat.session
        return Answer(
            done.answer,
            done.finish_reason,
            done.prompt_tokens,
            done.completion_tokens,
            done.ttft,
            done.decode_seconds,
            session.memory().total,
            session.full_bytes(),
            done.reasoning,
            done.reasoning_tokens,
            tuple(self.sources),
        )

    def stream(self, text: str) -> TurnEvents:
        """The events of an answer: `Delta` with pieces of its text, `Thought` with pieces of what
        the model thinks before, at last `TurnDone`. `Forgotten`: the oldest turns are dropped, for
        the context window is full.

        Closing the generator takes the question back. Raises KvchatError("too_long").
        """
        options, session = self._chat.options, self._chat.session
        asked = options.sampling, options.longest, options.stop
        for event in session.ask(text, *asked, thinks=options.thinks):
            if isinstance(event, TurnDone):
                self._chat.last = event
            yield event

    def recompress(self, method: str, budget: str | None = None) -> None:
        """Compress the document again, with another method or budget; turns stay.

        Raises KvchatError; the chat is then as it was.
        """
        chat = self._chat
        other = switched(method, chat.method, (), chat.options.method_options)
        recompress(chat, with_budget(other, Budget.parse(str(budget))) if budget else other)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the chat to a new file (`.jsonl`); `kvchat --resume FILE` goes on with it.

        Raises KvchatError("session") if the file exists or there is no turn yet.
        """
        place = Path(path)
        if place.exists() or not self._chat.session.turns:
            what = "exists already" if place.exists() else "would hold no turn"
            raise KvchatError("session", f"{place} {what}", "another file, after a question")
        writer = ChatLogWriter(self._screen, place)
        writer.turn(self._chat)
        writer.close()

    @property
    def sources(self) -> Sequence[Source]:
        """The passages of the documents that the last answer is from, heaviest first.

        None where no passage stands out: then it is from all over, or from the model itself.
        """
        return citing.sources(self._chat) if self._chat.options.sources else []

    @property
    def warnings(self) -> Sequence[str]:
        """Notices about what differs from what was asked."""
        return tuple(self._screen.warnings)

    @property
    def kept_share(self) -> float:
        """Share of the document's KV pairs that is kept."""
        return self._chat.kept_share()


def open(
    model: str | None = None,
    files: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    method: str | None = None,
    budget: str | int | None = None,
    **options: Any,
) -> OpenChat:
    """Load a model, prefill documents, compress their KV cache.

    `options` are the other options of `kvchat chat` by their names (`weights="int4"`,
    `ctx_size="32k"`, `temperature=0.7`, …); neither config.toml nor the environment is looked at.
    Raises KvchatError, with a code, for what the program says with an exit code; TypeError for an
    option that there is not.
    """
    kept = None if budget is None else str(budget)
    given = {"model": model, "method": method, "budget": kept, **options}
    if unknown := given.keys() - (OPTIONS.keys() - PROGRAM):
        raise TypeError(f"open() has no option {', '.join(sorted(unknown))}")
    several = [files] if isinstance(files, str | PathLike) else files
    names: builtins.list[str] = [fspath(file) for file in several]
    asked = settle(given | {"files": names, "yes": True, "save": False}, Config(Path()), {})
    screen = Screen(quiet=True, plain=True)
    screen.err.quiet = True  # nothing is printed; notices are in `warnings`
    prepared = prepare(asked, screen, piped=False)
    return OpenChat(open_chat(prepared, screen), screen)
