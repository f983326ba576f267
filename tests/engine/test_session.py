"""A conversation over a document against transformers, and what ends an answer."""

import pytest
import torch

from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.prefill.prefill import Compression
from kvchat.errors import KvchatError
from tests.engine.scripted import BOOK, ask, new_session
from tests.engine.tiny import load_oracle

CHATS = [("byte-level", "chatml"), ("byte-level", "user-only"), ("byte-level", None),
         ("sentencepiece", None), ("sentencepiece-first", "mistral")]  # fmt: skip


@pytest.fixture(params=CHATS, ids=lambda p: f"{p[0]} {p[1]}")
def folder(request, chat_folder):
    return chat_folder(*request.param)


@pytest.fixture
def byte_folder(chat_folder):
    return chat_folder("byte-level", "chatml")


@torch.inference_mode()
def greedy(oracle, ids: list[int], count: int, ends: set[int]) -> list[int]:
    prompt = torch.tensor([ids])
    out = oracle.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False,
        eos_token_id=sorted(ends) or None, pad_token_id=0,
    )  # fmt: skip
    return out[0, len(ids) :].tolist()


def test_three_turns_equal_transformers_on_the_same_ids(folder):
    session, oracle = new_session(folder), load_oracle(folder)
    dialogue = session.dialogue
    ids = list(session.document)
    for number, question in enumerate(("What did he count?", "And at night?", "Why?")):
        turn = dialogue.following(question) if number else dialogue.first(question)
        ended = number and ids[-1] in session.ends
        ids += turn[1:] if ended and turn[0] in session.ends else turn
        done = ask(session, question, max_tokens=8 + number)
        answer = greedy(oracle, ids, 8 + number, session.ends)
        assert session.engine.tokens_in(session.cache) == ids + answer[:-1]
        if "\ufffd" not in (text := dialogue.tokenizer.decode(answer)):
            assert done.answer == text
        assert done.completion_tokens == len(answer)
        assert done.finish_reason == ("stop" if answer[-1] in session.ends else "length")
        ids += answer
        assert session.cache.position == len(ids) - 1, "the last token is pending"


def test_clear_forgets_the_conversation_and_keeps_the_document(folder):
    session = new_session(folder)
    first = ask(session, "What?", max_tokens=10).answer
    second = ask(session, "What?", max_tokens=10).answer
    session.clear()
    assert session.turns == [] and session.cache.position == len(session.document)
    assert ask(session, "What?", max_tokens=10).answer == first
    assert ask(session, "What?", max_tokens=10).answer == second


def test_a_compressed_document_is_talked_over_turn_by_turn(byte_folder):
    session = new_session(byte_folder)
    drain(session.prefill(session.document, parse_method("adakv:budget=50%")))
    entries = [segment.lengths for segment in session.cache.segments()]
    first = ask(session, "What?", max_tokens=6).answer
    assert ask(session, "And?", max_tokens=6).answer
    assert [segment.lengths for segment in session.cache.segments()] == entries
    session.clear()
    assert ask(session, "What?", max_tokens=6).answer == first
    assert session.full_bytes() == session.cache.position * 2 * 2 * 2 * 16 * 4


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_token_limit_is_exact(byte_folder, count):
    session = new_session(byte_folder)
    start = session.cache.position
    done = ask(session, "What?", max_tokens=count)
    assert (done.finish_reason, done.completion_tokens) == ("length", count)
    assert session.cache.position == start + done.prompt_tokens + count - 1


def test_an_answer_ends_where_the_window_ends(byte_folder):
    long = new_session(byte_folder)
    want = ask(long, "What?", max_tokens=5)
    used = len(long.document) + want.prompt_tokens
    session = new_session(byte_folder, limit=used + 5)
    done = ask(session, "What?", max_tokens=100)
    assert (done.finish_reason, done.completion_tokens) == ("window", 5)
    assert done.answer == want.answer


def test_a_question_that_does_not_fit_leaves_the_session_as_it_was(byte_folder):
    limit = len(new_session(byte_folder).document) + 60
    session, other = (new_session(byte_folder, limit=limit) for _ in range(2))
    for each in (session, other):
        ask(each, "What?", max_tokens=4)
    before = (session.cache.position, list(session.turns), session.memory())
    with pytest.raises(KvchatError) as caught:
        ask(session, "Why? " * 100)
    assert caught.value.code == "too_long" and caught.value.exit_code == 5
    assert caught.value.details["limit"] == limit < caught.value.details["needed"]
    assert f"{limit:,}" in caught.value.message
    assert (session.cache.position, session.turns, session.memory()) == before
    assert ask(session, "And?", max_tokens=4).answer == ask(other, "And?", max_tokens=4).answer


def test_a_document_longer_than_the_window_is_refused_with_numbers(byte_folder):
    session = new_session(byte_folder, limit=200)
    before = list(session.document)
    with pytest.raises(KvchatError) as caught:
        drain(session.prefill([5] * 151, parse_method("full")))
    assert caught.value.code == "too_long"
    assert caught.value.details == {"needed": 151, "limit": 200, "reserve": 50}
    assert session.document == before
    drain(session.prefill([5] * 150, parse_method("full")))
    assert session.cache.position == 150


def test_a_reading_that_is_given_up_leaves_the_session_as_it_was(byte_folder):
    session = new_session(byte_folder)
    cache, want = session.cache, ask(session, "What?", max_tokens=5).answer
    reading = session.prefill(session.document * 2, parse_method("adakv"))
    next(reading)
    reading.close()
    assert session.cache is cache and len(session.turns) == 1
    session.clear()
    assert ask(session, "What?", max_tokens=5).answer == want


def test_seeds_reproduce_answers(byte_folder):
    def answer(seed):
        options = Sampling(temperature=1.0, seed=seed)
        return ask(new_session(byte_folder), "What?", sampling=options, max_tokens=20).answer

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_a_chat_needs_no_document(byte_folder):
    session = new_session(byte_folder)
    drain(session.prefill([], parse_method("adakv")))
    assert session.cache.position == 0
    assert ask(session, "What?", max_tokens=3).completion_tokens == 3


def test_questions_as_probes_change_what_is_kept_but_not_the_session(byte_folder):
    session = new_session(byte_folder, book=BOOK * 6)
    jobs = [Compression(parse_method("adakv:budget=30%"), probes) for probes in ((), (0,), (1,))]
    questions = ["What did he count?", "Where is the sea?"]
    before = session.cache
    reading = drain(session.read(session.document, jobs, questions))
    assert session.cache is before
    kept = [[s.position.tolist() for s in cache.segments()] for cache in reading.caches]
    assert kept[0] != kept[1] and kept[1] != kept[2] and kept[0] != kept[2]
    session.adopt(reading.caches[1], session.document)
    assert ask(session, questions[0], max_tokens=3).completion_tokens == 3
