"""What users write for a budget and a method: forms, defaults, errors that show a way out."""

from dataclasses import replace

import pytest

from kvchat.engine.budget import DEFAULT_BUDGET, Budget, Geometry
from kvchat.engine.methods import DEFAULT, METHODS
from kvchat.engine.methods.naming import method_options, name_of
from kvchat.engine.methods.spec import options, parse_method
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
    ],
)
def test_forms_of_a_budget(text, want):
    assert Budget.parse(text) == want


@pytest.mark.parametrize(
    "text", ["", "much", "-5", "25 percent", "0", "0%", "101%", "1.5", "0B", "2T", "1e3", "%", "k"]
)
def test_what_is_no_budget_says_so_and_shows_one(text):
    with pytest.raises(KvchatError) as caught:
        Budget.parse(text)
    assert caught.value.code == "usage" and caught.value.tries
    assert text in caught.value.message


def test_a_share_without_a_percent_sign_is_explained():
    with pytest.raises(KvchatError) as caught:
        Budget.parse("0.25")
    assert any("--budget 25%" in text for text in caught.value.tries)


@pytest.mark.parametrize("text", ["25%", "12.5%", "2048", "1.5GiB", "300MiB", "1000001B", "64KiB"])
def test_a_budget_prints_as_it_is_read(text):
    assert Budget.parse(str(Budget.parse(text))) == Budget.parse(text)


def test_rows_are_exact_and_never_more_than_there_are():
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


def test_the_default_method_is_in_the_table():
    assert DEFAULT in METHODS


def test_a_spec_sets_options_of_their_types():
    method = parse_method("adakv:budget=20%, window=16,floor=0.3,pool=avg,kernel=5")
    assert method.budget == Budget(fraction=0.2)
    assert method_options(method) == {
        "window": 16, "kernel": 5, "pool": "avg", "sinks": 4, "floor": 0.3, "rule": "floor",
        "score_by": "mass",
    }  # fmt: skip


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
        ("adakv:window=1.5", "whole number", "adakv:window=32"),
        ("adakv:floor=low", "a number", "adakv:floor=0.2"),
        ("adakv:floor=1.5", "floor=1.5", "floor=0.2"),
        ("adakv:floor=nan", "floor=nan", "floor=0.2"),
        ("snapkv:window=0", "window=0", "window=32"),
        ("snapkv:kernel=4", "kernel=4", "kernel=7"),
        ("snapkv:pool=min", "pool=min", "pool=max"),
        ("snapkv:sinks=-1", "sinks=-1", "sinks=4"),
        ("streamingllm:sinks=-1", "sinks=-1", "sinks=4"),
        ("snapkv:budget=lots", "lots", "--budget"),
        ("snapkv@papr", "papr", "--method snapkv"),
    ],
)
def test_a_wrong_spec_says_what_and_proposes(spec, said, proposed):
    with pytest.raises(KvchatError) as caught:
        parse_method(spec)
    assert caught.value.code == "usage" and caught.value.exit_code == 2
    assert said in caught.value.message
    assert any(proposed in text for text in caught.value.tries)


def test_a_method_without_options_takes_none():
    with pytest.raises(KvchatError, match="takes no options"):
        parse_method("full:budget=10%")
