"""Other documents or another system text for a chat: composed, planned, read, with its turns."""

from collections.abc import Sequence

from kvchat.chat.chat import Chat
from kvchat.chat.open import chosen_method
from kvchat.chat.prefill import read_again
from kvchat.documents import Document
from kvchat.documents.document_ids import Book, compose
from kvchat.engine.events import drain
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import name_of
from kvchat.hub.find import longer_windows
from kvchat.machine.loaded import workload
from kvchat.machine.plan import make_plan
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import size


def attach(chat: Chat, screen: Screen, added: Sequence[Document]) -> bool:
    """Read documents together with those that are there. False if the person would rather not."""
    for each in added:
        for notice in each.notices:
            screen.warn(notice)
    book = recompose(chat, screen, (*chat.book.files, *added), chat.book.system)
    method = chat.method if chat.book.files else first_method(chat, screen)
    announce(chat, screen, book, method)
    return read_again(chat, screen, method, book, chat.chosen_for)


def leave_out(chat: Chat, screen: Screen, number: int) -> bool:
    """Read what is left without document `number`. False if the person would rather not."""
    left = (*chat.book.files[:number], *chat.book.files[number + 1 :])
    book = recompose(chat, screen, left, chat.book.system)
    method, questions = (chat.method, chat.chosen_for) if left else (Full(), [])
    return read_again(chat, screen, method, book, questions)


def instruct(chat: Chat, screen: Screen, system: str) -> bool:
    """Read again with another system text. False if the person would rather not."""
    book = recompose(chat, screen, chat.book.files, system)
    return read_again(chat, screen, book=book, questions=chat.chosen_for)


def forget(chat: Chat) -> None:
    """A chat without document, system text and turns."""
    session = chat.session
    book = compose(session.dialogue.tokenizer, (), "", session.limit)
    session.dialogue = book.dialogue
    drain(session.prefill(book.ids, Full(), session.method))
    chat.book, chat.method, chat.in_view, chat.last = book, Full(), "", None
    chat.restored = None


def recompose(chat: Chat, screen: Screen, files: Sequence[Document], system: str) -> Book:
    """The book of other files or another system text, for the same model."""
    session = chat.session
    tokenizer, limit = session.dialogue.tokenizer, session.limit
    talk = sum(len(turn.ids) for turn in session.turns)
    book = compose(tokenizer, files, system, limit - talk, chat.options.overflow, longer_windows)
    if book.cut:
        screen.warn(f"{book.title}: {book.cut}")
    return book


def first_method(chat: Chat, screen: Screen) -> Method:
    """The method that the options ask for, for the first document of a chat."""
    method = chosen_method(chat.options)
    if chat.options.auto_loss is not None:
        held = f"budget {method.budget}"
        screen.warn(f"--auto-loss chooses when a chat starts with a document: {held}")
    return method


def announce(chat: Chat, screen: Screen, book: Book, method: Method) -> None:
    """The plan of a reading, in a line."""
    engine, limit = chat.session.engine, chat.session.limit
    tokens = len(book.ids)
    plan = make_plan(workload(engine, method, tokens, limit))
    screen.tell(
        f"{tokens:,} tokens · {tokens / limit:.0%} of the {limit:,} window · plan: KV "
        f"{size(plan.kv_full)} in full → {size(plan.kv_kept)} with {name_of(method)}"
    )
