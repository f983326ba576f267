"""A conversation without end: the levels of a cascade by hand, where their entries stand, undo and
reading again, and a chat that is far longer than its window."""

from dataclasses import replace

import pytest
import torch

from kvchat.engine.compaction import levels_of, watch
from kvchat.engine.events import Forgotten, TurnDone, Unending, drain
from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.cascade import Cascade, winners
from kvchat.engine.session import Session
from kvchat.errors import KvchatError
from tests.engine.scripted import new_session
from tests.engine.tiny import load_engine, random_ids, read
from tests.support.closeness import assert_close


def given(mass, start=4, position=None, count=None) -> Prefilled:
    """A layer of entries whose keys and values are their numbers, with this attention."""
    mass = torch.tensor(mass)
    heads, entries = mass.shape
    keys = torch.arange(entries).float()[None, :, None].expand(heads, -1, 2).contiguous()
    place = torch.arange(start, start + entries).expand(heads, -1) if position is None else position
    none = torch.empty(0)
    return Prefilled(
        keys=keys, values=-keys, queries=none, lse=none, seen=none, scale=1.0, layer=0,
        num_layers=1, start=start, end=start + 99, column_mass=mass, position=place.int(),
        count=count,
    )  # fmt: skip


def kept(segment) -> list[list[int]]:
    return segment.k[:, 0].view(len(segment.lengths), -1).int().tolist()


def test_one_of_two_stays_by_hand():
    """Levels of 2: of 11 entries the last waits for its neighbour. Pairs (0 1) (2 3) (4 5) (6 7)
    (8 9) send 1, 2, 5, 7, 9 on, for of equals the later stays; level 2 has 7 and 9, and 5, whose
    pair is not there; of (1 2) the former stays on level 3."""
    mass = [[1.0, 3, 2, 1, 1, 1, 4, 5, 0, 0, 9]]
    segment = Cascade(3, 2).extend(given(mass))
    assert kept(segment) == [[1, 5, 7, 9, 10]]
    assert segment.count.tolist() == [4, 2, 2, 2, 1]
    assert [str(level.each) for level in levels_of(segment, 4)] == ["4", "2", "1"]
    assert winners(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[2.0, 1, 5, 5]])).tolist() == [
        [0, 3]
    ]


def test_what_joins_later_goes_on_from_there():
    """The same entries in two parts as at once. In the first head 1, 2, 5, 7, 9 and 10 come to
    level 2, and of (1 2) and (5 7) 1 and 7 to level 3; in the second 0, 3, 4, 7, 9 and 11, and of
    them 0 and 4."""
    first_head = [1.0, 3, 2, 1, 1, 1, 4, 5, 0, 0, 9, 1, 7]
    mass = torch.tensor([first_head, [5.0, 0, 0, 0, 2, 0, 0, 1, 0, 3, 1, 1, 1]])
    once = Cascade(3, 2).extend(given(mass.tolist()))
    assert kept(once) == [[1, 7, 9, 10, 12], [0, 4, 9, 11, 12]]
    first = Cascade(3, 2).extend(given(mass[:, :7].tolist()))
    index = torch.cat((torch.tensor(kept(first)), torch.arange(7, 13).expand(2, -1)), dim=1)
    count = torch.cat((first.count.view(2, -1), torch.ones(2, 6, dtype=torch.int32)), dim=1)
    second = given(mass.gather(1, index).tolist(), position=index + 4, count=count)
    second = replace(second, keys=index.float()[..., None].expand(-1, -1, 2).contiguous())
    again = Cascade(3, 2).extend(second)
    assert kept(again) == kept(once) and torch.equal(again.count, once.count)
    assert torch.equal(again.position, once.position)


def test_a_chat_without_a_document_keeps_its_first_tokens():
    segment = Cascade(2, 2).extend(given([[0.0] * 12], start=0))
    assert kept(segment) == [[0, 1, 2, 3, 9, 11]]


ROOM, LEVELS = 300, Cascade(3, 32)


def endless(folder, **options) -> Session:
    """A session whose window is full after some turns, and which goes on."""
    limit = len(new_session(folder).document) + ROOM
    return new_session(folder, limit=limit, cascade=LEVELS, **options)


def asked(session, number, longest=12):
    """The events of a question."""
    return list(session.ask(f"What of {number}?", max_tokens=longest))


@pytest.mark.parametrize("method", [None, parse_method("adakv:budget=40%")])
def test_a_chat_goes_on_in_a_bounded_tail_and_says_so_once(folder, method):
    session = endless(folder, method=method)
    document, said, held = len(session.document), [], []
    for number in range(36):
        events = asked(session, number)
        assert isinstance(events[-1], TurnDone) and events[-1].finish_reason != "window"
        assert not any(isinstance(event, Forgotten) for event in events)
        said += [(number, event) for event in events if isinstance(event, Unending)]
        assert session.cache.rotary <= session.limit
        for layer in session.cache.layers:
            assert sum(sum(s.lengths) for s in layer.since(document)) <= 2 * (2 * 33 + 1)
        held.append(session.memory().total)
    assert len(session.turns) == 36 and session.cache.position > document + 2 * ROOM
    assert max(held[18:]) <= max(held[:18]), "no growth"
    [(first, event)] = said
    assert event.tokens + document > session.limit - 100 and 0 < event.entries <= 2 * 33 + 1
    assert 0 < first < 20 and event.compressed < event.tokens
    oldest, newest = session.levels()[0], session.levels()[-1]
    assert oldest.each == 4 and newest.last <= session.compacted < newest.last + 40
    assert oldest.first > 1, "the oldest tokens are gone"


def test_what_stays_stands_as_if_nothing_else_had_been(checkpoint):
    """In one layer with one head a key depends on its token and its place alone: the cache is that
    of the kept tokens, one after the other, and so are the logits."""
    folder = checkpoint(num_hidden_layers=1, num_key_value_heads=1)
    engine, document, talk = load_engine(folder), random_ids(40), random_ids(200, seed=1)
    cache, _ = read(engine, document)
    watch(cache, LEVELS, len(document))
    for a in range(0, 200, 20):
        drain(engine.extend(cache, talk[a : a + 20]))
        if a >= 60:
            engine.fold(cache, LEVELS, len(document), cache.position - 40)
    (kept,) = cache.layers[0].since(len(document))
    every = document + talk
    ids = document + [every[at] for at in kept.position.tolist()] + talk[160:]
    other, _ = read(engine, ids)
    assert cache.rotary == len(ids) and cache.position == 240 > len(ids)
    keys = torch.cat((kept.k, cache.layers[0].tail.keys[0]))
    assert_close("keys", keys, other.layers[0].segments[0].k[40:], 1e-5)
    for token in random_ids(3, seed=2):
        got, want = (drain(engine.extend(each, [token])) for each in (cache, other))
        assert_close("logits", got, want, 1e-5)


def test_undo_feeds_the_turns_that_stay_as_they_were_fed(folder):
    session = endless(folder)
    for number in range(20):
        asked(session, number)
    frozen, place = session.cache.frozen, session.cache.rotary
    assert session.undo()[0].question == "What of 19?"
    assert session.cache.frozen == frozen and session.cache.rotary < place
    session.undo(10)
    assert len(session.turns) == 9 and session.cache.rotary <= session.limit
    again = endless(folder)
    drain(again.restore(session.turns))
    assert again.cache.rotary == session.cache.rotary
    several = [[level.entries for level in each.levels()] for each in (again, session)]
    assert several[0] == several[1]
    got, want = (asked(each, "now")[-1].answer for each in (session, again))
    assert got == want
    session.clear()
    assert session.cache.position == session.cache.rotary == len(session.document)


def test_another_method_takes_an_endless_chat_along(folder):
    session = endless(folder)
    for number in range(20):
        asked(session, number)
    drain(session.recompress(parse_method("adakv:budget=50%")))
    assert len(session.turns) == 20 and session.cache.rotary <= session.limit
    assert isinstance(asked(session, "now")[-1], TurnDone)
    with pytest.raises(KvchatError) as caught:
        drain(session.recompress(parse_method("pqcache")))
    assert caught.value.code == "usage"
