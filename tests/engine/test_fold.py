"""Long chats: old turns become one segment whose size is bounded, new ones stay as they are, and a
turn that was folded can be taken back."""

from dataclasses import replace
from itertools import accumulate

import pytest
import torch

from kvchat.engine.budget import Budget
from kvchat.engine.compaction import fold, folding, watch
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.simple import H2O, CaM, merge_values
from kvchat.engine.methods.specs import options
from kvchat.engine.session import Session
from kvchat.errors import KvchatError
from tests.engine.scenes import KEEPING, kept_tokens, prefilled
from tests.engine.scripted import ask, new_session, talk
from tests.engine.tiny import load_engine, random_ids, read
from tests.support.closeness import assert_close

FOLDING = [name for name in KEEPING if name != "full"]


def small(name: str, **given):
    """A method whose window fits a small tail budget."""
    short = ["window=4"] if "window" in options(name.partition(":")[0]) else []
    return parse_method(name, extra=[*short, *(f"{k}={v}" for k, v in given.items())])


def chat(folder, method, tail_budget: int = 160, turns: int = 0) -> Session:
    session = new_session(folder, 100_000, method=method, tail_budget=tail_budget)
    return talk(session, *(f"And {n}?" for n in range(turns)), max_tokens=3)


@pytest.mark.parametrize("name", FOLDING)
def test_many_turns_stay_within_the_budget(folder, name):
    """At every turn's end: folded entries and live ones, and the newest turn as it was read."""
    session = chat(folder, small(name))
    begin = len(session.document)
    entry = 2 * 16 * 4 + 4 + 8  # key, value, position, and a merged entry's bias and count
    held = []
    for number in range(48):
        done = ask(session, f"And {number}?", max_tokens=3)
        assert done.completion_tokens >= 1
        newest = len(session.turns[-1].ids)
        for layer in session.cache.layers:
            folded = layer.since(begin)
            assert len(folded) <= 1 and layer.tail.length >= newest
            assert layer.tail.length <= max(80, newest)
            assert all(s.span == (begin, session.cache.frozen) for s in folded)
        entries = [sum(s.lengths) for layer in session.cache.layers for s in layer.since(begin)]
        assert sum(entries) <= 2 * 2 * 80  # layers, heads
        held.append(session.memory().total)
    assert session.compacted > 240 and session.cache.position > begin + 360
    document = held[0]
    bound = 2 * 2 * (80 + 80 + 256) * entry  # layers, heads; tails grow by 256 entries
    assert max(held) <= document + bound
    assert max(held[36:]) <= max(held[24:36]), "no growth once it is full"
    assert session.engine.tokens_in(session.cache)[begin:] == [
        i for turn in session.turns for i in turn.ids
    ]


@pytest.mark.parametrize("name", ["adakv", "kvmerger", "h2o", "cam", "expected-attention"])
def test_a_fold_that_keeps_everything_changes_nothing(checkpoint, name):
    """The lossless limit: folded in steps, with room for all entries, against the plain cache."""
    engine, ids = load_engine(checkpoint()), random_ids(160, seed=3)
    method = small(name)
    plain, _ = read(engine, ids[:60])
    cache, _ = read(engine, ids[:60])
    entries = folding(method, 1000)
    with torch.inference_mode():
        watch(cache, entries, 60)
    for a, b, end in ((60, 90, 70), (90, 110, 95), (110, 140, 131)):
        for each in (plain, cache):
            drain(engine.extend(each, ids[a:b]))
        engine.fold(cache, entries, 60, end)
        assert (cache.frozen, cache.position) == (end, b)
    for layer in cache.layers:
        (segment,) = layer.since(60)
        assert segment.lengths == (71, 71) and kept_tokens(segment) == [list(range(71))] * 2
    got, want = (drain(engine.extend(each, ids[140:])) for each in (cache, plain))
    assert_close("logits", got, want, 2e-5)


@pytest.mark.parametrize("chunk", [1, 5, 2048])
def test_sums_of_a_folded_chat_are_those_of_the_attention(checkpoint, chunk):
    """Column sums over entries that were folded before, and over the tail, for any chunks."""
    ids = random_ids(140, seed=5)
    engine = load_engine(checkpoint(), chunk=chunk)
    entries = folding(small("h2o"), 1000)
    cache, _ = read(engine, ids[:60])
    watch(cache, entries, 60)
    drain(engine.extend(cache, ids[60:100]))
    engine.fold(cache, entries, 60, 80)
    drain(engine.extend(cache, ids[100:]))
    whole, _ = read(engine, ids[:60])
    watch(whole, entries, 60)
    drain(engine.extend(whole, ids[60:]))
    for layer, other in zip(cache.layers, whole.layers, strict=True):
        seen, want = layer.observer, other.observer.mass
        got = torch.cat((seen.frozen_mass.view(2, 20), seen.mass), dim=1)
        assert_close("sums", got, want, 1e-5)


def test_h2o_s_next_step():
    """(0, 2, 3, 4, 5) with sums 3.5 .93 .4 .4 .2, heavy 2 and recent 2: 3 goes."""
    scene = replace(
        prefilled(torch.zeros(1, 5, 2), torch.zeros(1, 1, 2), 1.0),
        column_mass=torch.tensor([[3.5, 0.93, 0.4, 0.4, 0.2]]),
        position=torch.tensor([[0, 2, 3, 4, 5]], dtype=torch.int32),
        end=6,
    )
    segment = H2O(Budget(entries_per_head=4)).compress(scene)
    assert segment.position.tolist() == [0, 2, 4, 5] and segment.span == (0, 6)


@pytest.mark.parametrize("mass, part", [(0.15, 0.25), (0.45, 0.5), (0.0, 0.0)])
def test_cam(mass, part):
    """m 2, targets .4 and .2: attention .15 gives a quarter of the value to each, .45 a half. What
    lies between and goes too gets nothing, and gives its own part."""
    values = torch.tensor([[8.0, 4.0], [1.0, 1.0], [3.0, 3.0], [0.0, 2.0], [5.0, 5.0]])
    kept = torch.tensor([False, True, False, True, True])
    got = merge_values(values, torch.tensor([mass, 0.4, 0.0, 0.2, 9.0]), kept, ~kept, targets=2)
    want = values + part * values[:1] * torch.tensor([0.0, 1, 0, 1, 0])[:, None]
    assert_close("values", got[kept], want[kept], 1e-6)


def test_cam_keeps_what_h2o_does_and_merges_the_rest():
    """One loop per entry that goes, as the equation says it; the newest have fewer targets."""
    generator = torch.Generator().manual_seed(0)
    scene = replace(
        prefilled(torch.randn(2, 12, 4, generator=generator), torch.zeros(1, 2, 4), 0.5),
        values=torch.randn(2, 12, 4, generator=generator),
        column_mass=torch.rand(2, 12, generator=generator),
        position=torch.arange(50, 62, dtype=torch.int32).expand(2, -1),
        start=50,
    )
    budget = Budget(entries_per_head=5)
    plain = H2O(budget).compress(scene)
    for name, folded in {"turns": scene, "a document": replace(scene, position=None)}.items():
        segment = CaM(budget, targets=3).compress(folded)
        assert torch.equal(segment.k, plain.k) and torch.equal(segment.position, plain.position)
        for head in range(2):
            stays = (plain.position[5 * head : 5 * head + 5] - 50).tolist()
            values, mass = scene.values[head].clone(), scene.column_mass[head]
            for entry in set(range(12)) - set(stays):
                targets = [each for each in stays if each > entry][:3]
                p = min(1.0, float(mass[entry] / mass[targets].mean()))
                values[targets] += p / 3 * scene.values[head, entry]
            assert_close(name, segment.v.view(2, 5, 4)[head], values[stays], 1e-5)


def test_undo_into_folded_turns_reads_the_others_again(folder):
    session = chat(folder, small("adakv"), turns=12)
    assert session.compacted
    lengths = accumulate(len(turn.ids) for turn in session.turns)
    inside = next(n for n, length in enumerate(lengths) if length > session.compacted // 2)
    dropped = session.undo(12 - inside)
    assert len(dropped) == 12 - inside and len(session.turns) == inside
    assert session.compacted == 0, "the turns that stay were read again"
    begin = len(session.document)
    said = [i for turn in session.turns for i in turn.ids]
    assert session.cache.position == begin + len(said)
    other = chat(folder, small("adakv"), tail_budget=0)
    drain(other.engine.extend(other.cache, said))
    logits = [s.engine.score(s.cache, [1, 2, 3]) for s in (session, other)]
    assert_close("as if nothing had been folded", *logits, 1e-5)
    ask(session, "So?", max_tokens=3)


def test_newest_turns_are_taken_back_without_reading(folder):
    session = chat(folder, small("snapkv"), turns=12)
    folded, log = session.compacted, len(session.engine.log)
    session.undo()
    assert session.compacted == folded and len(session.engine.log) == log
    session.clear()
    assert session.compacted == 0 and session.cache.position == len(session.document)
    assert all(len(layer.segments) == 1 for layer in session.cache.layers)
    ask(session, "So?", max_tokens=3)


def test_a_chat_that_is_read_again_is_folded_again(folder):
    session = chat(folder, small("adakv"), turns=12)
    turns = session.turns
    drain(session.recompress(small("h2o")))
    assert session.turns == turns and session.compacted
    live = session.cache.position - session.cache.frozen
    assert live <= max(80, len(turns[-1].ids))
    other = chat(folder, small("adakv"))
    drain(other.restore(turns))
    assert other.compacted and other.cache.position == session.cache.position


def test_what_cannot_fold_is_refused(folder):
    for spec in ("full:bits=4", "pqcache", "kvmerger@paper"):
        with pytest.raises(KvchatError, match="mode=eps" if "@" in spec else spec.split(":")[0]):
            folding(parse_method(spec), 500)
    with pytest.raises(KvchatError, match="pqcache"):
        chat(folder, parse_method("pqcache"))
    with pytest.raises(KvchatError, match="37") as caught:
        folding(parse_method("adakv"), 40)
    assert caught.value.tries == ("--tail-budget 74",)
    assert folding(parse_method("adakv:bits=4"), 74).budget == Budget(entries_per_head=37)


def test_a_fold_that_fails_changes_nothing(checkpoint, monkeypatch):
    engine, ids = load_engine(checkpoint()), random_ids(120, seed=6)
    cache, _ = read(engine, ids[:60])
    entries = folding(small("adakv"), 40)
    watch(cache, entries, 60)
    drain(engine.extend(cache, ids[60:]))
    before = engine.score(cache, [1, 2])
    calls = iter([type(entries).compress])

    def failing(method, given):
        compress = next(calls, None)
        if compress is None:
            raise MemoryError
        return compress(method, given)

    monkeypatch.setattr(type(entries), "compress", failing)
    with pytest.raises(MemoryError), torch.inference_mode():
        fold(engine.model, cache, entries, 60, 100)
    assert cache.frozen == 60 and all(len(layer.segments) == 1 for layer in cache.layers)
    assert torch.equal(engine.score(cache, [1, 2]), before)


def test_a_chat_without_a_document_folds_with_a_method_of_its_own(folder):
    session = chat(folder, parse_method("snapkv"))
    drain(session.prefill([], parse_method("full"), small("adakv")))
    talk(session, *(f"And {number}?" for number in range(20)), max_tokens=3)
    assert session.compacted and session.document == []
    with pytest.raises(KvchatError, match="full"):
        drain(session.recompress(parse_method("full")))
    assert session.compacted
