"""Conversations longer than the context window: the oldest turns go, and the chat goes on."""

import pytest

from kvchat.engine.context_window import tokens_of
from kvchat.engine.events import Forgotten, TurnDone, drain
from kvchat.engine.methods.build import parse_method
from kvchat.errors import KvchatError
from tests.engine.scripted import new_session, tokens_in
from tests.engine.test_thoughts import session_of, thinks

ADAKV = parse_method("adakv:budget=40%")
ROOM = 240  # tokens behind the document


def small(folder, **options):
    """A session whose window is full after a few turns."""
    limit = len(new_session(folder).document) + ROOM
    return new_session(folder, limit=limit, **options)


def asked(session, question, **options):
    """What was said of dropped turns, and the end of the turn."""
    events = list(session.ask(question, **options))
    assert isinstance(events[-1], TurnDone)
    return [e for e in events if isinstance(e, Forgotten)], events[-1]


def until_full(session, most=30):
    """Ask until turns are dropped. What was said then, and how many questions were asked."""
    for number in range(1, most):
        gone, _ = asked(session, f"What of {number}?", max_tokens=12)
        if gone:
            return gone, number
    raise AssertionError("the window never was full")


@pytest.mark.parametrize("options", [{}, {"method": ADAKV}, {"method": ADAKV, "tail_budget": 80}])
def test_the_oldest_turns_go_and_the_rest_is_as_if_they_had_never_been(folder, options):
    session = small(folder, **options)
    [gone], number = until_full(session)
    assert gone.turns == len(session.forgotten) and gone.tokens == tokens_of(session.forgotten)
    assert 0 < gone.turns < number
    assert [turn.question for turn in session.all_turns] == [
        f"What of {n}?" for n in range(1, number + 1)
    ]
    assert session.turns[0].ids[: session.turns[0].asked] == tuple(
        session.dialogue.first(session.turns[0].question)
    )
    held = session.document + [i for turn in session.turns for i in turn.ids]
    assert tokens_in(session) == held and session.cache.position == len(held) <= session.limit
    other = small(folder, **options)
    drain(other.restore(session.turns))
    assert tokens_in(other) == held
    if "tail_budget" not in options:  # where turns were compressed, when counts
        assert (
            asked(session, "So?", max_tokens=6)[1].answer
            == asked(other, "So?", max_tokens=6)[1].answer
        )


def test_not_every_question_drops_turns_once_the_window_is_full(folder):
    session = small(folder)
    until_full(session)
    said = [bool(asked(session, f"And {n}?", max_tokens=4)[0]) for n in range(12)]
    assert 1 <= sum(said) <= 4


def test_a_long_chat_never_ends(folder):
    session = small(folder)
    for number in range(40):
        done = asked(session, f"{number}?", max_tokens=5)[1]
        assert done.completion_tokens == 5 and session.cache.position <= session.limit
    assert len(session.all_turns) == 40
    session.clear()
    assert session.all_turns == [] and session.cache.position == len(session.document)


def test_a_question_that_was_given_up_while_turns_are_fed_again_has_changed_nothing(folder):
    session, other = small(folder), small(folder)
    _, number = until_full(session)
    for n in range(1, number):
        asked(other, f"What of {n}?", max_tokens=12)
    turns, forgotten = list(other.turns), list(other.forgotten)
    work = other.ask(f"What of {number}?", max_tokens=12)
    assert isinstance(next(work), Forgotten)
    next(work)  # a layer of the turns that stay
    work.close()
    assert (other.turns, other.forgotten) == (turns, forgotten)
    presses = iter([False, True])
    *_, done = other.ask(f"What of {number}?", cancelled=lambda: next(presses))
    assert (done.finish_reason, done.completion_tokens) == ("cancelled", 0)
    assert (other.turns, other.forgotten) == (turns, forgotten)
    asked(other, f"What of {number}?", max_tokens=12)
    assert tokens_in(other) == tokens_in(session) and other.turns == session.turns


def test_undo_after_a_question_that_was_given_up_feeds_what_stays(folder):
    session, other = small(folder), small(folder)
    _, number = until_full(session)
    for n in range(1, number):
        asked(other, f"What of {n}?", max_tokens=12)
    wanted = tokens_in(other)[: -len(other.turns[-1].ids)]
    work = other.ask(f"What of {number}?", max_tokens=12)
    next(work), next(work)
    work.close()
    other.undo(1)
    assert tokens_in(other) == wanted


def test_an_answer_cut_by_the_window_goes_on_without_the_oldest_turns(folder):
    session = small(folder)
    asked(session, "What?", max_tokens=100)
    room = session.limit - session.cache.position
    _, done = asked(session, "And?", max_tokens=room)
    assert done.finish_reason == "window" and not session.forgotten
    events = list(session.more(max_tokens=20))
    assert isinstance(events[0], Forgotten) and len(session.forgotten) == 1
    assert events[-1].completion_tokens == 20
    assert events[-1].answer.startswith(done.answer)
    [turn] = session.turns
    assert tokens_in(session) == [*session.document, *turn.ids]


def test_an_answer_that_alone_fills_the_window_cannot_go_on(folder):
    session = small(folder)
    assert asked(session, "What?", max_tokens=1000)[1].finish_reason == "window"
    with pytest.raises(KvchatError) as caught:
        list(session.more())
    assert caught.value.code == "too_long" and len(session.turns) == 1


@pytest.mark.parametrize("fewer", [0, 1, 100])
def test_a_full_chat_that_was_saved_opens_again(folder, fewer):
    session = small(folder)
    until_full(session)
    asked(session, "What?", max_tokens=1000)
    saved = session.all_turns
    other = small(folder)
    other.limit -= fewer
    drain(other.restore(saved))
    assert other.all_turns[-1].question == saved[-1].question
    assert len(other.all_turns) == len(saved) and other.cache.position <= other.limit
    assert asked(other, "So?", max_tokens=4)[1].completion_tokens == 4


def test_a_chat_that_just_fits_is_restored_whole(folder):
    session = small(folder)
    asked(session, "What?", max_tokens=1000)
    other = small(folder)
    drain(other.restore(session.turns))
    assert other.turns == session.turns and not other.forgotten
    assert tokens_in(other) == tokens_in(session)


def test_turns_whose_thoughts_are_gone_open_a_conversation_as_their_template_has_it(chat_folder):
    session = session_of(chat_folder, "opens")
    session.limit = len(session.document) + 200
    for number in range(12):
        thinks(session, f"{number}?", "At sea.", "Ships.")
        if session.forgotten:
            break
    assert session.forgotten and "At sea" not in session.dialogue.tokenizer.decode(
        [i for turn in session.turns[:-1] for i in turn.ids]
    )
    other = session_of(chat_folder, "opens")
    drain(other.restore([turn.whole or turn for turn in session.turns]))
    assert tokens_in(other) == tokens_in(session)
