"""Choosing tokens: every filter against probabilities worked out by hand."""

import pytest
import torch

from kvchat.engine.decode.sampler import Sampler, candidates, distribution, drawn, penalised
from kvchat.engine.decode.sampling import Sampling
from kvchat.errors import KvchatError
from tests.support.closeness import assert_close

CPU = torch.device("cpu")
P = torch.tensor([0.1, 0.4, 0.2, 0.25, 0.05])
LOGITS = P.log() + 3.0


def test_plain_temperature_is_softmax():
    assert_close("1", distribution(LOGITS, Sampling(temperature=1.0)), P, 1e-6)
    squared = P.square() / P.square().sum()
    assert_close("0.5", distribution(LOGITS, Sampling(temperature=0.5)), squared, 1e-6)


@pytest.mark.parametrize(
    "options, kept",
    [
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 1}, [1]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.6}, [1, 3]),  # 0.40 is not enough, 0.65 is
        ({"top_p": 0.66}, [1, 2, 3]),
        ({"top_p": 0.01}, [1]),
        ({"min_p": 0.5}, [1, 2, 3]),  # at least half of 0.4
        ({"min_p": 0.51}, [1, 3]),
        ({"min_p": 1.0}, [1]),
        ({"top_k": 3, "top_p": 0.7}, [1, 3]),  # of 0.85: 0.40 / 0.85 = 0.47, with 0.25: 0.76
        ({"top_k": 4, "min_p": 0.3}, [1, 2, 3]),
    ],
)
def test_filters_keep_the_right_tokens_and_renormalise(options, kept):
    # a hair below a boundary: 0.2 is half of 0.4 up to rounding
    if "min_p" in options and options["min_p"] == 0.5:
        options = {"min_p": 0.4999}
    want = torch.zeros(5)
    want[kept] = P[kept] / P[kept].sum()
    assert_close("p", distribution(LOGITS, Sampling(temperature=1.0, **options)), want, 1e-6)


@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(
    "options",
    [{"top_k": 7}, {"top_p": 0.6}, {"top_p": 0.999}, {"top_k": 40, "top_p": 0.9},
     {"top_p": 0.95, "min_p": 0.05}, {"top_k": 1}, {"top_k": 12, "min_p": 0.2}],
)  # fmt: skip
def test_a_few_candidates_have_the_distribution_of_all(options, spread, rounded):
    """What is not among them has no share; also where many logits are equal."""
    logits = spread * torch.randn(5000, generator=torch.Generator().manual_seed(2))
    logits = logits.round() if rounded else logits
    sampling = Sampling(temperature=0.7, **options)
    ids, few, rest = candidates(logits, sampling)
    assert bool((ids.diff() > 0).all())
    got = torch.zeros(5000).scatter_(0, ids, distribution(few, rest))
    want = distribution(logits, sampling)
    # where top-p ends is a matter of rounding: one token more or less, of equal ones any
    off = int((got > 0).sum() - (want > 0).sum())
    assert abs(off) <= 1 and (off == 0 or "top_k" not in options)
    least = float(want[want > 0].min())
    differ = (got.sort().values - want.sort().values).abs().sum()
    assert float(differ) <= 1e-5 + 2.1 * least * abs(off)
    if not rounded and off == 0:
        assert torch.equal(got > 0, want > 0)
    if spread >= 3 and not rounded:
        assert len(ids) < 3000
    sampler = Sampler(sampling, torch.device("cpu"))
    sampler.waits = True
    assert got[sampler.draw(logits)] > 0


def test_the_penalty_looks_at_generated_tokens_only():
    seen, logits = torch.tensor([True, True, False, False]), torch.tensor([2.0, -2.0, 1.0, -1.0])
    assert penalised(logits, seen, 2.0).tolist() == [1.0, -4.0, 1.0, -1.0]
    sampler = Sampler(Sampling(repeat_penalty=1.5), CPU)
    logits = torch.tensor([3.0, 2.5, 1.0])
    assert [sampler.draw(logits) for _ in range(4)] == [0, 1, 0, 0]
    assert logits.tolist() == [3.0, 2.5, 1.0], "the model's logits stay as they are"


def test_draws_follow_the_probabilities():
    """As those of another seed do, in another order."""
    samplers = [Sampler(Sampling(temperature=1.0, seed=seed), CPU) for seed in (3, 4, 3)]
    draws, other, same = (torch.tensor([s.draw(LOGITS) for _ in range(4000)]) for s in samplers)
    assert torch.equal(draws, same) and not torch.equal(draws, other)
    share = torch.bincount(draws, minlength=5) / 4000
    # four standard deviations of the largest share: 4·sqrt(0.24 / 4000)
    assert float((share - P).abs().max()) < 0.031


def test_a_chance_falls_into_one_token_s_share():
    p = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    last = 1 - 2**-53
    for chance, token in ((0.0, 1), (0.2499, 1), (0.25, 3), (0.9999, 3), (last, 3)):
        assert drawn(p, torch.tensor([chance], dtype=torch.float64)).tolist() == [token]


def test_random_numbers_are_the_same_however_many_are_provided_at_once():
    """A recorded step has them for hundreds of tokens, a plain one for a few."""
    sampling, logits = Sampling(temperature=1.0, seed=9), torch.zeros(5000)
    plain, recorded = Sampler(sampling, CPU), Sampler(sampling, CPU)
    want = [plain.draw(logits) for _ in range(300)]
    got = [recorded.draw(logits)]
    for count in (7, 150, 142):
        recorded.provide(count)
        for _ in range(count):
            got.append(int(recorded.choose(logits)))
            recorded.spend()
    assert got == want and len(set(got)) > 250


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_a_sampler_goes_on_where_another_stopped(temperature, penalty):
    """The random stream and the penalty: 1 token and 15 more, or 8 and 8, are 16 at once."""
    sampling = Sampling(temperature=temperature, repeat_penalty=penalty, seed=5)
    logits = torch.linspace(3.0, 1.0, 40)
    whole = Sampler(sampling, CPU)
    want = [whole.draw(logits) for _ in range(16)]
    for before in (1, 8):
        rest = Sampler(sampling, CPU, drawn=want[:before])
        assert [rest.draw(logits) for _ in range(16 - before)] == want[before:]


@pytest.mark.parametrize(
    "options, flag",
    [
        ({"temperature": -0.1}, "--temp"),
        ({"temperature": float("nan")}, "--temp"),
        ({"top_k": -1}, "--top-k"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.1}, "--top-p"),
        ({"min_p": -0.1}, "--min-p"),
        ({"min_p": 1.1}, "--min-p"),
        ({"repeat_penalty": 0.0}, "--repeat-penalty"),
    ],
)
def test_impossible_values_are_usage_errors(options, flag):
    with pytest.raises(KvchatError, match=flag) as caught:
        Sampling(**options)
    assert caught.value.code == "usage"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_single_nan_is_an_error_and_infinities_are_numbers(temperature):
    sampler = Sampler(Sampling(temperature=temperature, top_k=1, top_p=0.1, min_p=0.9), CPU)
    logits = torch.randn(5000)
    logits[123] = float("-inf")
    assert sampler.draw(logits) == int(logits.argmax())
    logits[4321] = float("nan")
    with pytest.raises(KvchatError, match="NaN"):
        sampler.draw(logits)
