"""`--method auto`: what is chosen by the memory that is there."""

from dataclasses import replace

import pytest

from kvchat.chat import auto
from kvchat.chat.auto import Space
from kvchat.engine.budget import Budget
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.specs import name_of
from kvchat.engine.model.config import LayerKind, ModelConfig, Rope
from kvchat.machine.plan import Workload, planned
from kvchat.settings.options import Options

GIB = 2**30
CONFIG = ModelConfig(
    family="llama", vocab_size=32000, hidden_size=2048, intermediate_size=8192, num_heads=16,
    num_kv_heads=8, head_dim=128, rms_norm_eps=1e-5, layers=(LayerKind(),) * 16,
    ropes=(Rope(128),), max_position=131072, stretched=131072, dtype="bfloat16",
)  # fmt: skip
TOKENS = 60_000  # 3.66 GiB in full


def choose(space: Space, gated: bool = True, cuda: bool = False, tokens: int = TOKENS,
           loaded: bool = False, window: int = CONFIG.max_position, streams: bool = False,
           **options):  # fmt: skip
    asked = Options(**options)

    def work(method):
        given = CONFIG, 2, tokens, planned(method), window, 512, cuda
        return Workload(*given, streams=streams)

    return auto.choose(asked, gated, work, space, loaded)


def test_everything_is_kept_where_it_fits():
    method, why = choose(Space(16 * GIB, 0, 100 * GIB))
    assert name_of(method) == "full" and method.budget == Budget(fraction=1.0) and why


def test_fewer_bits_come_before_anything_is_left_out():
    bits = [choose(Space(free * GIB // 4, 0, 100 * GIB))[0].bits for free in (36, 28, 24)]
    assert bits == [16, 8, 4]
    for free in (36, 28, 24):
        assert name_of(choose(Space(free * GIB // 4, 0, 100 * GIB))[0]) == "full"


@pytest.mark.parametrize(("host", "home"), [(64 * GIB, "host"), (2 * GIB, "disk")])
def test_what_a_card_has_no_room_for_stays_outside(host, home):
    """Every pair, and each token reads a tenth; on the disk if host memory is short too."""
    method, _ = choose(Space(9 * GIB // 2, host, 100 * GIB), cuda=True)
    assert name_of(method) == "pqcache" and method.home == home
    assert method.budget == auto.READ


def test_without_a_card_the_disk_takes_what_memory_cannot():
    method, _ = choose(Space(9 * GIB // 2, 0, 100 * GIB))
    assert name_of(method) == "pqcache" and method.home == "disk"


@pytest.mark.parametrize(("gated", "name"), [(True, "kvzap"), (False, "kvzip")])
def test_without_room_anywhere_the_best_that_fit_stay(gated, name):
    """The largest budget of the ladder: less memory never keeps more."""
    shares = []
    for free in (36, 28, 24, 20, 19, 18, 17, 4):
        method, _ = choose(Space(free * GIB // 4, 0, GIB), gated)
        shares.append(method.budget.fraction)
        assert name_of(method) == (name if method.budget.fraction < 1 else "full")
        assert method.bits == 4 or shares[-1] == 1.0
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0 and len(set(shares)) > 2


def test_of_a_document_that_exceeds_the_window_a_quarter_is_kept():
    for free, most in ((64 * GIB, 0.25), (5 * GIB, 0.25), (GIB, 0.015625)):
        method, _ = choose(Space(free, 0, 100 * GIB), window=8192, streams=True)
        assert name_of(method) == "kvzap" and method.budget.fraction == most
    assert name_of(choose(Space(64 * GIB, 0, GIB), streams=True)[0]) == "full"  # it fits


def test_what_is_given_by_hand_wins():
    open_ = Options()
    assert auto.is_open(open_)
    for given in ({"budget": "25%"}, {"method": "adakv"}, {"select": "question"}):
        assert not auto.is_open(replace(open_, **given))
    assert auto.unseen(Options(budget="12%"), gated=True).budget == Budget(fraction=0.12)
    few = auto.unseen(Options(kv_bits="8"), gated=False)
    assert few.bits == 8 and METHODS[name_of(few)].pools


def test_bits_go_with_everything():
    method, _ = choose(Space(16 * GIB, 0, 0), kv_bits="4")
    assert (name_of(method), method.bits) == ("full", 4)


def test_a_window_full_of_turns_is_no_reason_to_evict_today():
    """A short document of a model with a long window: 2,000 tokens of 131,072."""
    method, _ = choose(Space(6 * GIB, 0, 0), tokens=2000)
    assert name_of(method) == "full"


def test_what_is_loaded_is_not_planned_again():
    """Of weights and process nothing is asked twice: the rest suffices for everything."""
    space = Space(3 * GIB, 0, 0)
    assert name_of(choose(space, tokens=20_000)[0]) != "full"
    assert name_of(choose(space, tokens=20_000, loaded=True)[0]) == "full"
