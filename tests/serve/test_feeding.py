"""How questions are fed: those that wait go together, long ones by themselves, and one that fails
takes no other along."""

import threading
from types import SimpleNamespace

import pytest
import torch

from kvchat.engine.events import Progress
from kvchat.serve import feeding
from kvchat.serve.feeding import Feeder


class Scripted:
    """An engine that notes what is fed, in so many pieces of work. A token 13 fails."""

    def __init__(self, layers=10):
        self.layers, self.fed, self.closed = layers, [], 0

    def extend_all(self, caches, ids):
        self.fed.append([len(each) for each in ids])
        try:
            for number in range(self.layers):
                if number == 1 and any(13 in each for each in ids):
                    raise RuntimeError("thirteen")
                yield Progress(number, self.layers, number + 1, self.layers, 0)
        except GeneratorExit:
            self.closed += 1
            raise
        return torch.tensor([[each[-1]] for each in ids])

    def extend(self, cache, ids):
        return (yield from self.extend_all([cache], [ids]))[0]


@pytest.fixture
def scene():
    """A feeder; what it has fed by the last token, and who has failed."""
    engine, done, failed = Scripted(), [], []
    feeder = Feeder(
        engine,
        lambda asker, logits: done.append((asker.name, int(logits[0]))),
        lambda asker, error: failed.append((asker.name, str(error))),
    )
    return SimpleNamespace(engine=engine, feeder=feeder, done=done, failed=failed)


def asker(name, ids, opens=True):
    def begin(engine):
        if not opens:
            raise LookupError("no cache")

    wanted = SimpleNamespace(ids=ids)
    gone = threading.Event()
    return SimpleNamespace(name=name, wanted=wanted, cache=object(), begin=begin, gone=gone)


def finish(feeder):
    steps = 0
    while not feeder.is_idle:
        feeder.step()
        steps += 1
        assert steps < 100
    return steps


def test_those_that_wait_are_fed_together(scene):
    scene.feeder.add(asker("a", [1, 2]))
    for _ in range(5):
        scene.feeder.step()
    for name in "bcd":
        scene.feeder.add(asker(name, [ord(name)]))
    finish(scene.feeder)
    assert scene.engine.fed == [[2], [1, 1, 1]], "b to d gathered while a was fed"
    assert scene.done == [("a", 2), ("b", 98), ("c", 99), ("d", 100)]


def test_a_group_that_has_just_begun_is_begun_anew_once(scene):
    for name in "abc":
        scene.feeder.add(asker(name, [ord(name)]))
        scene.feeder.step()
    finish(scene.feeder)
    assert scene.engine.fed == [[1], [1, 1], [1]] and scene.engine.closed == 1
    assert scene.done == [("a", 97), ("b", 98), ("c", 99)]


def test_as_many_as_do_not_hold_up_others(scene):
    half = feeding.TOGETHER // 2
    for name in "abc":
        scene.feeder.add(asker(name, [1] * half))
    finish(scene.feeder)
    assert scene.engine.fed == [[half, half], [half]]


def test_a_long_one_is_fed_beside_short_ones(scene):
    scene.feeder.add(asker("long", [1] * (feeding.TOGETHER + 1)))
    scene.feeder.step()
    scene.feeder.add(asker("a", [2]))
    scene.feeder.add(asker("b", [3]))
    finish(scene.feeder)
    assert scene.engine.fed == [[feeding.TOGETHER + 1], [1, 1]]
    assert {name for name, _ in scene.done} == {"long", "a", "b"}


def test_who_has_gone_is_left_out(scene):
    askers = [asker(name, [1]) for name in "abc"]
    for each in askers:
        scene.feeder.add(each)
    for _ in range(5):
        scene.feeder.step()
    late = asker("d", [1])
    scene.feeder.add(late)
    askers[1].gone.set()
    late.gone.set()
    scene.feeder.drop_gone()
    finish(scene.feeder)
    assert [name for name, _ in scene.done] == ["a", "c"] and not scene.engine.closed
    scene.feeder.add(askers[1])
    scene.feeder.step()
    scene.feeder.drop_gone()
    assert scene.feeder.is_idle and scene.engine.closed == 1, "nobody waits for that work"


def test_one_that_fails_takes_no_other_along(scene):
    scene.feeder.add(asker("a", [1]))
    scene.feeder.add(asker("bad", [13]))
    scene.feeder.add(asker("c", [3]))
    scene.feeder.add(asker("closed", [4], opens=False))
    finish(scene.feeder)
    assert scene.failed == [("closed", "no cache"), ("bad", "thirteen")]
    assert scene.done == [("a", 1), ("c", 3)]
    scene.feeder.add(asker("d", [5]))
    scene.feeder.add(asker("e", [6]))
    finish(scene.feeder)
    assert scene.engine.fed[-1] == [1, 1], "and later ones go together again"
