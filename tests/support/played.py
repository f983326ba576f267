"""A chat whose session plays its role: the answers are written down, and there is no model. Run as
a program it types what its arguments say, shows what a person sees, and cannot import torch."""

import sys
from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]

from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from kvchat.chat import chatlog as saved
from kvchat.chat.chat import Chat
from kvchat.chat.chatlog_writer import Keeper
from kvchat.documents import decode
from kvchat.documents.document_ids import Book
from kvchat.engine.budget import DEFAULT_BUDGET, Budget
from kvchat.engine.events import Delta, TurnDone
from kvchat.engine.methods import METHODS, Entry
from kvchat.engine.methods.needs import Needs
from kvchat.engine.turn import Turn
from kvchat.hub.find import Model
from kvchat.machine import resources as machine
from kvchat.repl import repl
from kvchat.repl.commands import Context
from kvchat.settings.options import Options
from kvchat.settings.settings import Settings
from kvchat.terminal import line_editor as lines
from kvchat.terminal.screen import Screen

STORY = "The keeper counted ships. At night he counted the stars above the sea. " * 6
LAYERS, HEADS, BYTES = 2, 2, 64  # of a token in full


@dataclass(frozen=True)
class Plays:
    """A method that nothing is read with."""

    budget: Budget = DEFAULT_BUDGET
    window: int = 8
    needs = Needs(queries=8)


class Letters:
    """A dialogue whose tokens are characters."""

    form = SimpleNamespace(is_template=True)

    def document(self, text: str, system: str = "") -> list[int]:
        return [ord(c) for c in system + text]

    @property
    def tokenizer(self):
        return SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)))


@dataclass
class Bytes:
    """A quarter of what was seen, on the device."""

    device: int
    host: int = 0
    disk: int = 0

    @property
    def total(self) -> int:
        return self.device


@dataclass
class Layer:
    """Rows of a document: every fourth token of each head."""

    tokens: int
    sliding = None
    window_bytes = 0

    @property
    def segments(self):
        places = SimpleNamespace(tolist=lambda: list(range(0, self.tokens, 4)) * HEADS, nbytes=0)
        held = Bytes(self.tokens * BYTES // 4 // LAYERS)
        return [SimpleNamespace(span=(0, self.tokens), memory=lambda: held,
                                tensors=lambda: {"position": places})]  # fmt: skip

    def kept(self, end: int) -> list[int]:
        return [end // 4, end // 8]


@dataclass
class Played:
    """A session: a turn puts its characters into the cache, an answer comes word by word."""

    document: list[int]
    answers: list[str]
    turns: list[Turn] = field(default_factory=list)
    dialogue = Letters()
    limit, tail_budget, folded, by_question = 4096, 0, 0, False
    question_seconds, select_seconds = None, 0.0

    @property
    def engine(self):
        config = SimpleNamespace(num_kv_heads=HEADS, num_layers=LAYERS, context_limit=self.limit)
        return SimpleNamespace(device=machine.CPU, weights_bytes=1000, weights="f32", chunk=512,
                               config=config, kv_bytes_per_token=BYTES)  # fmt: skip

    @property
    def cache(self):
        layers = [Layer(len(self.document)) for _ in range(LAYERS)]
        return SimpleNamespace(
            position=len(self.document) + sum(len(turn.ids) for turn in self.turns),
            layers=layers, segments=lambda: [s for layer in layers for s in layer.segments],
            archived=lambda: Bytes(0), preallocated=0, captured=None, read=1, kept=1,
        )  # fmt: skip

    def memory(self) -> Bytes:
        return Bytes(self.full_bytes() // 4)

    def full_bytes(self) -> int:
        return self.cache.position * BYTES

    def ask(self, question, sampling=None, max_tokens=0, stop=(), cancelled=lambda: False):
        asked, answer = [ord(c) for c in question], self.answers.pop(0)
        words = answer.split(" ")
        for number, word in enumerate(words, 1):
            yield Delta(word + " " * (number < len(words)), number)
        ids = (*asked, *map(ord, answer))
        self.turns = [*self.turns, Turn(question, answer, "stop", ids, len(asked))]
        yield TurnDone(answer, "stop", len(asked), len(words), 0.01, 0.1)

    def more(self, *_) -> Generator:
        raise AssertionError("its answers are whole")

    def undo(self, count: int = 1) -> list[Turn]:
        kept = len(self.turns) - count
        gone, self.turns = self.turns[kept:], self.turns[:kept]
        return gone

    def clear(self) -> None:
        self.turns = []

    def restore(self, turns) -> Generator:
        self.turns = [*self.turns, *turns]
        yield from ()


class Nothing(nullcontext):
    """Readings: none."""

    full_copy = "off"

    def tell(self) -> None:
        """There is nothing to tell."""


def played(folder: Path, answers: list[str]) -> Context:
    """A chat about the story; `folder` is the model's, of which only the name is shown."""
    METHODS["plays"] = Entry(f"{Plays.__module__}:{Plays.__name__}", "plays a role", "")
    files = (decode("story.txt", STORY.encode()),)
    session = Played([ord(c) for c in STORY], answers)
    book = Book(Letters(), files, "", session.document)
    times = {"load": 0.1, "tokenize": 0.1, "prefill": 0.1}
    chat = Chat(Options(), Model("played", folder), session, Plays(), Settings(), book, Nothing(),
                times)  # fmt: skip
    screen = Screen(verbose=True)
    return Context(chat, screen, Keeper(screen, saved.new_path()))


def main(folder: str, answers: str, *typed: str) -> int:
    """Type lines into a chat, then Ctrl-D; `answers` are separated by `|`."""
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        lines.create_input = lambda **_: keys  # type: ignore[assignment]
        keys.send_text("".join(f"{line}\r" for line in typed) + "\x04")
        code = repl.begun(played(Path(folder), answers.split("|")))
    assert sys.modules["torch"] is None, "nothing has imported it"
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
