"""Answers that only repeat are ended: what counts as that, and what stays of them."""

import random

import pytest

from kvchat.engine.decode.repetition import LEAST, LONGEST, PACE, TIMES, Repetition
from kvchat.engine.events import Delta
from tests.engine.scripted import ask, say, scripted_session, tokens_in
from tests.engine.test_thoughts import session_of, thinks


def end_of(tokens) -> tuple[int, int] | None:
    """After how many tokens a repetition is noticed, and how many stay; None if it is not."""
    seen = Repetition()
    for count, token in enumerate(tokens, 1):
        if seen.push(token):
            return count, seen.kept
    return None


@pytest.mark.parametrize("period", [1, 2, 7, 43, 100, LONGEST])
@pytest.mark.parametrize("before", [0, 5, 300])
def test_a_stretch_that_repeats_is_noticed_soon_and_stays_once(period, before):
    other = list(range(10_000, 10_000 + before))
    tokens = [*other, *(list(range(period)) * 2000)]
    count, kept = end_of(tokens)
    assert kept == before + period
    due = kept + max(LEAST, TIMES * period)
    assert due <= count < due + PACE


@pytest.mark.parametrize("times", [TIMES - 1, TIMES])
def test_a_refrain_may_come_back(times):
    verse = list(range(100))
    tokens = [*verse * (1 + times), *range(200, 232)]
    assert (end_of(tokens) is None) == (times < TIMES)


def test_what_changes_each_time_is_no_repetition():
    rows = [token for number in range(500) for token in (7, 8, 1000 + number, 9)]
    drawn = random.Random(3).choices(range(5), k=4000)
    assert end_of(rows) is None and end_of(drawn) is None
    assert end_of([1] * (LEAST - PACE)) is None


def test_an_answer_that_repeats_itself_is_ended_and_kept_once(folder):
    session, other = scripted_session(folder), scripted_session(folder)
    say(session, "Ships. " + "Stars. " * 200)
    events = list(session.ask("What?"))
    done, told = events[-1], "".join(e.text for e in events if isinstance(e, Delta))
    assert (done.finish_reason, done.answer) == ("repetition", "Ships. Stars.")
    assert told.startswith("Ships. Stars. Stars. ") and LEAST < len(told) < LEAST + 50
    assert session.turns[-1].answer == done.answer
    say(other, "Ships. Stars. ")
    ask(other, "What?", max_tokens=13)
    assert tokens_in(session) == tokens_in(other)
    assert session.turns[-1].tokens == other.turns[-1].tokens
    for each in (session, other):
        say(each, "Yes.", "<|im_end|>")
        ask(each, "And?")
    assert tokens_in(session) == tokens_in(other)


def test_more_goes_on_behind_what_was_kept(folder):
    session = scripted_session(folder)
    say(session, "Noughts: " + "0\n" * 200)
    *_, done = session.ask("What?")
    assert (done.finish_reason, done.answer) == ("repetition", "Noughts: 0\n")
    say(session, "end.", "<|im_end|>")
    *_, done = session.more()
    assert (done.answer, done.finish_reason) == ("Noughts: 0\nend.", "stop")


def test_a_thought_that_repeats_itself_is_ended_too(chat_folder):
    session = session_of(chat_folder, "opens")
    say(session, "Hm. " * 100)
    *_, done = session.ask("What?")
    assert (done.finish_reason, done.answer, done.reasoning) == ("repetition", "", "Hm.")
    thinks(session, "And?", "By night.", "Stars.")
    assert session.turns[-1].answer == "Stars."
