"""What goes on from one turn to the next: the random stream, and what a compression observes."""

from dataclasses import replace

import pytest

from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.prefill.observation import Observation
from tests.engine.scripted import ask, new_session

WARM = Sampling(temperature=1.0, repeat_penalty=1.3, seed=5)


@pytest.fixture
def folder(chat_folder):
    return chat_folder("byte-level", "chatml")


def test_an_answer_in_two_parts_is_that_of_one(folder):
    """/more goes on with the random stream and with the penalty of what was drawn before."""
    whole, parts = new_session(folder), new_session(folder)
    for session in (whole, parts):
        session.ends = set()
    ask(whole, "What?", sampling=WARM, max_tokens=16)
    ask(parts, "What?", sampling=WARM, max_tokens=8)
    drain(parts.more(WARM, 8))
    assert parts.turns[-1].tokens == whole.turns[-1].tokens


def test_a_second_question_does_not_begin_the_stream_anew(folder):
    """The same question twice over the same cache draws other tokens the second time."""
    session = new_session(folder)
    session.ends = set()
    ask(session, "What?", sampling=replace(WARM, repeat_penalty=1.0), max_tokens=12)
    first = session.turns[0]
    drain(session.recompress(parse_method("full")))
    session.turns = []
    session.cache.truncate(len(session.document))
    fresh = new_session(folder)
    fresh.ends = set()
    ask(fresh, "What?", sampling=replace(WARM, repeat_penalty=1.0), max_tokens=12)
    assert fresh.turns[0].tokens == first.tokens, "a new chat begins with the seed"
    ask(fresh, "What?", sampling=replace(WARM, repeat_penalty=1.0), max_tokens=12)
    assert fresh.turns[1].tokens != first.tokens


def test_a_cancelled_question_leaves_no_trace_in_the_observer(folder):
    """Where layers observe queries, those of a cancelled question are forgotten."""
    session = new_session(folder, chunk=16)
    session.tail_budget = 64
    drain(session.recompress(parse_method("adakv:window=4")))
    ask(session, "And now?", max_tokens=3)

    def observed():
        observers = [layer.observer for layer in session.cache.layers]
        assert all(isinstance(each, Observation) for each in observers)
        return session.cache.position, [each.end for each in observers]

    before = observed()
    presses = iter([False, True])
    done = ask(session, "x " * 40, cancelled=lambda: next(presses, True))
    assert done.finish_reason == "cancelled" and not done.completion_tokens
    assert observed() == before
