"""A document behind others: what was read stays, and is attended to."""

from itertools import islice

import pytest
import torch

from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from tests.engine.scripted import ask, new_session, tokens_in
from tests.support.closeness import assert_close

SPECS = ["full", "adakv:budget=50%", "kvzip:budget=50%", "adakv:budget=50%,bits=8"]


@pytest.fixture
def folder(chat_folder):
    return chat_folder("byte-level", "chatml")


def more(session, text="\n\n# b.txt\n\nThe green book lies on the table. The tide is low."):
    return session.dialogue.added(text)


def after(session):
    """Logits of a question."""
    return session.engine.score(session.cache, session.dialogue.first("Why?"))


@pytest.mark.parametrize("spec", SPECS)
def test_what_was_read_stays_and_turns_follow(folder, spec):
    method = parse_method(spec)
    session = new_session(folder, method=method)
    ask(session, "What did he count?", max_tokens=4)
    before, document = [list(layer.segments) for layer in session.cache.layers], session.document
    drain(session.append(more(session), method))
    assert session.document == [*document, *more(session)]
    for layer, old in zip(session.cache.layers, before, strict=True):
        assert layer.segments[: len(old)] == old, "not a byte of it is read again"
        assert layer.segments[-1].span[1] == len(session.document)
    assert tokens_in(session) == [*session.document, *session.turns[0].ids]
    assert session.cache.position == len(tokens_in(session))
    assert float(session.attended()[-8:].sum()) > 0, "it is cited like any other"
    ask(session, "Why?", max_tokens=4)
    session.clear()
    assert session.cache.position == len(session.document)


def test_all_of_it_kept_is_as_if_it_had_been_read_at_once(folder):
    session = new_session(folder)
    drain(session.append(more(session), parse_method("full")))
    found, ids = after(session), session.document
    drain(session.prefill(ids, parse_method("full")))
    assert_close("logits", found, after(session), 1e-4)


def test_a_sliding_segment_takes_it_in(folder):
    """A cache that keeps every entry for tokens to choose from."""
    method = parse_method("pqcache:dense_below=0,code_bits=4,sinks=3,block=8,budget=80%")
    session = new_session(folder, method=method)
    drain(session.append(more(session), method))
    kept = [layer.kept(len(session.document)) for layer in session.cache.layers]
    assert kept == [[len(session.document)] * 2] * len(kept)
    exact = new_session(folder)
    drain(exact.append(more(exact), parse_method("full")))
    assert_close("logits", after(session)[:1], after(exact)[:1], 1e-3)


def test_given_up_in_between_nothing_has_changed(folder):
    session = new_session(folder, method=parse_method("adakv:budget=50%"))
    ask(session, "What did he count?", max_tokens=4)
    want = session.engine.score(session.cache, [5, 6, 7])
    ids, turns = list(session.document), session.turns
    work = session.append(more(session), parse_method("adakv:budget=50%"))
    assert len(list(islice(work, 2))) == 2
    work.close()
    assert (session.document, session.turns) == (ids, turns)
    drain(session._holding(turns))
    torch.testing.assert_close(session.engine.score(session.cache, [5, 6, 7]), want, rtol=1e-4,
                               atol=1e-4)  # fmt: skip
