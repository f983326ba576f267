"""Another method in the middle of a conversation: document and turns are read again."""

import pytest
import torch

from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from tests.engine.scripted import ask, new_session
from tests.engine.tiny import read


@pytest.fixture
def session(chat_folder):
    """Two turns have been talked."""
    session = new_session(chat_folder("byte-level", "chatml"))
    for question in ("What?", "And at night?"):
        ask(session, question, max_tokens=6)
    return session


def test_the_same_method_changes_nothing(session, chat_folder):
    other = new_session(chat_folder("byte-level", "chatml"))
    for question in ("What?", "And at night?"):
        ask(other, question, max_tokens=6)
    position, turns = session.cache.position, list(session.turns)
    drain(session.recompress(parse_method("full")))
    assert session.cache.position == position and session.turns == turns
    assert ask(session, "Why?", max_tokens=8).answer == ask(other, "Why?", max_tokens=8).answer


def test_another_method_compresses_the_document_and_keeps_the_turns(session):
    method, document = parse_method("adakv:budget=40%"), session.document
    talk = session.engine.tokens_in(session.cache)[len(document) :]
    drain(session.recompress(method))
    for layer in session.cache.layers:
        assert sum(layer.segments[0].lengths) == round(0.4 * 2 * len(document))
        assert layer.tail.length == len(talk)
    assert len(session.turns) == 2

    done = ask(session, "Why?", max_tokens=6)
    fed = session.engine.tokens_in(session.cache)[len(document) :]
    assert fed[: len(talk)] == talk
    cache, _ = read(session.engine, document, method)
    logits = drain(session.engine.extend(cache, fed[: len(talk) + done.prompt_tokens]))
    tokens = session.engine.decode(cache, logits, Sampling())
    answer = [next(tokens) for _ in range(6)]
    assert answer[:-1] == fed[len(talk) + done.prompt_tokens :]


def test_a_change_that_is_given_up_leaves_the_session_as_it_was(session):
    cache, position = session.cache, session.cache.position
    keys = [layer.tail.keys.clone() for layer in cache.layers]
    for stop in (1, 2, 3):
        work = session.recompress(parse_method("adakv"))
        for _ in range(stop):
            next(work)
        work.close()
        assert session.cache is cache and cache.position == position
        assert all(
            torch.equal(layer.tail.keys, k) for layer, k in zip(cache.layers, keys, strict=True)
        )


def test_clear_after_a_change_keeps_the_new_reading(session, chat_folder):
    method = parse_method("adakv:budget=40%")
    drain(session.recompress(method))
    session.clear()
    fresh = new_session(chat_folder("byte-level", "chatml"))
    drain(fresh.prefill(fresh.document, method))
    assert ask(session, "What?", max_tokens=8).answer == ask(fresh, "What?", max_tokens=8).answer


def test_a_chat_without_a_document_is_read_again_too(chat_folder):
    sessions = [new_session(chat_folder("byte-level", "chatml")) for _ in range(2)]
    for each in sessions:
        drain(each.prefill([], parse_method("full")))
        ask(each, "What?", max_tokens=4)
    drain(sessions[0].recompress(parse_method("adakv")))
    assert sessions[0].cache.position == sessions[1].cache.position
    answers = [ask(each, "And?", max_tokens=6).answer for each in sessions]
    assert answers[0] == answers[1]
