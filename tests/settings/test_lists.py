"""Lists on the command line: numbers, ranges, and methods with their options."""

import pytest

from kvchat.errors import KvchatError
from kvchat.settings.lists import METHOD_SPECS, WORDS, counts


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        (["512,1k", "2K"], [512, 1000, 2048]),
        (["2-5"], [2, 3, 4, 5]),
        (["16-64+16"], [16, 32, 48, 64]),
        (["10-35+10,7"], [10, 20, 30, 7]),
        (["512-8192*2"], [512, 1024, 2048, 4096, 8192]),
        (["3-80*3"], [3, 9, 27]),
        (["1k-3k+1k"], [1000, 2000, 3000]),
        (["64-64,64"], [64]),
    ],
)
def test_lists_and_ranges(given, numbers):
    assert counts().read("-p", given) == numbers


@pytest.mark.parametrize(
    "text",
    ["", "a", "5-", "-5", "5-2", "4-8*1", "0-8*2", "1-9+0", "1-5000", "2.5", "1-2-3", "4,,5", "99"],
)
def test_what_is_no_list_of_numbers_is_refused(text):
    with pytest.raises(KvchatError) as caught:
        counts(0, 64).read("-p", [text])
    assert caught.value.code == "usage" and "-p" in caught.value.message


def test_an_option_belongs_to_the_method_before_it():
    given = ["full,adakv:window=16,floor=0.3,kvzip,chunk=64", "kvmerger@50"]
    wanted = ["full", "adakv:window=16,floor=0.3", "kvzip:chunk=64", "kvmerger@50"]
    assert METHOD_SPECS.read("--method", given) == wanted
    for bad in (["window=3"], ["full", "window=3"]):
        with pytest.raises(KvchatError) as caught:
            METHOD_SPECS.read("--method", bad)
        assert caught.value.code == "usage"


def test_words_come_once_and_in_order():
    assert WORDS.read("--task", ["b,a", "a", "c"]) == ["b", "a", "c"]
