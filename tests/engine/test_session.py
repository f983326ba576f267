"""A conversation over a document against transformers, what does not fit, and what is given up."""

import pytest
import torch

from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.prefill.prefill import Compression
from kvchat.errors import KvchatError
from tests.engine.scripted import BOOK, ask, new_session, talk, tokens_in
from tests.engine.tiny import load_oracle

CHATS = [("byte-level", "chatml"), ("byte-level", "user-only"), ("byte-level", None),
         ("sentencepiece", None), ("sentencepiece-first", "mistral")]  # fmt: skip
ADAKV = parse_method("adakv:budget=50%")


@torch.inference_mode()
def greedy(oracle, ids: list[int], count: int, ends: set[int]) -> list[int]:
    prompt = torch.tensor([ids])
    out = oracle.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False,
        eos_token_id=sorted(ends) or None, pad_token_id=0,
    )  # fmt: skip
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("chat", CHATS, ids=lambda p: f"{p[0]} {p[1]}")
def test_three_turns_equal_transformers_on_the_same_ids(chat_folder, chat):
    """And once more after they are forgotten."""
    folder = chat_folder(*chat)
    session, oracle = new_session(folder), load_oracle(folder)
    dialogue, answers = session.dialogue, []
    ids = list(session.document)
    for number, question in enumerate(("What did he count?", "And at night?", "Why?")):
        turn = dialogue.following(question) if number else dialogue.first(question)
        ended = number and ids[-1] in session.ends
        ids += turn[1:] if ended and turn[0] in session.ends else turn
        done = ask(session, question, max_tokens=8 + number)
        answer = greedy(oracle, ids, 8 + number, session.ends)
        assert tokens_in(session) == ids + answer[:-1]
        if "\ufffd" not in (text := dialogue.tokenizer.decode(answer)):
            assert done.answer == text
        assert done.completion_tokens == len(answer)
        assert done.finish_reason == ("stop" if answer[-1] in session.ends else "length")
        ids += answer
        assert session.cache.position == len(ids) - 1, "the last token is pending"
        answers.append(done.answer)
    session.clear()
    assert session.turns == [] and session.cache.position == len(session.document)
    assert ask(session, "What did he count?", max_tokens=8).answer == answers[0]


def test_a_compressed_document_is_talked_over_turn_by_turn(folder):
    session = new_session(folder, method=ADAKV)
    entries = [segment.lengths for segment in session.cache.segments()]
    talk(session, "What?", "And?")
    assert [segment.lengths for segment in session.cache.segments()] == entries
    first = session.turns[0].answer
    session.clear()
    assert ask(session, "What?", max_tokens=6).answer == first
    assert session.full_bytes() == session.cache.position * 2 * 2 * 2 * 16 * 4


@pytest.mark.parametrize("count", [1, 2, 7])
def test_an_answer_ends_by_its_limit_and_where_the_window_ends(folder, count):
    session = new_session(folder)
    start = session.cache.position
    done = ask(session, "What?", max_tokens=count)
    assert (done.finish_reason, done.completion_tokens) == ("length", count)
    used = start + done.prompt_tokens
    assert session.cache.position == used + count - 1
    short = ask(new_session(folder, limit=used + count), "What?", max_tokens=100)
    assert (short.finish_reason, short.completion_tokens) == ("window", count)
    assert short.answer == done.answer


def test_a_question_that_does_not_fit_leaves_the_session_as_it_was(folder):
    limit = len(new_session(folder).document) + 60
    session, other = (talk(new_session(folder, limit=limit), "What?") for _ in range(2))
    before = (session.cache.position, list(session.turns), session.memory())
    with pytest.raises(KvchatError) as caught:
        ask(session, "Why? " * 100)
    assert caught.value.code == "too_long" and caught.value.exit_code == 5
    assert caught.value.details["limit"] == limit < caught.value.details["needed"]
    assert f"{limit:,}" in caught.value.message
    assert (session.cache.position, session.turns, session.memory()) == before
    assert ask(session, "And?", max_tokens=4).answer == ask(other, "And?", max_tokens=4).answer


def test_a_document_longer_than_the_window_is_refused_with_numbers(folder):
    session = talk(new_session(folder, limit=200), "What?")
    before = session.cache, list(session.document), list(session.turns)
    full, ids, turns = parse_method("full"), [5] * 151, session.cache.position - len(before[1])
    for work, more in ((session.prefill(ids, full), 0), (session.recompress(full, (), ids), turns)):
        with pytest.raises(KvchatError) as caught:
            drain(work)
        assert caught.value.code == "too_long"
        assert caught.value.details == {"needed": 151 + more, "limit": 200, "reserve": 50}
        assert (session.cache, session.document, session.turns) == before
    drain(session.prefill([5] * 150, parse_method("full")))
    assert session.cache.position == 150


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_prefill_that_is_given_up_leaves_the_session_as_it_was(folder, stop):
    session = talk(new_session(folder), "What?", "And at night?")
    cache, position, turns = session.cache, session.cache.position, list(session.turns)
    keys = [layer.tail.keys.clone() for layer in cache.layers]
    for work in (session.prefill(session.document * 2, ADAKV), session.recompress(ADAKV)):
        for _ in range(stop if work.gi_code.co_name == "recompress" else 1):
            next(work)
        work.close()
        assert session.cache is cache and cache.position == position and session.turns == turns
        tails = [layer.tail.keys for layer in cache.layers]
        assert all(torch.equal(*pair) for pair in zip(tails, keys, strict=True))


def test_a_chat_needs_no_document(folder):
    sessions = [new_session(folder) for _ in range(2)]
    for session in sessions:
        drain(session.prefill([], ADAKV))
        assert session.cache.position == 0
        assert ask(session, "What?", max_tokens=3).completion_tokens == 3
    drain(sessions[0].recompress(parse_method("snapkv")))
    assert sessions[0].cache.position == sessions[1].cache.position
    assert len({ask(session, "And?", max_tokens=6).answer for session in sessions}) == 1


def test_questions_as_probes_change_what_is_kept_but_not_the_session(folder):
    session, method = new_session(folder, book=BOOK * 6), parse_method("adakv:budget=30%")
    jobs = [Compression(method, probes) for probes in ((), (0,), (1,))]
    questions, before = ["What did he count?", "Where is the sea?"], session.cache
    reading = drain(session.read(session.document, jobs, questions))
    assert session.cache is before
    kept = [[s.position.tolist() for s in cache.segments()] for cache in reading.caches]
    assert kept[0] != kept[1] and kept[1] != kept[2] and kept[0] != kept[2]
    drain(session.recompress(method, questions[1:]))
    assert [s.position.tolist() for s in session.cache.segments()] == kept[2]
    session.adopt(reading.caches[1], session.document)
    assert ask(session, questions[0], max_tokens=3).completion_tokens == 3
