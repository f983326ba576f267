"""A chat without a terminal: a tiny model whose answers are written down beforehand, and a screen
that is a string."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from kvchat.chat.chat import Chat
from kvchat.chat.chatlog import new_path
from kvchat.chat.chatlog_writer import Keeper
from kvchat.chat.open import open_chat
from kvchat.chat.prepare import prepare
from kvchat.documents import decode
from kvchat.documents.document_ids import compose
from kvchat.engine.events import drain
from kvchat.engine.methods.full import Full
from kvchat.engine.methods.spec import parse_method
from kvchat.engine.session import Session
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.errors import KvchatError
from kvchat.hub.find import Model
from kvchat.prompt_cache.documents import PromptCache
from kvchat.repl import commands
from kvchat.repl.commands import Context, run
from kvchat.settings.options import Options
from kvchat.terminal.screen import Screen
from tests.engine.scripted import ScriptedEngine, say
from tests.engine.tiny import load_engine

STORY = "The keeper counted ships. At night he counted the stars above the sea. " * 6


def string_screen(width: int = 80, terminal: bool = False) -> Screen:
    """A screen whose both streams end up in one string; `shown` reads it."""
    screen = Screen(verbose=True)
    target = io.StringIO()
    screen.err = screen.out = Console(
        file=target,
        width=width,
        force_terminal=terminal,
        color_system=None,
        highlight=False,
        markup=False,
    )
    screen.live, screen.glyphs = False, True
    return screen


def shown(screen: Screen) -> str:
    """What was written since the last call."""
    target = screen.err.file
    assert isinstance(target, io.StringIO)
    text = target.getvalue()
    target.seek(0)
    target.truncate()
    return text


class Scene:
    """A context with the ways to use it."""

    def __init__(self, folder: Path, story: str = STORY, width: int = 80, **options):
        engine = ScriptedEngine(load_engine(folder))
        engine.script = []
        tokenizer = Tokenizer.load(folder)
        files = [decode("story.txt", story.encode())] if story else []
        book = compose(tokenizer, files, "", engine.config.context_limit)
        session = Session(engine, book.dialogue)
        method = parse_method("adakv:budget=50%,window=8") if story else Full()
        drain(session.prefill(book.ids, method))
        engine.spare = tokenizer.specials["<|im_end|>"]
        self.options = Options(method="adakv", **options)
        model = Model("tiny", folder)
        timings = {"load": 0.1, "tokenize": 0.1, "prefill": 0.1}
        screen = string_screen(width)
        readings = PromptCache(screen, engine, model, self.options.prompt_cache)
        chat = Chat(self.options, model, session, method, book, readings, screen, timings)
        self.context = Context(chat, screen, Keeper(screen, new_path()))

    @property
    def chat(self) -> Chat:
        """The chat."""
        return self.context.chat

    @property
    def turns(self) -> list[tuple[str, str]]:
        """Questions and answers."""
        return [(turn.question, turn.answer) for turn in self.chat.session.turns]

    def kept(self) -> list[list[int]]:
        """The places of what every segment keeps."""
        return [s.position.tolist() for s in self.chat.session.cache.segments()]

    def script(self, answer: str) -> None:
        """Let the next answer be this text."""
        say(self.chat.session, answer, "<|im_end|>")

    def ask(self, question: str, answer: str = "Ships.") -> None:
        """A turn, written down as in the chat."""
        self.script(answer)
        commands.answer(self.context, question)

    def run(self, line: str) -> str:
        """Run a command and return what it showed."""
        shown(self.context.screen)
        run(line, self.context)
        return shown(self.context.screen)

    def code(self, line: str) -> str:
        """The code of the error that a command raises."""
        with pytest.raises(KvchatError) as caught:
            self.run(line)
        return caught.value.code


class Place:
    """A model, a document and a folder for readings; `opened` is a start of the program, a chat
    over them, and `run` a command in it."""

    def __init__(self, folder: Path, tmp_path: Path, **usual):
        self.folder, self.root, self.usual = folder, tmp_path / "kv", usual
        self.story = tmp_path / "story.txt"
        self.story.write_text(STORY)
        self.screen = string_screen()

    def options(self, **values) -> Options:
        """What is usual here, and what is asked for."""
        place = {"model": str(self.folder), "files": [str(self.story)], "save": False}
        place |= {"prompt_cache": "on", "prompt_cache_dir": str(self.root)}
        return Options(**place | self.usual | values)

    def opened(self, **values) -> Chat:
        """A new chat; what it saves is on disk."""
        shown(self.screen)
        self.chat = open_chat(prepare(self.options(**values), self.screen), self.screen)
        with self.chat.cache:
            pass
        self.context = Context(self.chat, self.screen, Keeper(self.screen, None))
        return self.chat

    def run(self, line: str) -> str:
        """Run a command and return what it showed, in one line."""
        self.shown()
        run(line, self.context)
        return " ".join(self.shown().split())

    def files(self) -> list[Path]:
        """What was saved."""
        return sorted(self.root.glob("*.safetensors"))

    def shown(self) -> str:
        """What was written since the last call."""
        return shown(self.screen)
