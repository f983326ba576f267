"""Pure functions of the screen: numbers, sanitising, toolbar, plan arithmetic."""

import random

import pytest
from rich.cells import cell_len

from kvchat.engine.budget import Budget
from kvchat.engine.model.config import ModelConfig
from kvchat.errors import KvchatError
from kvchat.machine.plan import make_plan, require_memory
from kvchat.terminal.text import clean, laid, level, ratio, short, size, sizes
from kvchat.terminal.toolbar import State, toolbar

LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}


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
    assert (level(0.5), level(0.8), level(0.96)) == ("", "high", "full soon")


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


def test_plan_of_a_known_model():
    config = ModelConfig.from_dict(LLAMA_8B)
    plan = make_plan(config, 2, 2**17 - 1024, Budget.parse("25%"), 2**17, 2048)
    assert plan.kv_full == 128 * 1024 * (2**17 - 1024)  # 128 KiB per token
    assert plan.dense_layer * 32 == plan.kv_full
    assert plan.kv_kept == pytest.approx(plan.kv_full / 4, rel=0.01)
    assert plan.weights == pytest.approx(8.03e9 * 2, rel=0.001)
    assert plan.tail == 128 * 1024 * 1024
    require_memory(plan, plan.reading, "cpu", "adakv")
    with pytest.raises(KvchatError) as caught:
        require_memory(plan, plan.reading - 1, "cpu", "adakv")
    assert caught.value.exit_code == 6


def test_plan_of_a_full_cache_offers_compression():
    config = ModelConfig.from_dict(LLAMA_8B)
    plan = make_plan(config, 2, 100_000, Budget(fraction=1.0), 2**17, 2048)
    for free, offered in ((plan.reading - 2**30, True), (2**30, False)):  # if it is enough
        with pytest.raises(KvchatError) as caught:
            require_memory(plan, free, "cpu", "full")
        assert any("adakv" in way for way in caught.value.tries) == offered


LLAMA_7B = LLAMA_8B | {
    "vocab_size": 32000,
    "intermediate_size": 11008,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}


def test_a_7b_fits_a_card_of_8_gb_in_4_bits_and_the_way_out_says_so():
    config, budget, free = ModelConfig.from_dict(LLAMA_7B), Budget.parse("25%"), 8 * 10**9
    plan = make_plan(config, 2, 3500, budget, 4096, 2048, True)
    with pytest.raises(KvchatError) as caught:
        require_memory(plan, free, "cuda:0", "adakv")
    assert any(way.startswith("--weights int4  (needs 4.") for way in caught.value.tries)
    few = make_plan(config, 2, 3500, budget, 4096, 2048, True, weights="int4")
    assert few.weights == plan.weights_int4 == pytest.approx(6.74e9 * 0.55, rel=0.02)
    require_memory(few, free, "cuda:0", "adakv")
    with pytest.raises(KvchatError) as caught:
        require_memory(few, few.weights, "cuda:0", "adakv")
    assert not any("int4" in way for way in caught.value.tries), "it is that already"
    with pytest.raises(KvchatError) as caught:
        require_memory(plan, 2**30, "cuda:0", "adakv")
    assert not any("int4" in way for way in caught.value.tries), "it would not fit either"


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
