"""Several caches that take a token each in one step: the answers are those that each has alone."""

import pytest
import torch

from kvchat.engine.decode.compiled import CompiledStep
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.engine import Engine
from kvchat.engine.events import drain
from kvchat.engine.methods.build import parse_method
from tests.engine.test_families import CASES
from tests.engine.test_low_bit import SHAPE as WIDE
from tests.engine.tiny import load_engine, random_ids, read
from tests.support.closeness import assert_close

IDS = random_ids(150)
QUESTIONS = [random_ids(count, seed=count) for count in (3, 9, 1, 30, 5)]
METHODS = (
    "full", "adakv:budget=40%,window=8", "kvzip:budget=60%,bits=4", "streamingllm:budget=40%",
    "pqcache:budget=20%,block=4,dense_below=100", "kcache:budget=40%,block=4,dense_below=100",
    "squeezed:budget=40%,block=4,dense_below=100", "less:budget=60%",
)  # fmt: skip


def alone(engine, cache, question, tokens=8):
    """What one asker is answered, and the last logits."""
    cache = cache.fork()
    logits = drain(engine.extend(cache, question))
    drawn = engine.decode(cache, logits, Sampling())
    return [next(drawn) for _ in range(tokens)], cache


def together(engine, cache, questions, tokens=8):
    """The same of several, by steps that they share; each joins a token later than the last and
    leaves when it has so many tokens."""
    waiting = [(number, cache.fork()) for number in range(len(questions))]
    running, answers, sizes = [], [[] for _ in questions], []
    while waiting or running:
        if waiting:
            number, own = waiting.pop(0)
            answers[number].append(int(drain(engine.extend(own, questions[number])).argmax()))
            running.append((number, own))
        sizes.append(len(running))
        logits = engine.step([own for _, own in running], [answers[n][-1] for n, _ in running])
        for (number, _), row in zip(running, logits, strict=True):
            answers[number].append(int(row.argmax()))
        running = [each for each in running if len(answers[each[0]]) < tokens]
    return answers, sizes


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("method", METHODS)
def test_answers_are_those_of_one_asker(checkpoint, kernels, method):
    made = load_engine(checkpoint())
    engine = Engine(made.model, kernels=kernels)
    vars(engine)["features"] = made.features
    cache, _ = read(engine, IDS, parse_method(method))
    before = cache.memory()
    answers, sizes = together(engine, cache, QUESTIONS)
    assert max(sizes) == 5 and min(sizes) == 1
    assert answers == [alone(engine, cache, question)[0] for question in QUESTIONS]
    assert cache.memory() == before and cache.position == len(IDS), "the document is as it was"


@pytest.mark.parametrize("method", METHODS)
def test_questions_are_fed_as_each_alone(checkpoint, method):
    """Of several documents, behind turns and none, of one token and of many: in one pass."""
    engine = load_engine(checkpoint())
    cache, _ = read(engine, IDS, parse_method(method))
    other, _ = read(engine, random_ids(40, seed=7))
    starts = [cache, cache, other, cache, engine.empty_cache()]
    ours, theirs = ([own.fork() for own in starts] for _ in range(2))
    for rounds in range(2):
        asked = [question[rounds:] or [3] for question in QUESTIONS]
        got = drain(engine.extend_all(ours, asked))
        want = torch.stack([
            drain(engine.extend(own, ids)) for own, ids in zip(theirs, asked, strict=True)
        ])  # fmt: skip
        assert_close("logits", got, want, 1e-5)
        assert [own.position for own in ours] == [own.position for own in theirs]
    for mine, single in zip(ours, theirs, strict=True):
        for one, two in zip(mine.walked, single.walked, strict=True):
            assert one.tail.start == two.tail.start
            assert_close("keys", one.tail.keys, two.tail.keys, 1e-5)


def test_feeding_that_is_given_up_leaves_nothing(checkpoint):
    engine = load_engine(checkpoint())
    cache, _ = read(engine, IDS, parse_method("adakv:budget=40%,window=8"))
    forks = [cache.fork() for _ in range(3)]
    work = engine.extend_all(forks, QUESTIONS[:3])
    next(work)
    assert forks[1].walked[0].tail.length > cache.walked[0].tail.length
    work.close()
    for own in forks:
        assert own.position == len(IDS)
        for layer, before in zip(own.walked, cache.walked, strict=True):
            assert layer.tail.length == before.tail.length


@pytest.mark.parametrize("case", ["gemma2", "gemma3", "qwen3", "phi3", "granite"])
def test_families(tmp_path, case):
    """Windows, norms, scalars: logits by both ways of a step are those of one token at a time."""
    from tests.engine.tiny import save_model

    named = next(name for name in CASES if name.startswith(case))
    engine = load_engine(save_model(tmp_path, **({"num_hidden_layers": 3} | CASES[named])))
    cache, _ = read(engine, IDS)
    ours, theirs, single = ([cache.fork() for _ in range(3)] for _ in range(3))
    for own in (*ours, *theirs, *single):
        drain(engine.extend(own, [1, 2]))
    plain = Engine(engine.model, kernels="torch")
    for tokens in ([3, 4, 5], [6, 7, 8]):
        got = engine.step(ours, tokens).clone()
        other = plain.step(theirs, tokens).float()
        want = torch.stack([
            drain(engine.extend(own, [token])) for own, token in zip(single, tokens, strict=True)
        ]).float()  # fmt: skip
        assert_close("compiled", got, want, 1e-5)
        assert_close("torch", other, want, 1e-5)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_weights_in_few_bits(checkpoint, weights):
    """Rows of a batch are computed as one by itself."""
    engine = load_engine(checkpoint(**WIDE), weights=weights)
    cache, _ = read(engine, IDS)
    caches = [cache.fork() for _ in range(5)]
    tokens = [7, 8, 9, 10, 11]
    got = engine.step(caches, tokens).clone()
    step = CompiledStep(engine.model)
    for row, token in zip(got, tokens, strict=True):
        assert_close("logits", row, step(cache.fork(), token), 1e-4)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_questions_in_few_bits(checkpoint, weights):
    """A question's numbers are the same whatever is fed beside it, and close to a chat's."""
    engine = load_engine(checkpoint(**WIDE), weights=weights)
    cache, _ = read(engine, IDS)
    questions = [random_ids(count, seed=count) for count in (3, 9, 1)]
    many = drain(engine.extend_all([cache.fork() for _ in questions], questions))
    for row, question in zip(many, questions, strict=True):
        alone = drain(engine.extend_all([cache.fork()], [question]))[0]
        assert_close("alone", row, alone, 1e-5 if weights == "int4" else 1e-2)
        assert_close("chat", row, drain(engine.extend(cache.fork(), question)), 5e-2)


def test_a_fork_shares_what_is_frozen(checkpoint):
    engine = load_engine(checkpoint())
    cache, _ = read(engine, IDS, parse_method("adakv:budget=40%,window=8"))
    forks = [cache.fork() for _ in range(3)]
    for own in forks:
        for mine, layer in zip(own.layers, cache.layers, strict=True):
            assert all(a is b for a, b in zip(mine.segments, layer.segments, strict=True))
            assert mine.tail is not layer.tail
    drain(engine.extend(forks[0], [1, 2, 3]))
    assert [own.position for own in forks] == [len(IDS) + 3, len(IDS), len(IDS)]


def test_caches_that_are_left_out_are_let_go_of(checkpoint):
    import gc
    import weakref

    engine = load_engine(checkpoint())
    cache, _ = read(engine, IDS, parse_method("adakv:budget=40%,window=8"))
    forks = [cache.fork() for _ in range(3)]
    engine.step(forks, [1, 2, 3])
    held = weakref.ref(forks[2].layers[0].tail.k)
    del forks[2]
    engine.step(forks, [1, 2])
    gc.collect()
    assert held() is None
