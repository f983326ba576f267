"""Sessions over a tiny model, with a log of the tokens that the cache really holds: one answers by
itself, the other says what is written down beforehand."""

from pathlib import Path

from kvchat.engine.engine import Engine
from kvchat.engine.events import Delta, TurnDone, drain
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.simple import Full
from kvchat.engine.prefill.archive_writer import Archiving
from kvchat.engine.session import Session
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.tokenizer import Tokenizer
from tests.engine.tiny import load_engine

BOOK = "The keeper counted ships. At night he counted the stars above the sea."


class LoggedEngine(Engine):
    """An engine that writes down which tokens its one cache holds."""

    def __init__(self, engine: Engine):
        super().__init__(engine.model)
        self.chunk = engine.chunk
        vars(self)["gate"], vars(self)["features"] = engine.gate, engine.features
        self.log: list[int] = []

    def prefill(self, ids, *rest, **more):
        self.log = list(ids)
        return (yield from super().prefill(ids, *rest, **more))

    def extend_choosing(self, cache, ids, method):
        position = cache.position
        result = yield from super().extend_choosing(cache, ids, method)
        self.log = self.log[:position] + list(ids)
        return result

    def extend(self, cache, ids):
        position = cache.position
        result = yield from super().extend(cache, ids)
        self.log = self.log[:position] + list(ids)
        return result

    def append(self, cache, ids, *rest):
        position = cache.position
        result = yield from super().append(cache, ids, *rest)
        self.log = self.log[:position] + list(ids)
        return result

    def decode(self, cache, logits, sampling, drawn=(), constraint=None):
        fed: list[int] = []
        for token in super().decode(cache, logits, sampling, drawn, constraint):
            self.log = self.log[: cache.position - len(fed)] + fed
            yield token
            fed.append(token)

    def tokens_in(self, cache) -> list[int]:
        """What the cache holds."""
        return self.log[: cache.position]


class ScriptedEngine(LoggedEngine):
    """The tokens of its answers come from `script`; they are fed to the cache as usual.

    Where the script ends there are `spare` tokens."""

    script: list[int]
    spare: int | None = None

    def decode(self, cache, logits, sampling, drawn=(), constraint=None):
        while True:
            token = self.script.pop(0) if self.script or self.spare is None else self.spare
            yield token
            drain(self.extend(cache, [token]))


def new_session(
    folder: Path,
    limit: int = 0,
    book: str = BOOK,
    chunk: int = 2048,
    method: Method | None = None,
    archiving: Archiving | None = None,
    kind: type[LoggedEngine] = LoggedEngine,
    **options,
) -> Session:
    """A session over a book, read in full or compressed; answers of a `ScriptedEngine` are set
    with `say`."""
    engine = kind(load_engine(folder, chunk=chunk))
    session = Session(engine, Dialogue(Tokenizer.load(folder)), (), limit, **options)
    document = session.dialogue.document(book)
    drain(session.prefill(document, method or Full(), archiving=archiving))
    return session


def scripted_session(folder: Path) -> Session:
    """A session whose answers are set with `say`."""
    return new_session(folder, kind=ScriptedEngine)


def tokens_in(session: Session) -> list[int]:
    """What the cache of a session holds."""
    return session.engine.tokens_in(session.cache)


def say(session: Session, text: str, *specials: str) -> list[int]:
    """Let the next answer be `text`, a token per character, followed by special tokens."""
    tokenizer = session.dialogue.tokenizer
    ids = [i for c in text for i in tokenizer.encode([(c, False)], continues=True)]
    ids += [tokenizer.specials[name] for name in specials]
    session.engine.script = list(ids)
    return ids


def talk(session: Session, *questions: str, max_tokens: int = 6) -> Session:
    """The session after some turns."""
    for question in questions:
        ask(session, question, max_tokens=max_tokens)
    return session


def ask(session: Session, question: str, **options) -> TurnDone:
    """The end of a turn; the deltas before it must add up to its answer."""
    events = list(session.ask(question, **options))
    assert isinstance(events[-1], TurnDone)
    assert "".join(e.text for e in events if isinstance(e, Delta)) == events[-1].answer
    return events[-1]
