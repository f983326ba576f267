"""Documents longer than the context window: read part by part, moved together."""

from dataclasses import replace

import pytest
import torch

from kvchat.engine import ops
from kvchat.engine.budget import Geometry
from kvchat.engine.cache.segment import FlatSegment
from kvchat.engine.events import Progress, TurnDone, drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.prefill.stream import of_part
from kvchat.engine.prefill.walk import rotations_at
from kvchat.engine.session import Session
from kvchat.engine.sizes import Streamed, reserve_of
from kvchat.engine.store.cached_document import layers_of, load, save
from kvchat.errors import KvchatError
from tests.engine.scripted import new_session
from tests.engine.test_families import CASES
from tests.engine.tiny import load_engine, random_ids, read, save_model
from tests.support.closeness import assert_close

IDS, MORE = random_ids(300), random_ids(20, seed=2)
FITS, LONG = (
    Streamed(300, 800, True),
    Streamed(300, 160, True),
)  # in its half of the window; in less than that
METHODS = (
    "full", "adakv:budget=40%,window=8", "kvzip:budget=40%", "kvzap:budget=40%", "h2o:budget=40%",
    "kvmerger:budget=50%", "pqcache:budget=40%", "expected-attention:budget=40%",
    "kvzip:budget=40%,bits=4", "streamingllm:budget=40%", "adakv:budget=150,window=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return load_engine(save_model(tmp_path_factory.mktemp("llama")), chunk=33)


@pytest.fixture(scope="module")
def sliding(tmp_path_factory):
    return load_engine(save_model(tmp_path_factory.mktemp("gemma"), **CASES["gemma3"]), chunk=33)


def streamed(engine, method, how=LONG, **given):
    return drain(engine.stream(IDS, Compression(parse_method(method)), how, **given)).caches[0]


def test_the_arithmetic_of_parts():
    how = Streamed(1000, 400)
    assert (how.room, how.part) == (200, 100)  # a hundred of the window are for talk
    assert how.parts[0] == (0, 100) and how.parts[-1] == (900, 1000) and len(how.parts) == 10
    assert replace(how, replayed=True).part == 50
    assert Streamed.of(300, 400) is None and Streamed.of(301, 400) == Streamed(301, 400)
    for tokens, limit in [(5, 4), (100, 9), (7, 1), (10**6, 8192)]:
        how = Streamed(tokens, limit)
        assert [b for _, b in how.parts[:-1]] == [a for a, _ in how.parts[1:]]
        assert max(b - a for a, b in how.parts) <= how.part


def test_where_parts_stand():
    """By hand: four parts of 25 tokens in 50 positions, each begun 25 / 3 behind another."""
    how = Streamed(100, 100)
    assert (how.room, how.part, len(how.parts)) == (50, 25, 4)
    assert how.starts == [0, 8, 16, 25]
    assert Streamed(100, 800).starts == [0]
    for tokens, limit in [(300, 160), (1000, 33), (50, 8)]:
        how = Streamed(tokens, limit)
        (a, b), starts = how.parts[-1], how.starts
        assert starts == sorted(starts) and starts[-1] + b - a == how.room == limit // 2


@pytest.mark.parametrize("model", ["engine", "sliding"])
@pytest.mark.parametrize("method", ["full", "kvzip:budget=100%", "pqcache:budget=40%"])
def test_where_nothing_moves_it_is_a_prefill(model, method, request):
    engine = request.getfixturevalue(model)
    expected = engine.score(read(engine, IDS, parse_method(method))[0], MORE)
    assert_close("logits", engine.score(streamed(engine, method, FITS), MORE), expected)


def test_keys_are_as_if_they_had_been_rotated_where_they_stand(engine):
    """Of the first layer, where they depend on nothing but the tokens."""
    block, (segment,) = engine.model.blocks[0], streamed(engine, "full").layers[0].segments
    x = engine.model.embed(torch.tensor(IDS))
    _, k, v = block.project(x, rotations_at(engine.model, 0, len(IDS))[0])
    plain = rotations_at(engine.model, 0, len(IDS))[0]
    pairs = zip(LONG.parts, LONG.starts, strict=True)
    places = [start + n for (a, b), start in pairs for n in range(b - a)]
    there = engine.model.rotations(torch.tensor(places))[0]
    bare = ops.rope(k.transpose(0, 1), plain.cos, -plain.sin)
    expected = ops.rope(bare, there.cos, there.sin).transpose(0, 1)
    assert_close("keys", segment.k.view_as(expected), expected)
    assert torch.equal(segment.v.view_as(v), v)
    assert segment.position.view(2, -1)[0].tolist() == list(range(len(IDS)))  # of the document


@pytest.mark.parametrize("model", ["engine", "sliding"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_reads_a_long_document(model, method, request):
    engine, chosen = request.getfixturevalue(model), parse_method(method)
    cache = streamed(engine, method)
    assert (cache.position, cache.rotary, cache.frozen) == (300, LONG.room, 300)
    config = engine.config
    geometry = Geometry(300, config.num_kv_heads, len(config.full_layers), config.head_dim, 4)
    kept = sum(sum(layer.kept(300)) for layer in cache.layers)
    most = sum(chosen.entries(geometry))
    pooled = chosen.together(geometry)
    assert 0.9 * (pooled or most) <= kept <= (pooled or most) + len(LONG.parts)
    assert engine.score(cache, MORE).isfinite().all()
    assert all(segment.span == (0, 300) for segment in cache.segments())


def test_a_budget_is_shared_out_over_parts():
    geometry = Geometry(1000, 2, 4, 16, 2)
    method = parse_method("adakv:budget=200,window=8")
    parts = [of_part(method, geometry, a, a + 250) for a in range(0, 1000, 250)]
    assert [part.budget.entries_per_head for part in parts] == [50] * 4
    assert [part.sinks for part in parts] == [4, 0, 0, 0]
    quarter = of_part(parse_method("adakv:budget=25%,bits=4"), geometry, 0, 250)
    assert quarter.budget.fraction == 0.25 and quarter.bits == 16  # quantized at the end
    with pytest.raises(KvchatError):
        of_part(parse_method("adakv:budget=1000B"), geometry, 0, 250)
    with pytest.raises(KvchatError) as refused:  # enough for the whole, not for a part
        of_part(parse_method("adakv:budget=60,window=32"), geometry, 0, 250)
    assert refused.value.details["needed"] == 37 * 4  # one entry beside the window and the sinks


def test_progress_counts_the_whole_document(engine):
    steps = engine.stream(IDS, Compression(parse_method("kvzip")), LONG)
    seen = [item for item in steps if isinstance(item, Progress)]
    done = [item.done for item in seen]
    assert done == sorted(done) and done[-1] == seen[-1].total == 2 * len(IDS)


def test_a_question_in_view_is_seen_by_every_part(engine):
    method = parse_method("adakv:budget=60%,window=2")
    work = engine.stream(IDS, Compression(method, (0,)), LONG, [MORE])
    with_question = drain(work).caches[0].layers[1].segments[0].position
    without = streamed(engine, "adakv:budget=60%,window=2").layers[1].segments[0].position
    assert len(with_question) == len(without) and not torch.equal(with_question, without)


def test_segments_join_head_by_head():
    def segment(lengths, first, bias=None):
        rows = sum(lengths)
        k = torch.arange(first, first + rows).float()[:, None].expand(rows, 2)
        span = (first, first + 10)
        return FlatSegment.of(k, k + 0.5, lengths, torch.arange(rows) + first, span, bias)

    joined = segment([1, 2], 0).joined(segment([2, 0], 10, torch.ones(2)))
    assert joined.lengths == (3, 2) and joined.span == (0, 20)
    assert joined.k[:, 0].tolist() == [0, 10, 11, 1, 2]
    assert joined.bias.tolist() == [0, 1, 1, 0, 0] and joined.count is None


def test_a_saved_long_document_is_the_same(engine, tmp_path):
    cache, path = streamed(engine, "kvzip:budget=40%"), tmp_path / "long.kv"
    assert all(segment.bias is None for segment in cache.segments()), (
        "no means of overlapping parts"
    )
    expected = engine.score(cache, MORE)
    save(path, engine, layers_of(cache, 300), IDS, "f", {"created": ""}, saved=cache.saved)
    loaded = load(path, engine, IDS, "f", cache.saved)
    assert torch.equal(engine.score(loaded, MORE), expected)


def test_a_chat_over_a_long_document(folder):
    """It goes on within the window, is undone, read again with another method, and full at last."""
    fitting = new_session(folder)
    ids = fitting.document * (1 + 400 // len(fitting.document))
    limit = 240
    session = Session(fitting.engine, fitting.dialogue, limit=limit, streams=True)
    drain(session.prefill(ids, parse_method("kvzip:budget=50%")))
    assert session.cache.rotary == limit // 2 and session.window == limit + session.cache.saved
    first = list(session.ask("Who?", max_tokens=6))[-1]
    assert isinstance(first, TurnDone) and first.completion_tokens
    session.undo()
    assert session.cache.rotary == limit // 2
    assert list(session.ask("Who?", max_tokens=6))[-1].answer == first.answer
    drain(session.recompress(parse_method("adakv:budget=50%,window=8")))
    assert session.turns and session.cache.rotary <= limit
    with pytest.raises(KvchatError) as refused:
        list(session.ask("Who? " * limit))
    assert refused.value.details["limit"] == limit < refused.value.details["needed"]
    strict = Session(fitting.engine, fitting.dialogue, limit=limit)
    with pytest.raises(KvchatError):
        drain(strict.prefill(ids, parse_method("kvzip")))
    assert reserve_of(limit) == 60
