"""What is left in the cache after an answer ends: by an end token, a stop string, the user or a
limit. Answers are scripted; the cache is real."""

from itertools import islice

import pytest

from kvchat.engine.events import Delta, Progress
from tests.engine.scripted import ask, new_session, say, scripted_session, talk, tokens_in

ENDS = {"byte-level": "<|im_end|>", "sentencepiece-first": "</s>", "sentencepiece": "</s>"}


@pytest.fixture
def session(folder):
    return scripted_session(folder)


def text_held(session) -> str:
    """Everything in the cache as text, special tokens shown."""
    return session.dialogue.tokenizer.hf.decode(tokens_in(session))


FORMS = [("byte-level", "chatml"), ("byte-level", None), ("sentencepiece-first", "mistral"),
         ("sentencepiece", "llama2"), ("sentencepiece", None)]  # fmt: skip


@pytest.mark.parametrize("kind, template", FORMS)
def test_an_end_token_stands_between_turns_once(chat_folder, kind, template):
    session = scripted_session(chat_folder(kind, template))
    end = session.dialogue.tokenizer.specials[ENDS[kind]]
    say(session, "Ships.", ENDS[kind])
    done = ask(session, "What?")
    assert (done.finish_reason, done.answer) == ("stop", "Ships.")
    before = tokens_in(session)
    say(session, "Stars.", ENDS[kind])
    ask(session, "And?")
    turn = tokens_in(session)[len(before) :]
    expected = session.dialogue.following("And?")
    if end in expected:
        own = expected[expected.index(end) :]
        assert turn[turn.index(end) :][: len(own)] == own, "the template's own turn"
        assert turn.count(end) == expected.count(end)
    else:
        assert turn[: 1 + len(expected)] == [end, *expected]


@pytest.mark.parametrize(
    "text, stop, answer",
    [
        ("Ships.STOP and", ["STOP"], "Ships."),
        ("Ships. ST no STOP", ["STOP"], "Ships. ST no "),
        ("SSTOP", ["STOP"], "S"),
        ("STOP", ["STOP"], ""),
        ("a##b##c", ["c", "##b"], "a"),
        ("He said 😀 twice", ["😀"], "He said "),
        ("new\nline", ["\n", "line"], "new"),
    ],
)
def test_a_stop_string_ends_the_answer_and_leaves_no_trace(session, text, stop, answer):
    """Every character is a token, a smiley four: stop strings are always split."""
    before = tokens_in(session) + session.dialogue.first("What?")
    say(session, text + " never reached")
    done = ask(session, "What?", stop=stop)
    assert (done.finish_reason, done.answer) == ("stop", answer)
    assert session.turns[-1].answer == answer
    said = tokens_in(session)[len(before) :]
    assert tokens_in(session)[: len(before)] == before
    decoded = session.dialogue.tokenizer.decode(said)
    assert decoded == answer, "whole tokens of the answer, nothing of the stop string"
    say(session, "x", "<|im_end|>")
    ask(session, "And?")
    assert text_held(session).endswith(
        f"assistant\n{answer}<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\nx"
    )


def test_what_only_looks_like_a_stop_string_is_shown_at_last(session):
    say(session, "Ships ST", "<|im_end|>")
    assert ask(session, "What?", stop=["STOP"]).answer == "Ships ST"
    say(session, "Ships ST")
    assert ask(session, "What?", stop=["STOP"], max_tokens=8).answer == "Ships ST"


def test_the_plain_form_stops_at_the_next_question(chat_folder):
    session = scripted_session(chat_folder("byte-level"))
    say(session, " Ships.\nQuestion: what else")
    done = ask(session, "What?")
    assert (done.finish_reason, done.answer) == ("stop", " Ships.")
    assert text_held(session).endswith("Question: What?\nAnswer: Ships.")


@pytest.mark.parametrize("after", [1, 4])
def test_a_cancelled_answer_is_kept_and_the_chat_goes_on(session, after):
    answer = say(session, "Ships and stars")
    seen: list[str] = []
    for event in session.ask("What?", cancelled=lambda: len(seen) >= after):
        if isinstance(event, Delta):
            seen.append(event.text)
    assert event.finish_reason == "cancelled"
    assert event.answer == "".join(seen) and "Ships and stars".startswith(event.answer)
    assert len(event.answer) in (after, after + 1)
    assert session.turns[-1].answer == event.answer
    before = len(tokens_in(session))
    say(session, "x", "<|im_end|>")
    ask(session, "And?")
    following = session.dialogue.following("And?")
    pending = answer[event.completion_tokens - 1]
    assert tokens_in(session)[before:][: 1 + len(following)] == [pending, *following]


def test_a_question_cancelled_while_it_is_read_was_never_asked(folder):
    session, other = (talk(new_session(folder, chunk=8), "What?") for _ in range(2))
    position = session.cache.position
    ticks = iter([False, False, True])
    *progress, done = session.ask("Why did he count the stars?", cancelled=lambda: next(ticks))
    assert all(isinstance(event, Progress) for event in progress)
    assert (done.finish_reason, done.answer, done.completion_tokens) == ("cancelled", "", 0)
    assert session.cache.position == position and len(session.turns) == 1
    want = ask(other, "And?", max_tokens=5).answer
    assert ask(session, "And?", max_tokens=5).answer == want


def test_an_abandoned_answer_leaves_a_conversation_that_can_go_on(session):
    """Whoever stops listening gets a cancelled turn or none, never half of one."""
    start = tokens_in(session)
    answer = say(session, "Ships and stars")
    events = session.ask("What?")
    list(islice((event for event in events if isinstance(event, Delta)), 3))
    events.close()
    say(session, "x", "<|im_end|>")
    ask(session, "And?")
    first, following = session.dialogue.first, session.dialogue.following
    never = start + first("And?")
    cancelled = start + first("What?") + answer[:3] + following("And?")
    got = tokens_in(session)
    assert got[: len(never)] == never or got[: len(cancelled)] == cancelled


def test_special_tokens_of_an_answer_are_counted_and_not_shown(session):
    say(session, "Ships", "<|endoftext|>", "<|im_end|>")
    done = ask(session, "What?")
    assert done.answer == "Ships"
    assert session.dialogue.tokenizer.specials["<|endoftext|>"] in tokens_in(session)
    assert done.prompt_tokens == len(session.dialogue.first("What?"))
    assert done.completion_tokens == 7
    assert done.ttft > 0 and done.decode_seconds > 0
    assert done.tokens_per_second == pytest.approx(6 / done.decode_seconds)
