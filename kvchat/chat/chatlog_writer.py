"""Writes a chat down while it goes on: every turn is on disk before the next prompt appears."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvchat.chat import chatlog as saved
from kvchat.chat.chat import Chat
from kvchat.chat.chatlog_names import HeldName
from kvchat.engine.events import Turn, TurnDone
from kvchat.engine.methods.specs import method_options, name_of
from kvchat.engine.store import tokenizer_digest
from kvchat.terminal.colours import NOTICE
from kvchat.terminal.interrupt import shielded
from kvchat.terminal.screen import Screen


class ChatLogWriter:
    """The file of one chat. It begins with the first turn, or a name, and with all that there is by
    then; a disk that fails is said once.

    `problem` says why nothing is saved any more.
    """

    def __init__(
        self, screen: Screen, path: Path | None, name: str = "", held: HeldName | None = None
    ):
        """`path` None: nothing is saved. A name that is `held` is so until the file has it."""
        self.path, self.name, self.problem = path, name, ""
        self._screen, self._held = screen, held
        self._record: saved.Record | None = None

    @classmethod
    def of(cls, screen: Screen, chat: saved.Saved) -> tuple["ChatLogWriter", saved.Saved]:
        """Go on with a saved chat: its file is locked and read again, for another process may have
        written to it; a torn line is cut off. Raises KvchatError("session")."""
        writer = cls(screen, chat.path, chat.name)
        writer._record = saved.Record.of(chat.path)
        try:
            now = saved.read(chat.path)
            writer.name = now.name
            writer._record.cut(now.whole)
        except BaseException:
            writer.close()
            raise
        if more := len(now.turns) - len(chat.turns):
            screen.warn(f"{now.title} was gone on with in the meantime: {more:+,} turns")
        return writer, now

    @property
    def title(self) -> str:
        """What the chat goes by."""
        return self.name or (self.path.stem if self.path else "not saved")

    def turn(self, chat: Chat, replaces: int = 0) -> None:
        """Write down the last turn, in place of the `replaces` turns before it."""
        if chat.session.turns:
            self._write(chat, turn_event(chat.session.turns[-1], chat.last, replaces))

    def undo(self, chat: Chat, count: int) -> None:
        """Turns were taken back."""
        self._later(chat, {"event": "undo", "count": count})

    def changed(self, chat: Chat) -> None:
        """Document, method or settings are others now."""
        self._later(chat, *state_events(chat))

    def rename(self, chat: Chat, name: str) -> None:
        """Give the chat a name; from now on there is a file."""
        self.name = name
        self._write(chat, {"event": "name", "name": name})

    def close(self) -> None:
        """Give the file back."""
        if self._record:
            self._record.close()
            self._record = None
        self._let_go()

    def _let_go(self) -> None:
        if self._held:
            self._held.free()
            self._held = None

    def _later(self, chat: Chat, *events: dict[str, Any]) -> None:
        if self._record:  # before the first turn there is nothing that could change
            self._write(chat, *events)

    def _write(self, chat: Chat, *events: dict[str, Any]) -> None:
        if self.path is None:
            return
        try:
            with shielded():
                if self._record is None:
                    self._record = saved.Record(self.path)
                    events = everything(chat, self.name)  # with what is to be written
                self._record.append(*events)
                self._let_go()
        except OSError as error:
            self.problem = f"the chat cannot be saved ({error.strerror}): {self.path}"
            self._screen.warn(self.problem, "not saved")
            if self._screen.quiet:  # which is no reason to lose what was asked in silence
                self._screen.tell(f"kvchat: {self.problem}", NOTICE)
            self.close()
            self.path = None


def everything(chat: Chat, name: str) -> tuple[dict[str, Any], ...]:
    """A whole chat as it is."""
    turns, last = chat.session.all_turns, chat.last
    events = [turn_event(turn, None, 0) for turn in turns]
    if turns and last and last.answer == turns[-1].answer:
        events[-1] = turn_event(turns[-1], last, 0)
    return (head_event(chat, name), *state_events(chat), *events)


def head_event(chat: Chat, name: str) -> dict[str, Any]:
    """What stays the same in a chat."""
    return saved.first_event(
        name=name,
        model=chat.model.name,
        folder=str(chat.model.place),
        tokenizer=tokenizer_digest(chat.model.text_path.resolve()),
    )


def state_events(chat: Chat) -> list[dict[str, Any]]:
    """Document, method and settings as they are."""
    options, book = chat.options, chat.book
    files = [
        {"name": file.title, "path": file.path, "sha256": file.digest}
        # what was piped in cannot be read again from anywhere else
        | ({} if file.path else {"text": file.text})
        for file in book.files
    ]
    settings = {
        name: value
        for name, value in chat.options.live_values().items()
        if name in chat.options.origins
    }
    return [
        {
            "event": "document",
            "files": files,
            "system": book.system,
            "encoding": options.encoding,
            "pages": options.pages,
            "loader": options.loader,
            "clean": options.clean,
            "tokenizer": str(chat.model.tokenizer) if chat.model.tokenizer else None,
            "chat_template": chat.model.template,
            "day": str(book.dialogue.day) if book.dialogue.day else None,
            "overflow": options.overflow,
            "ctx_size": options.ctx_size,
        },
        {
            "event": "method",
            "name": name_of(chat.method),
            "budget": str(chat.method.budget) if book.files else None,
            "options": method_options(chat.method),
            "tail_budget": chat.session.tail_budget,
            "tail": options.tail,
            "in_view": chat.in_view,
        },
        {"event": "settings"} | settings,
    ]


def turn_event(turn: Turn, done: TurnDone | None, replaces: int) -> dict[str, Any]:
    """A turn with its tokens, those of its thought too: whoever reads them drops it again."""
    whole = asdict(turn.whole or turn)
    del whole["whole"]
    stats = {"ttft": done.ttft, "tokens_per_second": done.tokens_per_second} if done else {}
    return {"event": "turn", "replaces": replaces, **whole, "stats": stats}


def turn_of(event: dict[str, Any]) -> Turn:
    """The turn of a `turn_event`."""
    return Turn(
        event["question"],
        event["answer"],
        event["finish_reason"],
        tuple(event["ids"]),
        event["asked"],
        tuple(event["pending"]),
        event.get("reasoning", ""),
        event.get("thought", 0),
        event.get("thinks"),
    )
