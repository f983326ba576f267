"""Tokenizers that would hang, panic or take all memory: one error, in bounded time."""

import json
import shutil
import time

import pytest

from kvchat.engine.text import guard
from kvchat.engine.text.guard import Guard, wild
from kvchat.engine.text.tokenizer import Tokenizer
from tests.support.errors import refused
from tests.support.intime import in_time

BACKTRACKS = r"(\w+\s?)+$|x"  # 2^n ways to part n letters
HARMLESS = [
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}|\s*[\r\n]|\s+(?!\S)|\s+",
    r"(?=(?:[0-9]{3})+(?![0-9]))",
]


@pytest.fixture
def spoilt(tokenizer_folder, tmp_path):
    """`spoilt(part=…) -> Path`: a tokenizer with other parts."""

    def spoil(**parts):
        folder = shutil.copytree(tokenizer_folder("byte-level"), tmp_path / "texts")
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | parts))
        return folder

    return spoil


def replace(old: str, new: str, kind: str = "String") -> dict:
    return {"type": "Replace", "pattern": {kind: old}, "content": new}


def split(pattern: str) -> dict:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    rest = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {"type": "Sequence", "pretokenizers": [step, rest | {"use_regex": False}]}


def test_a_panic_is_one_line(spoilt, capfd):
    tokenizer = Tokenizer.load(spoilt(pre_tokenizer=split(BACKTRACKS)))
    capfd.readouterr()
    with refused("model", "tokenizer"), in_time(60):
        tokenizer.encode([("a" * 40 + " b.", False)])
    assert capfd.readouterr().err == ""
    assert tokenizer.encode([("x", False)]), "it goes on with another text"


def test_what_others_write_to_stderr_meanwhile_is_not_lost(spoilt, capfd):
    check = Guard(Tokenizer.load(spoilt(pre_tokenizer=split(BACKTRACKS))).hf)
    check(lambda: guard.os.write(2, b"a warning"), 1)
    assert capfd.readouterr().err == "a warning"


@pytest.mark.parametrize(
    ("part", "value", "times"),
    [
        ("normalizer", replace("e", "e" * 100_000), "100,000"),
        ("normalizer", replace("e?", "e" * 40, "Regex"), "41"),
        ("normalizer", {"type": "Sequence", "normalizers": [replace("e", "eeee")] * 12}, "16,777"),
        ("decoder", {"type": "Sequence", "decoders": [replace("e", "e" * 10**6)]}, "1,000,000"),
    ],
)
def test_parts_that_multiply_a_text_are_refused_before_they_see_one(spoilt, part, value, times):
    with refused("model", part, times), in_time():
        Tokenizer.load(spoilt(**{part: value}))


def test_a_table_of_replacements_is_measured():
    table = (0).to_bytes(4, "little") + b"a\0" + b"b" * 100 + b"\0"
    described = {"type": "Precompiled", "precompiled_charsmap": guard.base64.b64encode(table)}
    assert guard._growth(described) == 100


def test_what_tokenizers_have_is_taken():
    spaces = {"type": "Sequence", "normalizers": [replace(" ", "\u2581"), {"type": "NFKC"}]}
    assert guard._growth(spaces) == 1
    assert guard._growth(replace(" {2,}", "\u2581", "Regex")) <= guard.GROWTH_CAP
    assert not any(map(wild, HARMLESS)) and wild(BACKTRACKS)
    assert all(map(wild, ["(a|aa)+b", "(a*)*", "((x+)){2,}", "(?:a{1,})+"]))


@pytest.mark.parametrize("part", ["*", "|", "(", ")", ",1}", ",1", "(*", "a"])
def test_a_pattern_of_a_megabyte_is_looked_through_at_once(part):
    begin = time.process_time()
    assert not wild(part * (10**6 // len(part)))
    assert time.process_time() - begin < 2


def test_a_text_that_takes_too_long_is_given_up(spoilt, monkeypatch):
    monkeypatch.setattr(guard, "SECONDS", 0.05)
    monkeypatch.setattr(guard, "PER_SECOND", 10**9)
    check = Guard(Tokenizer.load(spoilt()).hf)
    with refused("model"), in_time():
        check(lambda: time.sleep(5), guard.LONG)
    assert check(lambda: "found", guard.LONG) == "found"


def test_whatever_the_library_raises_is_the_models_fault():
    def fails():
        raise ValueError("first\nsecond")

    with refused("model", "first"):
        Guard(None)(fails, 1)
    for stop in (KeyboardInterrupt, MemoryError):
        with pytest.raises(stop), guard.refused():
            raise stop
