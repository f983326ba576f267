"""Memory that runs out at a chunk: half the chunk, once, with the same result; then an error that
leaves the session as it was. And weights that compute no numbers."""

import pytest
import torch

from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.events import Progress, Smaller, drain
from kvchat.engine.methods.spec import parse_method
from kvchat.engine.model.layers import Block
from kvchat.engine.prefill.prefill import Compression
from kvchat.errors import KvchatError, is_out_of_memory
from tests.engine.scenes import assert_same_cache
from tests.engine.scripted import BOOK, ask, new_session
from tests.engine.tiny import load_engine, random_ids

CPU = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 99 bytes"


@pytest.fixture
def scarce(monkeypatch):
    """`scarce(calls)`: those calls of a block's second half find no memory."""

    def install(calls, error=CPU):
        made, finish = [0], Block.finish

        def failing(self, x, o):
            made[0] += 1
            if made[0] in calls:
                raise RuntimeError(error)
            return finish(self, x, o)

        monkeypatch.setattr(Block, "finish", failing)
        return made

    return install


def events_of(work):
    events = []
    return events, drain(work, events.append)


@pytest.mark.parametrize("call", [1, 2, 4, 5, 8])
def test_a_reading_goes_on_with_half_the_chunk(checkpoint, scarce, call):
    ids, method = random_ids(200), Compression(parse_method("adakv:budget=40%"))
    _, want = events_of(load_engine(checkpoint(), chunk=64).prefill(ids, [method]))
    scarce({call})
    events, got = events_of(load_engine(checkpoint(), chunk=64).prefill(ids, [method]))
    assert [e.chunk for e in events if isinstance(e, Smaller)] == [32]
    done = [e.done for e in events if isinstance(e, Progress)]
    assert done == sorted(done) and done[-1] == 400
    assert torch.allclose(got.logits, want.logits, atol=1e-5)
    assert_same_cache(got.caches[0], want.caches[0], 1e-5)


def test_a_second_time_is_an_error_and_the_session_stays(chat_folder, scarce):
    session = new_session(chat_folder("byte-level", "chatml"), chunk=16)
    first = ask(session, "What?", max_tokens=4).answer
    before = (session.cache, session.cache.position, session.turns)
    scarce({2, 3})
    with pytest.raises(RuntimeError) as caught:
        events_of(session.recompress(parse_method("adakv")))
    assert is_out_of_memory(caught.value)
    assert (session.cache, session.cache.position, session.turns) == before
    session.clear()
    assert ask(session, "What?", max_tokens=4).answer == first


def test_other_errors_are_not_tried_again(checkpoint, scarce):
    made = scarce({1}, "shapes")
    work = load_engine(checkpoint()).prefill(random_ids(20), [Compression(parse_method("full"))])
    with pytest.raises(RuntimeError, match="shapes"):
        drain(work)
    assert made == [1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_no_numbers_are_said_to_be(chat_folder, temperature):
    session = new_session(chat_folder("byte-level", "chatml"))
    with torch.inference_mode():
        session.engine.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(KvchatError, match="NaN") as caught:
        ask(session, "What?", sampling=Sampling(temperature=temperature))
    assert caught.value.exit_code == 3 and session.turns == []


KVZIP, ASKALL = "kvzip:budget=40%,chunk=40", "askall:budget=40%"


@pytest.mark.parametrize(("spec", "call"), [(KVZIP, 3), (KVZIP, 5), (ASKALL, 3), (ASKALL, 6)])
def test_a_replay_goes_on_with_half_the_chunk(chat_folder, scarce, spec, call):
    """Calls 1 and 2 of a layer are the document's chunks, then come its replays: 3 and 1."""
    folder, method = chat_folder("byte-level", "chatml"), parse_method(spec)
    want, got = (new_session(folder, book=BOOK * 4, chunk=50) for _ in range(2))
    assert 60 < len(want.document) < 90
    events_of(want.recompress(method))
    scarce({call})
    events, _ = events_of(got.recompress(method))
    assert [e.chunk for e in events if isinstance(e, Smaller)] == [25]
    assert_same_cache(got.cache, want.cache, 1e-5)
