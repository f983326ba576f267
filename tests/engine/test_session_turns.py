"""Turns that are taken back, gone on with, saved and restored; another document or method under a
conversation; what goes on from turn to turn."""

from dataclasses import replace

import pytest

from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import Delta, drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.prefill.observation import Observation
from kvchat.engine.text.chat_template import Dialogue
from kvchat.errors import KvchatError
from tests.engine.scripted import ask, new_session, say, scripted_session, talk, tokens_in
from tests.engine.tiny import read

QUESTIONS = ("What?", "And at night?", "Why?")
FULL, ADAKV = parse_method("full"), parse_method("adakv:budget=40%")


def assert_same_answer(session, other):
    """The same tokens in both caches, and the same answer to the next question."""
    assert tokens_in(session) == tokens_in(other) and session.turns == other.turns
    assert ask(session, "So?", max_tokens=6).answer == ask(other, "So?", max_tokens=6).answer


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_undo_leaves_what_was_there_before(folder, count):
    session = talk(new_session(folder), *QUESTIONS)
    dropped = session.undo(count)
    assert [turn.question for turn in dropped] == list(QUESTIONS[3 - count :])
    assert_same_answer(session, talk(new_session(folder), *QUESTIONS[: 3 - count]))


def test_restored_turns_continue_as_if_nothing_had_happened(folder):
    session, other = talk(new_session(folder), *QUESTIONS), new_session(folder)
    assert tokens_in(session) == session.document + [i for turn in session.turns for i in turn.ids]
    for turn in session.turns:
        assert session.dialogue.tokenizer.decode(turn.tokens) == turn.answer
    drain(other.restore(session.turns))
    assert_same_answer(session, other)


@pytest.mark.parametrize("first", [1, 3, 5])
@pytest.mark.parametrize("chat", [("byte-level", "chatml"), ("sentencepiece-first", "mistral")])
def test_more_goes_on_where_the_limit_cut(chat_folder, first, chat):
    session, whole = new_session(chat_folder(*chat)), new_session(chat_folder(*chat))
    want = ask(whole, "What?", max_tokens=first + 6)
    ask(session, "What?", max_tokens=first)
    assert session.turns[-1].finish_reason == "length"
    *_, done = session.more(max_tokens=6)
    assert done.answer == want.answer
    assert done.completion_tokens == want.completion_tokens - first
    assert_same_answer(session, whole)


def test_more_shows_only_what_is_new(folder):
    session = scripted_session(folder)
    with pytest.raises(KvchatError) as caught:
        session.more()  # at once: nothing of the answer is shown again
    assert caught.value.code == "usage"
    script = say(session, "Ships and stars.", "<|im_end|>")
    ask(session, "What?", max_tokens=5)
    session.engine.script = script[5:]
    events = list(session.more())
    assert "".join(e.text for e in events if isinstance(e, Delta)) == " and stars."
    assert (events[-1].answer, events[-1].finish_reason) == ("Ships and stars.", "stop")
    assert len(session.turns) == 1
    with pytest.raises(KvchatError) as caught:
        next(session.more())
    assert caught.value.code == "usage"


@pytest.mark.parametrize("method", [FULL, ADAKV])
def test_another_document_under_the_same_conversation(folder, method):
    session = talk(new_session(folder), *QUESTIONS[:2])
    said = tokens_in(session)[len(session.document) :]
    longer = session.dialogue.document("Another book altogether. " * 5)
    drain(session.recompress(method, document=longer))
    assert session.document == longer and tokens_in(session)[len(longer) :] == said
    session.undo(2)
    fresh = new_session(folder)
    drain(fresh.prefill(longer, method))
    assert_same_answer(session, fresh)


@pytest.mark.parametrize("full", [False, True])
def test_another_system_prompt_feeds_the_turns_and_no_document(folder, full):
    """What is kept of the document stays; where the window has no room the oldest turns go."""
    session, other = new_session(folder), new_session(folder)
    drain(session.rephrase(session.dialogue.told("Be brief.")))
    talk(session, *QUESTIONS)
    if full:
        session.limit = other.limit = session.cache.position + 8
    kept = list(session.cache.segments())
    long = session.dialogue.told("Be as brief as the sea is wide, and do not say so.")
    drain(session.rephrase(long))
    assert all(a is b for a, b in zip(session.cache.segments(), kept, strict=True))
    assert tokens_in(session)[: len(session.document)] == other.document
    assert (
        tokens_in(session)[len(session.document) :][: long.told_tokens]
        == (long.first("")[: long.told_tokens])
    )
    assert len(session.all_turns) == 3 and 0 < len(session.turns) < 4 - full
    drain(other.rephrase(long))
    drain(other.restore(session.turns))
    assert_same_answer(session, other)


def test_a_first_document_changes_what_opens_the_conversation(folder):
    session = new_session(folder)
    bare = Dialogue(session.dialogue.tokenizer, has_document=False)
    session.dialogue = bare
    drain(session.prefill(bare.document(""), FULL))
    ask(session, "What?", max_tokens=4)
    form = Dialogue(session.dialogue.tokenizer)
    ids = form.document("A book.")
    drain(session.recompress(FULL, document=ids, dialogue=form))
    turn = session.turns[0]
    assert turn.ids[: turn.asked] == tuple(form.first("What?"))
    assert tokens_in(session) == ids + list(turn.ids) and session.dialogue is form


def test_another_method_compresses_the_document_and_keeps_the_turns(folder):
    session = talk(new_session(folder), *QUESTIONS[:2])
    document, turns = session.document, list(session.turns)
    said = tokens_in(session)[len(document) :]
    drain(session.recompress(ADAKV))
    for layer in session.cache.layers:
        assert sum(layer.segments[0].lengths) == round(0.4 * 2 * len(document))
        assert layer.tail.length == len(said)
    assert session.turns == turns

    done = ask(session, "Why?", max_tokens=6)
    fed = tokens_in(session)[len(document) :]
    assert fed[: len(said)] == said
    cache, _ = read(session.engine, document, ADAKV)
    logits = drain(session.engine.extend(cache, fed[: len(said) + done.prompt_tokens]))
    tokens = session.engine.decode(cache, logits, Sampling())
    answer = [next(tokens) for _ in range(6)]
    assert answer[:-1] == fed[len(said) + done.prompt_tokens :]
    session.clear()
    assert_same_answer(session, new_session(folder, method=ADAKV))


WARM = Sampling(temperature=1.0, repeat_penalty=1.3, seed=5)


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
    """The same question twice draws other tokens; a new chat begins with the seed."""
    sampling, sessions = replace(WARM, repeat_penalty=1.0), [new_session(folder) for _ in range(2)]
    for session in sessions:
        session.ends = set()
        for _ in range(2):
            ask(session, "What?", sampling=sampling, max_tokens=12)
    first, second = ([turn.tokens for turn in session.turns] for session in sessions)
    assert first == second and first[0] != first[1]


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


def test_more_looks_for_stop_strings_in_what_is_new(folder):
    """What was answered before may hold one: it stays as it was shown."""
    scripted = scripted_session(folder)
    say(scripted, "A boat and")
    assert ask(scripted, "What?", max_tokens=6).answer == "A boat"
    say(scripted, " another boat, yes")
    events = list(scripted.more(max_tokens=20, stop=("boat",)))
    assert events[-1].answer == "A boat another "
    assert scripted.turns[-1].answer == "A boat another "


def test_a_stop_string_in_a_turn_that_was_compressed_loses_nothing(folder):
    """After undo the last turn may be compressed; what stays of it is fed again."""
    session = new_session(folder)
    session.ends, session.tail_budget = set(), 16
    drain(session.recompress(parse_method("cam")))
    for question in ("One?", "Two?"):
        ask(session, question, max_tokens=6)
    session.undo()
    answer = session.turns[-1].answer
    more = list(session.more(max_tokens=20))[-1].answer[len(answer) :]
    again = new_session(folder)
    again.ends, again.tail_budget = set(), 16
    drain(again.recompress(parse_method("cam")))
    for question in ("One?", "Two?"):
        ask(again, question, max_tokens=6)
    again.undo()
    list(again.more(max_tokens=20, stop=(more[3:5],)))
    tokens = len(again.document) + sum(len(turn.ids) for turn in again.turns)
    assert again.cache.position == tokens
