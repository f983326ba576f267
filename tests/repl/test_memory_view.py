"""What `/show memory` says is there: against tensors and the system, in every width."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvchat.repl import memory
from tests.support.scene import shown, string_screen


def storage_bytes(tensors):
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


def test_the_breakdown_is_the_tensors(scene):
    scene.ask("What?")
    found, session = memory.breakdown(scene.chat), scene.chat.session
    segments = [t for s in session.cache.segments() for t in s.tensors().values()]
    tails = [t for layer in session.cache.layers for t in vars(layer.tail).values()]
    tails = [t for t in tails if isinstance(t, torch.Tensor)]
    assert found.weights == storage_bytes(session.engine.model.parameters())
    assert found.document == storage_bytes(segments)
    assert found.tail == storage_bytes(tails)
    live = sum(layer.tail.keys.nbytes + layer.tail.values.nbytes for layer in session.cache.layers)
    entries = sum(layer.tail.k.nbytes + layer.tail.v.nbytes for layer in session.cache.layers)
    assert found.preallocated == entries - live == 0, "given back after an answer"
    assert found.full == session.cache.position * session.engine.kv_bytes(1)
    assert found.index == 0


def status(name):
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_the_breakdown_agrees_with_the_system(scene):
    found = memory.breakdown(scene.chat)
    assert found.process == pytest.approx(status("VmRSS"), rel=0.05)
    assert found.peak == pytest.approx(status("VmHWM"), rel=0.05)
    meminfo = Path("/proc/meminfo").read_text()
    total = int(re.search(r"MemTotal:\s+(\d+)", meminfo)[1]) * 1024
    assert found.total <= total and 0 <= found.free <= found.total
    assert found.weights + found.document + found.tail + found.other <= found.process * 1.001


SEEN = memory.Breakdown(
    "cpu AMD EPYC", weights=4560000, stored="f32", document=4980000, tail=52000, index=0,
    workspace=0, preallocated=995000, other=343600000, process=354300000, peak=365100000,
    others=4434500000, free=20497700000, total=25275900000, full=19723700,
    document_full=19623700, host=9 * 2**20, disk=2**30, read="10 %", captured=0.9,
)  # fmt: skip
NUMBER = re.compile(r"[\d.]+ ?(B|KiB|MiB|GiB)\b")


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_view_fits_and_has_one_unit_in_a_line(width):
    table, notes = memory.table(SEEN, True), memory.notes(SEEN)
    assert "(25% of the full cache)" in table[1][-1]
    whole = memory.table(replace(SEEN, document=19700000), True)
    assert "%" not in whole[1][-1], "what is kept whole is no share, whatever stands beside it"
    assert ("KV cache", ["4.80 MiB", "4.75 MiB", "0.05 MiB"]) in [
        (name, [found[0] for found in NUMBER.finditer(f"{amount} {note}")])
        for _, name, amount, note in table
    ]
    for text in (*(f"{amount} {note}" for *_, amount, note in table), *notes):
        assert len(set(NUMBER.findall(text))) <= 1, text
    amounts = [NUMBER.search(amount) for _, _, amount, _ in table]
    assert len(table) == 7 and all(amounts) and len(notes) == 3
    screen = string_screen(width)
    screen.columns(table)
    assert max(map(len, shown(screen).splitlines())) <= width


@pytest.mark.parametrize("width", [40, 100])
def test_one_bar_shows_all_memory(width):
    """Every part that is there is seen, in the shade that stands before its name."""
    for unicode, shades in memory.SHADES.items():
        drawn = memory.strip(SEEN, width, unicode)
        assert len(drawn) == width and "".join(dict.fromkeys(drawn[1:-1])) == shades
        share = drawn.count(shades[3]) / (width - 2)
        assert share == pytest.approx(SEEN.others / SEEN.total, abs=0.1)
        told = {name: shade for shade, name, *_ in memory.table(SEEN, unicode)}
        assert (told["weights"], told["KV cache"], told["free"]) == (shades[0], shades[1], " ")
