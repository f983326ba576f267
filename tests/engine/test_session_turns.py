"""Turns that are taken back, gone on with, answered again, saved and restored; another document
under a conversation."""

import pytest

from kvchat.engine.events import Delta, drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.text.chat_template import Dialogue
from kvchat.errors import KvchatError
from tests.engine.scripted import ask, new_session, say, scripted_session

QUESTIONS = ("What?", "And at night?", "Why?")


@pytest.fixture
def folder(chat_folder):
    return chat_folder("byte-level", "chatml")


def talked(folder, count=3):
    session = new_session(folder)
    for question in QUESTIONS[:count]:
        ask(session, question, max_tokens=6)
    return session


def held(session):
    return session.engine.tokens_in(session.cache)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_undo_leaves_what_was_there_before(folder, count):
    session, other = talked(folder), talked(folder, 3 - count)
    dropped = session.undo(count)
    assert [turn.question for turn in dropped] == list(QUESTIONS[3 - count :])
    assert held(session) == held(other) and session.turns == other.turns
    assert ask(session, "So?", max_tokens=6).answer == ask(other, "So?", max_tokens=6).answer


def test_the_tokens_of_the_turns_are_those_in_the_cache(folder):
    session = talked(folder)
    assert held(session) == session.document + [i for turn in session.turns for i in turn.ids]
    for turn in session.turns:
        assert session.dialogue.tokenizer.decode(turn.tokens) == turn.answer


def test_restored_turns_continue_as_if_nothing_had_happened(folder):
    session, other = talked(folder), new_session(folder)
    drain(other.restore(session.turns))
    assert held(other) == held(session) and other.turns == session.turns
    assert ask(session, "So?", max_tokens=6).answer == ask(other, "So?", max_tokens=6).answer


@pytest.mark.parametrize("first", [1, 3, 5])
@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece-first"])
def test_more_goes_on_where_the_limit_cut(chat_folder, first, kind):
    folder = chat_folder(kind, "chatml" if kind == "byte-level" else "mistral")
    session, whole = new_session(folder), new_session(folder)
    want = ask(whole, "What?", max_tokens=first + 6)
    ask(session, "What?", max_tokens=first)
    if session.turns[-1].finish_reason == "stop":
        return
    events = list(session.more(max_tokens=6))
    assert events[-1].answer == want.answer
    assert events[-1].completion_tokens == want.completion_tokens - first
    assert session.turns == whole.turns and held(session) == held(whole)


def test_more_shows_only_what_is_new(folder):
    session = scripted_session(folder)
    script = say(session, "Ships and stars.", "<|im_end|>")
    ask(session, "What?", max_tokens=5)
    session.engine.script = script[5:]
    events = list(session.more())
    assert "".join(e.text for e in events if isinstance(e, Delta)) == " and stars."
    assert (events[-1].answer, events[-1].finish_reason) == ("Ships and stars.", "stop")
    assert len(session.turns) == 1
    with pytest.raises(KvchatError, match="has ended"):
        next(session.more())


def test_more_without_a_turn_is_refused(folder):
    with pytest.raises(KvchatError, match="no answer"):
        next(new_session(folder).more())


def test_another_document_under_the_same_conversation(folder):
    session = talked(folder, 2)
    talk = held(session)[len(session.document) :]
    longer = session.dialogue.document("Another book altogether. " * 5)
    drain(session.recompress(parse_method("adakv:budget=50%"), document=longer))
    assert session.document == longer and held(session)[len(longer) :] == talk
    session.undo(2)
    fresh = new_session(folder)
    drain(fresh.prefill(longer, parse_method("adakv:budget=50%")))
    assert ask(session, "So?", max_tokens=6).answer == ask(fresh, "So?", max_tokens=6).answer


def test_a_first_document_changes_what_opens_the_conversation(folder):
    session = new_session(folder)
    bare = Dialogue(session.dialogue.tokenizer, has_document=False)
    session.dialogue = bare
    drain(session.prefill(bare.document(""), parse_method("full")))
    ask(session, "What?", max_tokens=4)
    form = Dialogue(session.dialogue.tokenizer)
    ids = form.document("A book.", "Be brief.")
    drain(session.recompress(parse_method("full"), document=ids, dialogue=form))
    turn = session.turns[0]
    assert turn.ids[: turn.asked] == tuple(form.first("What?"))
    assert held(session) == ids + list(turn.ids) and session.dialogue is form


def test_a_document_that_does_not_fit_with_the_turns_changes_nothing(folder):
    session = talked(folder, 2)
    session.limit, before = 200, (session.cache, list(session.document), list(session.turns))
    with pytest.raises(KvchatError) as caught:
        drain(session.recompress(parse_method("full"), document=[5] * 140))
    assert caught.value.code == "too_long"
    assert (session.cache, session.document, session.turns) == before


def test_a_question_in_view_chooses_other_rows(folder):
    session = new_session(folder, book="The keeper counted ships and stars above the sea. " * 8)
    method = parse_method("adakv:budget=20%")
    kept = []
    for questions in ((), ("What did he count?",), ("Where is the sea?",)):
        drain(session.recompress(method, questions))
        kept.append([s.position.tolist() for s in session.cache.segments()])
    assert kept[0] != kept[1] != kept[2]
