"""KVzip's scores (`frontier.md` 2.3): the hand-worked oracle, and a computation that has the
rows of all layers and all attention at once."""

import math

import pytest
import torch
from closeness import assert_close

from engine.scenes import kept_tokens
from engine.scripted import BOOK, new_session
from engine.tiny import load_engine, load_oracle, random_ids, torch_backend
from kvchat.engine import replay as replaying
from kvchat.engine.budget import Budget
from kvchat.engine.cache.layer import LayerCache
from kvchat.engine.cache.tail import Tail
from kvchat.engine.events import drain
from kvchat.engine.methods.base import Needs
from kvchat.engine.methods.evict import keep_all
from kvchat.engine.methods.full import Full
from kvchat.engine.methods.kvzip import KVzip, KVzipPlus
from kvchat.engine.methods.spec import parse_method
from kvchat.engine.prefill import Compression
from kvchat.engine.replay import Replay, ReplayScores

IDS = random_ids(70, seed=9)


class Recorder(Full):
    """Keeps everything and remembers the scores that it was shown."""

    needs = Needs(replay=True, replay_change=True)

    def __init__(self):
        self.__dict__["shown"] = []

    def compress(self, given):
        self.shown.append((given.replay_mass, given.replay_change))
        return keep_all(given)


def layer_of(keys, values):
    tail = Tail(keys.shape[0], keys.shape[2], torch.float32, torch.device("cpu"))
    tail.append(keys, values)
    return LayerCache(tail, torch_backend())


def test_2_3_the_hand_worked_oracle():
    """Keys 0, ln 3, 0, 0, queries 1 and -1: KVzip (.3, .6), KVzip+ with norms 4 and 1 (1.2, .3)."""
    keys = torch.tensor([[[0.0], [math.log(3)], [0.0], [0.0]]])
    values = torch.tensor([[[4.0], [1.0], [9.0], [9.0]]])
    q = torch.tensor([[[1.0]], [[-1.0]]])
    scores = ReplayScores(
        Replay([0, 0], 0, 2), sizes=torch.tensor([2.0, 1.0]), output=torch.ones(1, 1, 1)
    )
    scores.see(q, q[..., 0], layer_of(keys, values), 1.0, q, q)
    assert_close("KVzip", scores.mass, torch.tensor([[0.3, 0.6]]), 1e-6)
    assert_close("KVzip+", scores.change, torch.tensor([[1.2, 0.3]]), 1e-6)


@torch.inference_mode()
def materialised(folder, chunks, replays, plus: bool) -> list[torch.Tensor]:
    """Scores `[H, T]` per layer from transformers' own projections, all replays apart."""
    oracle = load_oracle(folder, "eager")
    heads, group, dim = 2, 2, 16
    found = [torch.full((heads, len(IDS)), float("inf")) for _ in oracle.model.layers]
    for (a, b), replay in zip(chunks, replays, strict=True):
        seen: list[dict] = [{} for _ in oracle.model.layers]
        hooks = []
        for store, layer in zip(seen, oracle.model.layers, strict=True):
            names = (("q", layer.self_attn.q_proj), ("v", layer.self_attn.v_proj),
                     ("x", layer.input_layernorm))  # fmt: skip
            for name, module in names:
                hooks.append(
                    module.register_forward_hook(
                        lambda _, __, out, s=store, n=name: s.__setitem__(n, out[0])
                    )
                )
        past = oracle(torch.tensor([IDS + replay]), use_cache=True).past_key_values
        for hook in hooks:
            hook.remove()
        total, length = len(IDS) + len(replay), len(replay)
        cos, sin = oracle.model.rotary_emb(seen[0]["q"], torch.arange(total)[None])
        for number, (layer, store) in enumerate(zip(oracle.model.layers, seen, strict=True)):
            q = store["q"].view(total, heads * group, dim)
            half = torch.cat((-q[..., 8:], q[..., :8]), dim=-1)
            q = (q * cos[0][:, None] + half * sin[0][:, None])[len(IDS) :]
            keys = past.layers[number].keys[0]
            sinks = min(4, a)
            columns = [*range(sinks), *range(a, b), *range(len(IDS), total)]
            visible = torch.ones(length, len(columns), dtype=torch.bool)
            visible[:, sinks + b - a :] = torch.ones(length, length).tril().bool()
            values = store["v"].view(total, heads, dim)
            output = layer.self_attn.o_proj.weight.t().view(heads * group, dim, -1)
            for head in range(heads):
                best = torch.zeros(b - a)
                for g in range(group):
                    logits = q[:, head * group + g] @ keys[head, columns].T / math.sqrt(dim)
                    mass = logits.masked_fill(~visible, float("-inf")).softmax(-1)
                    mass = mass[:, sinks : sinks + b - a]
                    if plus:
                        norm = (values[a:b, head] @ output[head * group + g]).norm(dim=-1)
                        mass = mass * norm / store["x"][len(IDS) :].norm(dim=-1)[:, None]
                    best = torch.maximum(best, mass.amax(0))
                found[number][head, a:b] = best
    return found


@pytest.mark.parametrize("logits", [1, 300, 2**22])
def test_2_4_layer_by_layer_equals_all_at_once(checkpoint, monkeypatch, logits):
    """Chunks of 30 behind a prefix of 3 tokens, each after an instruction of 5."""
    monkeypatch.setattr(replaying, "LOGITS", logits)
    chunks = [(3, 33), (33, 63), (63, 70)]
    asked = [random_ids(5, seed=n) for n in range(3)]
    texts = [[*ask, *IDS[a:b]] for ask, (a, b) in zip(asked, chunks, strict=True)]
    replays = [Replay(ids, a, b) for ids, (a, b) in zip(texts, chunks, strict=True)]
    engine, recorder = load_engine(checkpoint(), chunk=16), Recorder()
    reading = drain(engine.prefill(IDS, [Compression(recorder)], replays=replays))
    plain = drain(engine.prefill(IDS, [Compression(Full())]))
    assert torch.equal(reading.logits, plain.logits), "replays leave no trace"
    assert reading.caches[0].memory() == plain.caches[0].memory()
    for plus in (False, True):
        want = materialised(checkpoint(), chunks, texts, plus)
        for got, table in zip(recorder.shown, want, strict=True):
            assert_close("scores", got[plus][:, 3:], table[:, 3:], 1e-6 if not plus else 1e-5)
            assert bool(got[plus][:, :3].isinf().all()), "the prefix is protected"


@pytest.mark.parametrize("kind", [KVzip, KVzipPlus])
def test_the_best_rows_of_a_layer_stay(checkpoint, kind):
    engine, recorder = load_engine(checkpoint()), Recorder()
    drain(engine.prefill(IDS, [Compression(recorder)]))
    method = kind(Budget(fraction=0.3), sinks=0, over=1)
    cache = drain(engine.prefill(IDS, [Compression(method)])).caches[0]
    for table, segment in zip(recorder.shown, cache.segments(), strict=True):
        scores = table[kind is KVzipPlus].clone()
        scores[:, -1] = float("inf")  # the newest row stays
        best = scores.flatten().sort(descending=True, stable=True).indices[: round(0.3 * 140)]
        want = torch.zeros(140, dtype=torch.bool)
        want[best] = True
        rows = [row.nonzero().flatten().tolist() for row in want.view(2, 70)]
        assert kept_tokens(segment) == rows


@pytest.mark.parametrize("kind", [KVzip, KVzipPlus])
def test_the_best_rows_of_all_layers_stay(checkpoint, kind):
    """With room for it while reading, as if all layers' scores had been there at once."""
    engine, recorder = load_engine(checkpoint()), Recorder()
    drain(engine.prefill(IDS, [Compression(recorder)]))
    scores = torch.stack([table[kind is KVzipPlus] for table in recorder.shown])  # [L, H, T]
    scores[:, :, -1] = float("inf")
    best = scores.flatten().sort(descending=True, stable=True).indices[: 2 * round(0.3 * 140)]
    want = torch.zeros(280, dtype=torch.bool)
    want[best] = True
    for over, equal in ((4.0, True), (1.0, False)):
        method = kind(Budget(fraction=0.3), sinks=0, over=over)
        cache = drain(engine.prefill(IDS, [Compression(method)])).caches[0]
        rows = [kept_tokens(segment) for segment in cache.segments()]
        whole = [[r.nonzero().flatten().tolist() for r in layer] for layer in want.view(2, 2, 70)]
        assert (rows == whole) == equal
    few = parse_method(f"{kind.name}:bits=8,over=4,sinks=0", Budget(fraction=0.3))
    cache = drain(engine.prefill(IDS, [Compression(few)])).caches[0]
    lengths = [segment.lengths for segment in cache.segments()]
    assert lengths == [tuple(map(len, layer)) for layer in whole]
    assert all(segment.kind == "quantized" for segment in cache.segments())


def test_replays_count_as_reading(checkpoint):
    events = []
    engine = load_engine(checkpoint(), chunk=40)
    drain(engine.prefill(IDS, [Compression(KVzip(Budget(fraction=0.3)))]), events.append)
    assert [e.done for e in events] == [40, 70, 140, 180, 210, 280]
    assert {e.total for e in events} == {280}


def test_a_session_repeats_the_document_in_parts(chat_folder, monkeypatch):
    """Parts follow each other from the document's first token on, each after its instruction."""
    session = new_session(chat_folder("byte-level", "chatml"))
    dialogue = session.dialogue
    ids = dialogue.document(BOOK)
    monkeypatch.setattr("kvchat.engine.dialogue.REPLAY", 9)
    replays = dialogue.replays(ids)
    assert len(replays) > 2
    prefix = replays[0].start
    assert dialogue.tokenizer.decode(ids[prefix:]).startswith("The keeper")
    assert [r.start for r in replays] == list(range(prefix, len(ids), 9))
    assert [r.end for r in replays[:-1]] == [r.start for r in replays[1:]]
    assert replays[-1].end == len(ids)
    for replay in replays:
        assert list(replay.ids[-(replay.end - replay.start) :]) == ids[replay.start : replay.end]
    drain(session.open(ids, KVzip(Budget(fraction=0.5))))
    assert all(min(rows) == 0 for s in session.cache.segments() for rows in kept_tokens(s))
