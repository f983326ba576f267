"""What users write for a budget and a method: forms, defaults, errors that show a way out."""

from dataclasses import fields, replace

import pytest

from kvchat.engine.budget import DEFAULT_BUDGET, Budget, Geometry
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.build import parse_method, switched
from kvchat.engine.methods.specs import (
    load,
    method_options,
    name_of,
    options,
    parse_spec,
    spec_of,
)
from kvchat.errors import KvchatError


@pytest.mark.parametrize(
    "text, want",
    [
        ("25%", Budget(fraction=0.25)),
        (" 12.5 % ", Budget(fraction=0.125)),
        ("100%", Budget(fraction=1.0)),
        ("2048", Budget(entries_per_head=2048)),
        ("2k", Budget(entries_per_head=2000)),
        ("2K", Budget(entries_per_head=2048)),
        ("1.5k", Budget(entries_per_head=1500)),
        ("512B", Budget(bytes=512)),
        ("1.5GiB", Budget(bytes=3 * 2**29)),
        ("300MB", Budget(bytes=300_000_000)),
        ("64kib", Budget(bytes=65536)),
        ("1000001B", Budget(bytes=1000001)),
    ],
)
def test_forms_of_a_budget(text, want):
    assert Budget.parse(text) == want
    assert text == "300MB" or Budget.parse(str(want)) == want  # which is printed in MiB


@pytest.mark.parametrize(
    "text",
    ["", "much", "-5", "25 percent", "0", "0%", "101%", "1.5", "0B", "2T", "1e3", "%", "k", "0.25"],
)
def test_what_is_no_budget_says_so_and_shows_one(text):
    with pytest.raises(KvchatError) as caught:
        Budget.parse(text)
    assert caught.value.code == "usage" and caught.value.tries
    assert text in caught.value.message
    assert text != "0.25" or "--budget 25%" in " ".join(caught.value.tries)


def test_entries_are_exact_and_never_more_than_there_are():
    geometry = Geometry(tokens=101, heads=3, layers=2, dim=12, itemsize=4)
    assert Budget(fraction=0.25).entries(geometry) == round(0.25 * 303)
    assert Budget(entries_per_head=7).entries(geometry) == 21
    assert Budget(entries_per_head=7).entries(replace(geometry, tokens=5)) == 15
    assert Budget(bytes=10**9).entries(geometry) == 303


def test_bytes_are_shared_by_layers_and_pay_for_metadata():
    for size in range(2000, 4000, 7):
        entries = Budget(bytes=size).entries(
            Geometry(tokens=1000, heads=3, layers=4, dim=8, itemsize=4)
        )
        assert 4 * (entries * 68 + 4 * (3 + 1)) <= size


@pytest.mark.parametrize("name", METHODS)
def test_a_bare_name_gives_the_defaults(name):
    method = parse_method(name)
    assert name_of(method) == name
    assert method_options(method) == {
        key: option.default for key, option in options(name).items() if key != "budget"
    }
    if "budget" in options(name):
        assert method.budget == DEFAULT_BUDGET


def test_the_nearer_option_wins():
    budget = Budget(fraction=0.5)
    assert parse_method("snapkv", budget).budget == budget
    assert parse_method("snapkv:budget=64", budget).budget == Budget(entries_per_head=64)
    assert parse_method("snapkv", budget, ["window=4"]).window == 4
    assert parse_method("snapkv:window=8", budget, ["window=4"]).window == 8
    assert parse_method("full", budget).budget == Budget(fraction=1.0)


@pytest.mark.parametrize(
    "spec, said, proposed",
    [
        ("adakw", "adakw", "--method adakv"),
        ("", "''", "kvchat methods"),
        ("adakv:windw=3", "windw", "adakv:window=3"),
        ("adakv:window", "window", "adakv:window=VALUE"),
        ("adakv:window=many", "window=many", "adakv:window=32"),
        ("adakv:window=1.5", "window=1.5", "adakv:window=32"),
        ("adakv:floor=low", "floor=low", "adakv:floor=0.2"),
        ("adakv:floor=1.5", "floor=1.5", "floor=0.2"),
        ("adakv:floor=nan", "floor=nan", "floor=0.2"),
        ("snapkv:window=0", "window=0", "window=32"),
        ("snapkv:kernel=4", "kernel=4", "kernel=7"),
        ("snapkv:pool=min", "pool=min", "pool=max"),
        ("snapkv:sinks=-1", "sinks=-1", "sinks=4"),
        ("streamingllm:sinks=-1", "sinks=-1", "sinks=4"),
        ("snapkv:budget=lots", "lots", "--budget"),
        ("snapkv@papr", "papr", "--method snapkv"),
        ("full:budget=10%", "full", ""),
        ("adakv:bits=3", "bits=3", "bits=4"),
        ("adakv:residual=-1", "residual=-1", "residual=0"),
        ("pqcache:bits=8", "pqcache", ""),
    ],
)
def test_a_wrong_spec_says_what_and_proposes(spec, said, proposed):
    with pytest.raises(KvchatError) as caught:
        parse_method(spec)
    assert caught.value.code == "usage" and caught.value.exit_code == 2
    assert said in caught.value.message
    assert any(proposed in text for text in caught.value.tries)


@pytest.mark.parametrize("name", METHODS)
def test_options_are_declared_where_no_torch_is_needed(name):
    """The class takes its options from the declaration; each says what it does."""
    entry = METHODS[name]
    assert entry.options and issubclass(load(name), entry.options)
    assert {f.name for f in fields(load(name))} == options(name).keys()
    assert all(option.help for option in options(name).values())


def test_a_spec_has_every_option_and_says_which_were_given():
    spec = parse_spec("adakv@paper:window=16,bits=4", Budget(fraction=0.5), ["kernel=3"])
    assert (spec.name, spec.values["bits"], spec.budget) == ("adakv", 4, Budget(fraction=0.5))
    assert spec.given == {"window", "bits", "kernel"}
    assert spec.values["rule"] == "mix" and spec.values["floor"] == 0.2
    assert method_options(parse_method("adakv:window=16, floor=0.3,pool=avg,kernel=5")) == {
        "window": 16, "kernel": 5, "pool": "avg", "sinks": 4, "floor": 0.3, "rule": "floor",
        "score_by": "mass", "bits": 16, "residual": 0,
    }  # fmt: skip
    assert parse_spec("full").budget == Budget(fraction=1.0)
    for text in ("adakv:window=16", "kvzip:chunk=64,bits=8", "kvmerger:mode=eps"):
        assert spec_of(parse_method(text)) == text


def test_options_of_earlier_chat_logs_are_read_and_change_nothing():
    old = ["tell=repeat", "chunk=512", "weigh=mass", "demote=1.0"]
    assert parse_method("kvzip", extra=old) == parse_method("kvzip:weigh=mass")
    with pytest.raises(KvchatError):
        parse_method("kvzip", extra=["demote=0.1"])
    old = ["sigma=mean_dist", "score=column", "window=64"]
    assert parse_method("kvmerger", extra=old) == parse_method("kvmerger")


def test_a_method_in_the_place_of_another_keeps_bits_and_options():
    before = parse_method("adakv:bits=4", Budget(fraction=0.1), ["window=16", "floor=0.4"])
    given = ["window=16", "floor=0.4", "bits=4"]
    after = switched("snapkv", before, ["kernel=5"], given)
    assert spec_of(after) == "snapkv:window=16,kernel=5,bits=4"
    assert after.budget == before.budget
    assert switched("snapkv:bits=16,window=8", before, (), given).bits == 16
    assert switched("snapkv:window=8,budget=64", before, (), given).window == 8
    assert switched("kvmerger@35", before, (), given).budget == Budget(fraction=0.35)
    assert switched("kvmerger", before, (), given).budget == before.budget
    assert switched("pqcache", before, (), given).bits == 16, "it keeps entries as they are"
    full = parse_method("full")
    assert switched("kvzip", full).budget == DEFAULT_BUDGET, "full has no budget to keep"
