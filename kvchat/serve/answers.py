"""From what a client asks to its answer: the document it is about, tokens, a place in the batch."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any

from kvchat.chat.chat import Chat
from kvchat.chat.citing import reported
from kvchat.documents import Document
from kvchat.documents.document_ids import PROBE, compose
from kvchat.engine.cache.kv_cache import KVCache
from kvchat.engine.decode.sampler import Constraint
from kvchat.engine.decode.sampling import Leaning
from kvchat.engine.sizes import MAX_TOKENS
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.grammar import Forms
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.errors import KvchatError
from kvchat.serve.asker import Asker, Ended, Event, Wanted
from kvchat.serve.citing import Cites
from kvchat.serve.document import Served
from kvchat.serve.forms import FormRoom
from kvchat.serve.library import Library
from kvchat.serve.refusals import Refusal
from kvchat.serve.requests import Asked
from kvchat.serve.scheduler import Scheduler

CHARACTERS = 3  # of a token, at least, in a message that may be long
GROWTH = 1.3  # of a tail that is preallocated, and 256 entries more


@dataclass
class Talk:
    """A request on its way: events come through `events`, with the number of the choice they are
    of; the last one of each is Ended or Failed."""

    asked: Asked
    model: str
    served: Served | None
    cached: int = 0  # tokens of the document that were read before
    prompt_tokens: int = 0
    askers: list[Asker] = field(default_factory=list)
    events: "asyncio.Queue[tuple[int, Event]]" = field(default_factory=asyncio.Queue)
    created: int = field(default_factory=lambda: int(time.time()))
    since: float = field(default_factory=perf_counter)


class Answers:
    """Answers to requests. Lives on the event loop."""

    def __init__(
        self, chat: Chat, library: Library, scheduler: Scheduler, tokenizer: Tokenizer, long: int
    ):
        """`tokenizer` is one of the engine's thread alone; first messages of `long` tokens are
        documents."""
        self.chat, self.library, self.scheduler = chat, library, scheduler
        self.tokenizer, self.long = tokenizer, long
        self.engine = chat.session.engine
        self.forms = FormRoom(self._make_forms)

    @property
    def model(self) -> str:
        """The name of the model that knows no document."""
        return self.chat.model.name

    def begin(self, asked: Asked) -> Talk:
        """Which document a request is about. Raises Refusal if there is no such model."""
        served = None
        if asked.file is not None:
            served = self.library.documents.get(asked.file)
            if served is None:
                raise Refusal(404, f"no file {asked.file[:80]!r}", "messages", "file_not_found")
        elif asked.model not in ("", self.model, "default"):
            served = self.library.named(asked.model)
            if served is None:
                there = ", ".join([self.model, *(each.name for each in self.library.listed)][:20])
                raise Refusal(
                    404, f"no model {asked.model[:80]!r}; there are {there}", "model",
                    "model_not_found",
                )  # fmt: skip
        if served is None and asked.is_chat:
            asked, served = self._long(asked)
        if served is not None and not asked.is_chat:
            raise Refusal(400, "a document answers at /v1/chat/completions", "model")
        if served is not None:
            served.users += 1
        return Talk(asked, served.name if served and served.listed else self.model, served)

    def _long(self, asked: Asked) -> tuple[Asked, Served | None]:
        """A long first message (or system prompt) as a document, and what is left of it."""
        least = self.long * CHARACTERS
        if not self.long:
            return asked, None
        if len(asked.system) >= least:
            document = Document(
                "system prompt", asked.system, size=len(asked.system), encoding="utf-8"
            )
            return replaced(asked, system=""), self.library.add(document, listed=False)
        first = asked.turns[0][0] if asked.turns else asked.question
        text, cut, rest = first.rpartition("\n\n")
        if not cut or len(text) < least or not rest.strip():
            return asked, None
        document = _sent("message", text)
        served = self.library.add(document, listed=False)
        if not asked.turns:
            return replaced(asked, question=rest), served
        turns = ((rest, asked.turns[0][1]), *asked.turns[1:])
        return replaced(asked, turns=turns), served

    async def start(self, talk: Talk) -> None:
        """Have the document read, if it is not, and let the question wait for its turn.

        Raises Refusal or KvchatError.
        """
        served, asked = talk.served, talk.asked
        if served is not None:
            was_there = served.cache is not None
            await self.library.ready(served)
            talk.cached = served.tokens if was_there or served.restored else 0
        forms = await self.forms.made(asked)
        work = partial(self._wanted, asked, served, forms)
        every, dialogue = await self.library.tokenise(work)
        before = served.tokens if served is not None else 0
        talk.prompt_tokens = before + len(every[0].ids)
        loop = asyncio.get_running_loop()

        def tell(number: int, event: Event) -> None:
            loop.call_soon_threadsafe(talk.events.put_nowait, (number, event))

        def opened() -> KVCache:
            if served is None:
                return self.engine.empty_cache()
            if served.cache is None:
                raise Refusal(503, "the document has left the memory", after=5)
            return served.cache.fork()

        for number, wanted in enumerate(every):
            planned = self._planned(served, len(wanted.ids) + wanted.max_tokens)
            own = partial(tell, number)
            talk.askers.append(Asker(wanted, opened, dialogue, self.tokenizer, own, planned))
            self.scheduler.ask(talk.askers[-1])

    def leave(self, talk: Talk) -> None:
        """The end of a request, whatever it was: its place is free before the next token."""
        for asker in talk.askers:
            asker.gone.set()
        if talk.askers:
            self.scheduler.wake()
        if talk.served is not None:
            talk.served.users -= 1
            talk.served = None

    def _planned(self, served: Served | None, tokens: int) -> int:
        live = 0
        if served is not None and served.cache is not None:
            live = sum(layer.tail.length for layer in served.cache.layers[:1])
        return self.engine.kv_bytes(int(GROWTH * (tokens + live)) + 256)

    def _wanted(
        self, asked: Asked, served: Served | None, forms: Sequence[Constraint | None]
    ) -> tuple[list[Wanted], Dialogue]:
        """Tokens of a question and what comes before it, for each of the choices; on the thread of
        texts."""
        session, options = self.chat.session, self.chat.options
        if asked.form is not None or asked.grammar is not None:
            asked = replaced(asked, thinks=False)  # a thought has another form
        tokenizer, limit = session.dialogue.tokenizer, session.limit
        require_short(asked, limit)
        before = 0
        if served is not None and served.book is not None:
            dialogue, before = served.book.dialogue, served.tokens - served.book.saved
            ids = self._behind(dialogue, asked)
        elif asked.is_chat:
            book = compose(tokenizer, (), asked.system, limit, thinks=asked.thinks)
            dialogue = book.dialogue
            ids = [*book.ids, *dialogue.conversation(asked.turns, asked.question, asked.thinks)]
        else:
            dialogue = Dialogue(tokenizer, has_document=False)
            ids = [*tokenizer.bos, *tokenizer.encode([(asked.question, False)])]
        room = limit - before - len(ids)
        if room < 1:
            raise KvchatError(
                "too_long",
                f"document, conversation and question need {before + len(ids):,} tokens and one "
                f"for the answer; the context window has {limit:,}",
                needed=before + len(ids) + 1,
                limit=limit,
            )
        usual = asked.max_tokens or options.max_tokens or MAX_TOKENS
        sampling = asked.sampling(options.sampling)
        self._require_known(asked.leaning)
        wanted = Wanted(
            ids=ids,
            sampling=sampling,
            max_tokens=min(room, usual),
            ends=frozenset() if asked.ignore_eos else frozenset(session.ends),
            stop=asked.stop,
            thinks=asked.thinks,
            logprobs=asked.logprobs,
            constraint=forms[0],
            cites=self._cites(asked, served, len(ids)),
            leaning=asked.leaning,
        )
        others = [
            replace(
                wanted,
                sampling=replace(sampling, seed=(sampling.seed + number) % 2**63),
                constraint=form,
            )
            for number, form in enumerate(forms[1:], 1)
        ]
        return [wanted, *others], dialogue

    def _require_known(self, leaning: Leaning | None) -> None:
        vocabulary = self.engine.config.vocab_size
        for token in leaning.bias if leaning is not None else ():
            if token >= vocabulary:
                raise Refusal(
                    400, f"logit_bias: there are {vocabulary:,} tokens, no {token:,}", "logit_bias"
                )

    def _behind(self, dialogue: Dialogue, asked: Asked) -> list[int]:
        """A conversation behind a document: the client's system prompt goes before its first
        question, for the document has been read by then."""
        turns, question = list(asked.turns), asked.question
        if asked.system and turns:
            turns[0] = f"{asked.system}\n\n{turns[0][0]}", turns[0][1]
        elif asked.system:
            question = f"{asked.system}\n\n{question}"
        return dialogue.conversation(turns, question, asked.thinks)

    @staticmethod
    def _cites(asked: Asked, served: Served | None, fed: int) -> Cites | None:
        if not asked.sources or served is None or served.book is None:
            return None
        book = served.book
        last = len(book.dialogue.following(asked.question)) if asked.turns else fed
        return Cites(book.ids, served.counts, fed - last)

    async def sources(self, talk: Talk, ended: Ended) -> list[dict[str, Any]] | None:
        """Where in its document an answer is from, as `--json` has it; None: nobody asks."""
        if not talk.asked.sources:
            return None
        if talk.served is None or talk.served.book is None or not ended.weights:
            return []
        book, served = talk.served.book, talk.served
        found = await self.library.tokenise(partial(book.sources, ended.weights))
        about = {"document": served.document.title, "file_id": served.id}  # no path
        return [each | about for each in reported(found)]

    def _make_forms(self) -> Forms:
        session = self.chat.session
        vocabulary = self.engine.config.vocab_size
        return Forms(session.dialogue.tokenizer, vocabulary, session.ends)


def require_short(asked: Asked, limit: int) -> None:
    """Raise KvchatError("too_long") for a text that no tokenizer makes fit. It is not tokenised:
    others wait for that."""
    said = sum(len(text) for turn in asked.turns for text in turn)
    characters = said + len(asked.system) + len(asked.question)
    if characters > PROBE * limit:
        raise KvchatError(
            "too_long",
            f"the messages have {characters:,} characters; the context window has {limit:,} tokens",
            limit=limit,
        )


def _sent(title: str, text: str) -> Document:
    return Document(title, text, size=len(text.encode()), encoding="utf-8")


def replaced(asked: Asked, **changes: object) -> Asked:
    """The same with other values."""
    return Asked(**(vars(asked) | changes))
