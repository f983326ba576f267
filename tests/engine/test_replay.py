"""KVzip's scores (arXiv 2505.23416): the hand-worked oracle, and a computation that has the
entries of all layers and all attention at once."""

import math
from itertools import product

import pytest
import torch

from kvchat.engine.budget import Budget
from kvchat.engine.cache.tail import Tail
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.methods.kvzip import Askall, KVzip, KVzipPlus
from kvchat.engine.methods.needs import Needs, ReplayScore
from kvchat.engine.methods.options import ASK, REPEAT, WEIGHINGS, WHOLE
from kvchat.engine.methods.simple import Full
from kvchat.engine.methods.specs import name_of
from kvchat.engine.prefill import replay as replaying
from kvchat.engine.prefill import replay_texts as telling
from kvchat.engine.prefill.prefill import Compression
from kvchat.engine.prefill.replay import Replay, scores
from tests.engine.scenes import Recorder, kept_tokens
from tests.engine.scripted import BOOK, new_session
from tests.engine.tiny import load_engine, load_oracle, random_ids
from tests.support.closeness import assert_close

IDS = random_ids(70, seed=9)


KINDS = [(REPEAT, 512), (WHOLE, 512), (ASK, 2048)]
NEEDS = Needs(
    replay_scores=frozenset(ReplayScore(*k, weigh) for k, weigh in product(KINDS, WEIGHINGS))
)


def test_the_hand_worked_oracle():
    """Keys 0, ln 3, 0, 0, queries 1 and -1: KVzip (.3, .6), KVzip+ with norms 4 and 1 (1.2, .3)."""
    tail = Tail(1, 1, torch.float32, torch.device("cpu"))
    tail.append(torch.tensor([[[0.0], [math.log(3)]]]), torch.tensor([[[4.0], [1.0]]]))
    q = torch.tensor([[[1.0]], [[-1.0]]])
    own = torch.tensor([[0.0], [math.log(2)]])  # keys of the replay are 0: one is seen, then two
    sizes, output = torch.tensor([2.0, 1.0]), torch.ones(1, 1, 1)
    replay = Replay((REPEAT, 512), ([0, 0],), 0, 2)
    found = scores(tail, q, own, replay, set(WEIGHINGS), 1.0, sizes, output)
    assert_close("KVzip", found["mass"], torch.tensor([[0.3, 0.6]]), 1e-6)
    assert_close("KVzip+", found["change"], torch.tensor([[1.2, 0.3]]), 1e-6)
    assert_close("without sizes", found["value"], torch.tensor([[1.2, 0.6]]), 1e-6)


@torch.inference_mode()
def materialised(folder, chunks, replays, weigh: str, local=False) -> list[torch.Tensor]:
    """Scores `[H, T]` per layer from transformers' own projections, all replays apart.

    With `local` a replay sees the first four entries and those that it is about.
    """
    oracle = load_oracle(folder, "eager")
    heads, group, dim = 2, 2, 16
    found = [torch.full((heads, len(IDS)), float("inf")) for _ in oracle.model.layers]
    for (a, b), replay in zip(chunks, replays, strict=True):
        seen: list[dict] = [{} for _ in oracle.model.layers]
        hooks = []
        for store, layer in zip(seen, oracle.model.layers, strict=True):
            attention = layer.self_attn
            parts = {"q": attention.q_proj, "v": attention.v_proj, "x": layer.input_layernorm}
            for name, module in parts.items():
                note = lambda _, __, out, s=store, n=name: s.update({n: out[0]})  # noqa: E731
                hooks.append(module.register_forward_hook(note))
        total, length = len(IDS) + len(replay), len(replay)
        shown = torch.ones(total, total).tril().bool()
        if local:
            shown[len(IDS) :, min(4, a) : a] = shown[len(IDS) :, b : len(IDS)] = False
        mask = torch.zeros(1, 1, total, total).masked_fill(~shown, float("-inf"))
        given = torch.tensor([IDS + replay])
        past = oracle(given, attention_mask=mask, use_cache=True).past_key_values
        for hook in hooks:
            hook.remove()
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
                    if weigh != "mass":
                        mass = mass * (values[a:b, head] @ output[head * group + g]).norm(dim=-1)
                    if weigh == "change":
                        mass = mass / store["x"][len(IDS) :].norm(dim=-1)[:, None]
                    best = torch.maximum(best, mass.amax(0))
                old = found[number][head, a:b]
                found[number][head, a:b] = torch.where(old.isinf(), best, torch.maximum(old, best))
    return found


@pytest.mark.parametrize("logits, heads", [(1, 1), (300, 1), (2**22, 1), (300, 2), (2**22, 2)])
def test_layer_by_layer_equals_all_at_once(checkpoint, monkeypatch, logits, heads):
    """Chunks of 30 behind a prefix of 3 tokens, each after an instruction of 5; and each asked in
    three lists of two lengths, that see the document and not each other."""
    monkeypatch.setattr(replaying, "LOGITS", logits)
    monkeypatch.setattr(replaying, "at_once", lambda q, every: min(heads, every))
    chunks = [(3, 33), (33, 63), (63, 70)]
    told = [[*random_ids(5, seed=n), *IDS[a:b]] for n, (a, b) in enumerate(chunks)]
    asked = [[random_ids(n, seed=a + i) for i, n in enumerate((4, 9, 4))] for a, _ in chunks]
    replays = [
        *(
            Replay((what, 512), (ids,), a, b)
            for what in (REPEAT, WHOLE)
            for ids, (a, b) in zip(told, chunks, strict=True)
        ),
        *(Replay((ASK, 2048), tuple(ids), a, b) for ids, (a, b) in zip(asked, chunks, strict=True)),
    ]
    engine, recorder = load_engine(checkpoint(), chunk=16), Recorder(NEEDS)
    reading = drain(engine.prefill(IDS, [Compression(recorder)], replays=replays))
    plain = drain(engine.prefill(IDS, [Compression(Full())]))
    assert torch.equal(reading.logits, plain.logits), "replays leave no trace"
    assert reading.caches[0].memory() == plain.caches[0].memory()
    spread = [(chunk, ids) for chunk, lists in zip(chunks, asked, strict=True) for ids in lists]
    for weigh in WEIGHINGS:
        repeats = materialised(checkpoint(), chunks, told, weigh, local=True)
        wholes = materialised(checkpoint(), chunks, told, weigh)
        asks = materialised(checkpoint(), *zip(*spread, strict=True), weigh)
        for kind, want in zip(KINDS, (repeats, wholes, asks), strict=True):
            for given, table in zip(recorder.shown, want, strict=True):
                got = given.told
                worst = 1e-6 if weigh == "mass" else 1e-5
                assert_close(str(kind), got[*kind, weigh][:, 3:], table[:, 3:], worst)
                assert bool(got[*kind, weigh][:, :3].isinf().all()), "the prefix is protected"


def whole(given: list, method: KVzip) -> torch.Tensor:
    """Worth `[L, H, T]` of all entries: attention, what it changes, or both."""
    tables = [torch.stack([g.told[score] for g in given]) for score in method.scores]
    means = [table.mean(dim=(1, 2), keepdim=True) for table in tables]
    return sum(table * (means[0] / mean) for table, mean in zip(tables, means, strict=True))


def around(worth: torch.Tensor) -> torch.Tensor:
    """The mean of the 5 entries around each, with nothing beyond the ends."""
    tokens = worth.shape[2]
    wide = torch.nn.functional.pad(worth, (2, 2))
    return torch.stack([wide[:, :, n : n + 5].sum(-1) / 5 for n in range(tokens)], dim=2)


@pytest.mark.parametrize(("even", "near"), [(0.0, 0.0), (0.2, 0.5), (1.0, 0.0), (0.35, 2.0)])
@pytest.mark.parametrize("kind", [KVzip, KVzipPlus, Askall])
def test_the_best_entries_of_all_layers_stay(checkpoint, kind, even, near):
    """As if all layers' scores had been there at once, and never more entries than the budget."""
    engine, recorder = load_engine(checkpoint()), Recorder(NEEDS)
    drain(engine.prefill(IDS, [Compression(recorder)]))
    method = kind(Budget(fraction=0.3), sinks=0, even=even, near=near, means=0)
    worth = whole(recorder.shown, method)
    within = worth + near * around(worth)
    worth[:, :, -1] = within[:, :, -1] = float("inf")
    layers, heads, tokens = worth.shape
    total = layers * round(0.3 * heads * tokens)
    among = torch.zeros_like(worth, dtype=torch.bool).flatten()
    among[worth.flatten().sort(descending=True, stable=True).indices[:total]] = True
    pooled = among.view_as(worth).sum(dim=2).flatten()
    exact = even * total / (layers * heads) + (1 - even) * pooled
    order = within.sort(dim=2, descending=True, stable=True).indices
    seen = []
    reading = drain(engine.prefill(IDS, [Compression(method)]), lambda event: seen.append(event))
    kept = [kept_tokens(segment) for segment in reading.caches[0].segments()]
    lengths = torch.tensor([[len(head) for head in layer] for layer in kept])
    assert int(lengths.sum()) == total
    assert bool(((lengths.flatten() - exact).abs() < 1).all()), "shares are rounded, no more"
    for number, layer in enumerate(kept):
        for head, chosen in enumerate(layer):
            assert chosen == sorted(order[number, head, : len(chosen)].tolist())
    entry, rounding = 2 * 16 * 4 + 4, layers * heads * (even > 0)
    bound = (total + rounding) * entry + 4 * 3 * layers
    assert max(event.kv_bytes for event in seen) <= bound
    spec = f"{name_of(method)}:bits=8,sinks=0,even={even},near={near},means=0"
    few = parse_method(spec, Budget(fraction=0.3))
    cache = drain(engine.prefill(IDS, [Compression(few)])).caches[0]
    assert [list(segment.lengths) for segment in cache.segments()] == lengths.tolist()
    assert all(segment.kind == "quantized" for segment in cache.segments())


def test_replays_count_as_progress(checkpoint):
    events: list = []
    engine = load_engine(checkpoint(), chunk=40)
    drain(engine.prefill(IDS, [Compression(KVzip(Budget(fraction=0.3)))]), events.append)
    assert [e.done for e in events] == [40, 70, 140, 180, 210, 280]
    assert {e.total for e in events} == {280}


def test_a_session_repeats_the_document_in_parts(folder):
    """Parts follow each other from the document's first token on, each after its instruction."""
    session = new_session(folder)
    ids = session.dialogue.document(BOOK)
    replays = telling.replays_of(session.dialogue, ids, {(REPEAT, 9)})
    assert len(replays) > 2
    prefix = replays[0].start
    assert session.dialogue.tokenizer.decode(ids[prefix:]).startswith("The keeper")
    assert [r.start for r in replays] == list(range(prefix, len(ids), 9))
    assert [r.end for r in replays[:-1]] == [r.start for r in replays[1:]]
    assert replays[-1].end == len(ids)
    for replay in replays:
        assert replay.ids[-(replay.end - replay.start) :] == ids[replay.start : replay.end]
    drain(session.prefill(ids, KVzip(Budget(fraction=0.5))))
    assert all(min(entries) == 0 for s in session.cache.segments() for entries in kept_tokens(s))


ASKED = """The keeper of the light is Ada. Is it far? No!

ERROR 17: disk full
灯台の守り人はアダです。"""


def test_a_session_asks_the_sentences_of_a_document(folder):
    """The beginning is the first question, the end its answer, in the form of the template."""
    session = new_session(folder)
    dialogue = session.dialogue
    replays = telling.replays_of(dialogue, dialogue.document(ASKED), {(ASK, 2048)})
    texts = [dialogue.tokenizer.decode(text) for replay in replays for text in replay.texts]
    for question, answer in (
        ("The keeper of the light?", "is Ada."), ("Is it?", "far?"),
        ("ERROR 17: disk?", "full"), ("灯台の守り人はア?", "ダです。"),
    ):  # fmt: skip
        exact = dialogue.tokenizer.decode(dialogue.exchange(question, answer))
        assert exact.endswith(answer) and exact in texts
    assert all(replay.start == replays[0].start > 0 for replay in replays)


def test_long_lines_are_cut_and_every_token_is_asked_once(folder):
    dialogue = new_session(folder).dialogue
    ids = dialogue.document("no end of words " * 40 + ". x. y. And now it ends. z")
    found = list(telling.sentences(dialogue, ids))
    assert [a for a, _ in found] == [0, *(b for _, b in found[:-1])]
    assert found[-1][1] == len(ids)
    assert all(b - a <= telling.LONGEST for a, b in found)
    assert all(b - a >= telling.SHORTEST for a, b in found[:-1])
