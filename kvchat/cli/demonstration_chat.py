"""Second act of `kvchat demo`: a small chat model reads prose, with a full cache and by default."""

import re
from dataclasses import dataclass, field
from time import perf_counter

from rich.padding import Padding
from rich.text import Text

from kvchat.chat.chat import Chat
from kvchat.chat.open import open_chat
from kvchat.chat.prepare import prepare
from kvchat.cli.demonstration import asked, sample
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.events import TurnDone
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import name_of
from kvchat.engine.prefill.prefill import Compression
from kvchat.errors import KvchatError
from kvchat.hub.find import find_model
from kvchat.settings.options import Options
from kvchat.terminal.colours import ERROR
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean, size

MODEL = "smollm2-135m"
SAMPLE = "skerry"


@dataclass
class Column:
    """One cache of the document: what it holds in bytes, what it took, and its answers."""

    name: str
    what: str
    cache: KVCache
    seconds: float  # of the prefill
    held: int = 0
    right: int = 0
    answers: list[TurnDone] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.held = self.cache.memory().total  # before questions make room for themselves

    @property
    def speed(self) -> float:
        """Decoded tokens per second, of all answers."""
        tokens = sum(max(done.completion_tokens - 1, 0) for done in self.answers)
        return tokens / max(sum(done.decode_seconds for done in self.answers), 1e-6)


def run(threads: int | None, weights: str = "auto") -> int:
    """Read, compress, ask, mark. Exit code 0: also where the model is not on this machine."""
    screen = Screen(plain=False, verbose=True)
    try:
        find_model(MODEL)
    except KvchatError:
        screen.tell(
            f"no second act: {MODEL} is not on this machine "
            f"(`make model`, or `kvchat models pull {MODEL}`)"
        )
        return 0
    document, pairs = sample(SAMPLE)
    options = Options(
        model=MODEL, files=[str(document)], threads=threads, weights=weights, prompt_cache="off",
        budget="25%",
    )  # fmt: skip
    chat = open_chat(prepare(options, screen), screen)
    what = f"{name_of(chat.method)} {chat.method.budget}"
    compressed = Column(name_of(chat.method), what, chat.session.cache, chat.timings["prefill"])
    screen.say("for comparison one more prefill, with the full cache")
    columns = [whole(chat, screen), compressed]

    screen.out.print(Text("".join(f"{each.name:<9}" for each in columns) + "question", "bold"))
    for pair in pairs:
        ask(chat, pair["question"], pair["answer"], columns, screen)
    screen.out.print(Text(f"{'':<13}{'right':<9}{'KV':<13}{'prefill':<23}decode", "bold"))
    for each in columns:
        screen.out.print(Text(summary(each, len(pairs), len(chat.session.document))))
    return 0


def whole(chat: Chat, screen: Screen) -> Column:
    """One more prefill of the document, of which everything is kept."""
    session, begin = chat.session, perf_counter()
    work = session.read(session.document, [Compression(Full())], [])
    tokens = len(session.document)
    (cache,) = screen.watch(work, "prefill", tokens).caches
    return Column("full", "full cache", cache, perf_counter() - begin)


def is_right(text: str, answer: str) -> bool:
    """Whether an answer has the wanted words or number in it, and not as part of a longer one."""
    pattern = rf"(?<![\w.,]){re.escape(answer)}(?!\w|[.,]\d)"
    return re.search(pattern, text, re.IGNORECASE) is not None


def ask(chat: Chat, question: str, answer: str, columns: list[Column], screen: Screen) -> None:
    """Ask over each cache; a mark for each, the question, and below it what each answered."""
    line, told = Text(), []
    for each in columns:
        done = asked(chat, question, each.cache)
        each.answers.append(done)
        good = is_right(done.answer, answer)
        each.right += good
        line.append(f"{'right' if good else 'WRONG':<9}", style="" if good else ERROR)
        told.append(Text(f"{each.name}: {clean(' '.join(done.answer.split()))}", style="dim"))
    screen.out.print(line.append(f"{clean(question)} ({answer})"))
    for text in told:
        screen.out.print(Padding(text, (0, 0, 0, 9 * len(columns))))


def summary(column: Column, questions: int, tokens: int) -> str:
    """Right answers, memory and speed in one line."""
    right = f"{column.right} of {questions}"
    prefill = f"{column.seconds:.1f} s ({tokens / column.seconds:,.0f} tok/s)"
    return (
        f"{column.what:<13}{right:<9}{size(column.held):<13}{prefill:<23}{column.speed:,.0f} tok/s"
    )
