"""Pure functions of the screen: numbers, sanitising, toolbar, plan arithmetic."""

import random

import pytest
from rich.cells import cell_len

from kvchat.terminal.text import clean, laid, level, ratio, short, size, sizes
from kvchat.terminal.toolbar import State, toolbar


def test_sizes_are_readable_and_in_binary_units():
    assert size(512) == "512 B"
    assert size(3.41 * 2**30) == "3.41 GiB"
    assert size(0.86 * 2**30) == "0.86 GiB"
    assert size(20 * 2**20) == "20.00 MiB"
    assert sizes(0.86 * 2**30, 3.41 * 2**30) == "0.86 of 3.41 GiB"
    assert sizes(20 * 2**20, 3 * 2**30) == "0.02 of 3.00 GiB"
    assert ratio(1, 4) == "25 % (4.0× smaller)"
    assert ratio(5, 4) == "all of it"
    assert (short(512), short(27913)) == ("512", "27.9k")
    assert (level(0.5), level(0.8), level(0.96)) == ("", "high", "almost full")


def test_no_control_character_survives_cleaning():
    letters = "".join(map(chr, range(0x20, 0x7F)))
    foreign = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x1B]))
    draw = random.Random(0)
    for _ in range(200):
        text = "".join(draw.choice(letters + foreign) for _ in range(50))
        shown = clean(text)
        assert not set(shown) & (set(foreign) - set("\n\t "))
        assert [c for c in shown if c in letters] == [c for c in text if c in letters]


@pytest.mark.parametrize("width", [40, 60, 79, 80, 100, 121, 122, 200])
def test_toolbar_fits_and_never_drops_context_and_kv(width):
    gib = 2**30
    state = State("mistral-7b", "adakv 25%", 28200, 32768, gib, 4 * gib, 15 * gib, 64 * gib, 54.1)
    text = toolbar(state, width)
    assert len(text) <= width
    assert "86% high" in text and "KV 1.00" in text


PLAN = "plan: KV 18.71 MiB in full → 4.75 MiB with kvzip 25% (estimated)"
READ = "read 4,791 tokens in 12.7 s (377 tok/s) · kept 25 % of rows: 4.75 of 18.71 MiB"


@pytest.mark.parametrize(
    ("text", "width", "want"),
    [
        (PLAN, 80, PLAN),
        (PLAN, 60, "plan: KV 18.71 MiB in full → 4.75 MiB with kvzip 25%\n  (estimated)"),
        (PLAN, 40, "plan: KV 18.71 MiB in full\n  → 4.75 MiB with kvzip 25% (estimated)"),
        (READ, 80, READ),
        (READ, 60, READ.replace("· ", "·\n  ")),
        ("  a\n" + "b" * 50, 40, "  a\n" + "b" * 50),
    ],
)  # fmt: skip
def test_lines_are_broken_between_statements(text, width, want):
    assert laid(text, width) == want


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_broken_lines_fit_and_lose_no_word(width):
    draw = random.Random(width)
    words = ["a", "tokens,", "·", "(kept", "25", "%)", "→", "漢字かな", "12.7", "end;", "x" * 28]
    for _ in range(300):
        text = " " * draw.randrange(8) + " ".join(draw.choices(words, k=draw.randrange(1, 60)))
        lines = laid(text, width).split("\n")
        assert " ".join(lines).split() == text.split()
        assert all(cell_len(line) <= width for line in lines)
