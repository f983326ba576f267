"""What an answer attends to in its document: the same however the queries come, over every kind of
segment."""

import pytest
import torch

from kvchat.engine import attribution
from kvchat.engine.budget import Budget
from kvchat.engine.methods.build import parse_method
from tests.engine.scripted import ask, new_session
from tests.engine.tiny import random_ids, read

IDS = random_ids(200)


@pytest.fixture
def folder(chat_folder):
    return chat_folder("byte-level", "chatml")


def weights(engine, method, answer):
    """What `answer` attends to, from queries that pass once more, over a cache of one method."""
    cache, _ = read(engine, IDS, method)
    list(engine.extend(cache, answer))
    found = attribution.replayed(engine.model, cache, answer)
    return attribution.attended(found, dict(enumerate(answer[1:], len(IDS))), IDS)


def test_kept_queries_are_those_that_pass_once_more(folder):
    session = new_session(folder)
    ask(session, "What did he count?", max_tokens=9)
    kept = session.attended()
    assert session._seen and kept.shape == (len(session.document),) and float(kept.sum()) > 0
    session._seen = []
    torch.testing.assert_close(session.attended(), kept, rtol=1e-3, atol=1e-5)
    ask(session, "Why?", max_tokens=3)
    later = session.attended()
    session.undo()
    torch.testing.assert_close(session.attended(), kept, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(later, kept)
    session.clear()
    assert session.attended() is None


@pytest.mark.parametrize("spec", ["pqcache:home=host", "full:bits=8", "pqcache"])
def test_every_segment_that_keeps_all_tells_the_same(engine, spec):
    answer = IDS[50:60]
    budget = Budget(fraction=0.4) if spec.startswith("pqcache") else None
    exact = weights(engine, parse_method("full"), answer)
    close = 0.05 if "bits" in spec else 1e-4
    found = weights(engine, parse_method(spec, budget), answer)
    torch.testing.assert_close(found, exact, rtol=close, atol=close * float(exact.max()))


def test_of_a_long_document_fewer_tokens_ask(engine, monkeypatch):
    asked, rows = [], attribution.Queries.rows
    note = lambda self, positions: asked.append(len(positions)) or rows(self, positions)  # noqa: E731
    monkeypatch.setattr(attribution.Queries, "rows", note)
    answer = IDS[50:70]
    for pairs, most in ((10**6, 19), (12 * len(IDS), 12), (1, attribution.FEWEST)):
        monkeypatch.setattr(attribution, "PAIRS", pairs)
        found = weights(engine, parse_method("full"), answer)
        assert asked[-1] == most and float(found.sum()) > 0


def test_what_is_evicted_counts_nothing(engine):
    method = parse_method("streamingllm", Budget(fraction=0.3))
    found = weights(engine, method, IDS[50:60])
    kept = (found > 0).nonzero().flatten().tolist()
    assert kept and not [at for at in kept if 8 < at < 120], "beginning and end are kept"


def test_attention_is_summed_over_heads_and_queries(engine):
    """By the definition, from dense keys."""
    cache, _ = read(engine, IDS)
    list(engine.extend(cache, IDS[:5]))
    following = dict(enumerate([IDS[7], IDS[9], -1, -1, -1], len(IDS)))
    queries = attribution.replayed(engine.model, cache, IDS[:5])
    [numbers] = [attribution.numbers(engine.config)]
    every, copied = torch.zeros(5, len(IDS)), torch.zeros(len(IDS))
    for number, each in zip(numbers, queries, strict=True):
        keys = cache.layers[number].segments[0].k.view(2, len(IDS), -1)
        for t in range(5):
            q, lse = (found[0] for found in each.rows([len(IDS) + t]))
            for head in range(len(q)):
                scores = keys[head // 2] @ q[head] * q.shape[1] ** -0.5
                mass = torch.exp(scores - lse[head])
                every[t] += mass
                copied += mass * (torch.tensor(IDS) == following[len(IDS) + t])
    beyond = every.amax(0) - every.mean(0)
    wanted = copied + attribution.UNCOPIED * beyond**2 / every.amax(0)
    found = attribution.attended(queries, following, IDS)
    torch.testing.assert_close(found, wanted / (4 * len(numbers)), rtol=1e-3, atol=1e-6)
