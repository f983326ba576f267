"""The parts of a chat as what they really are, for whatever reads with them."""

from typing import NamedTuple

from kvchat.chat.chat import Chat
from kvchat.engine.methods.base import Method
from kvchat.engine.session import Session
from kvchat.prompt_cache.saved_documents import Readings


class Whole(NamedTuple):
    """What a reading needs of a chat."""

    session: Session
    method: Method
    readings: Readings


def whole(chat: Chat) -> Whole:
    """The parts of a chat that can read: those of a chat that only plays a role cannot."""
    session, method, readings = chat.session, chat.method, chat.readings
    assert isinstance(session, Session) and isinstance(method, Method)
    assert isinstance(readings, Readings)
    return Whole(session, method, readings)
