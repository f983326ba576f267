"""`--auto-loss`: the smallest budget at which few held-out tokens change."""

import torch

from kvchat.engine.budget import Budget
from kvchat.engine.events import drain
from kvchat.engine.methods.adakv import SnapKV
from kvchat.engine.methods.full import Full
from kvchat.engine.methods.spec import with_budget
from kvchat.engine.prefill.auto_budget import open_within
from kvchat.engine.prefill.replay_texts import held_out
from kvchat.engine.sizes import LADDER
from tests.engine.scripted import BOOK, new_session

TEXT = "\n".join(f"{BOOK} Number {n} of the lamp is {n * n}." for n in range(6))


def test_the_smallest_budget_within_the_promise(chat_folder):
    """Losses are those of a cache of that budget, against a cache that has everything."""
    folder = chat_folder("byte-level", "chatml")
    session, other = new_session(folder), new_session(folder)
    ids = session.dialogue.document(TEXT)
    passages = held_out(session.dialogue, ids)
    assert len(passages) > 5
    method = SnapKV(window=4, sinks=1)
    strict = drain(open_within(session, ids, method, promise=0.0))
    losses = list(strict.tried.values())
    assert [Budget.parse(b).fraction for b in strict.tried] == sorted(LADDER)[: len(losses)]
    loose = drain(open_within(session, ids, method, promise=max(losses[1:])))
    assert loose.holds
    assert loose.loss <= max(losses[1:])
    assert loose.method == with_budget(method, Budget.parse(list(loose.tried)[-1]))
    assert all(loss > loose.promise for loss in list(loose.tried.values())[:-1])
    drain(other.open(ids, loose.method))
    for one, two in zip(session.cache.segments(), other.cache.segments(), strict=True):
        assert torch.equal(one.position, two.position)
    assert session.chooser == loose.method

    drain(other.open(ids, Full()))
    exact, kept = other.cache, session.cache
    changed = told = 0
    for passage in passages:
        want, got = (other.engine.score(c, passage.ids).argmax(-1).tolist() for c in (exact, kept))
        pairs = list(zip(want, got, strict=True))[passage.asked - 1 : -1]
        changed, told = changed + sum(a != b for a, b in pairs), told + len(pairs)
    assert loose.loss == changed / told


def test_a_promise_that_no_budget_keeps_takes_the_largest(chat_folder):
    session = new_session(chat_folder("byte-level", "chatml"))
    kept = drain(open_within(session, session.dialogue.document("x"), SnapKV(), promise=0.5))
    assert (kept.holds, kept.loss, kept.tried) == (False, None, {}), "there is nothing to hold out"
    assert kept.method.budget == Budget(fraction=max(LADDER))
