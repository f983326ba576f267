"""Pictures of an evaluation: their data worked out by hand, and that they are drawn."""

import pytest

from kvchat.errors import KvchatError
from kvchat.eval import pictures
from kvchat.eval.curves import curves, grids


def record(cell="adakv 25%", depth=0.0, score=1.0, length=100, document=0, seen=False, kept=0.25):
    return {
        "task": "passkey",
        "kind": "passkey",
        "cell": cell,
        "seen": seen,
        "length": length,
        "document": document,
        "depth": depth,
        "score": score,
        "right": score == 1,
        "kept": kept,
    }


def test_a_grid_has_means_by_depth_and_length():
    records = [
        record(depth=0.0, score=1.0),
        record(depth=0.0, score=0.5),
        record(depth=0.5, score=0.0),
        record(depth=0.5, score=1.0, length=200),
        record(cell="full", depth=1.0),
        record(seen=True, depth=1.0, length=200),
        record() | {"depth": None, "score": 0.0},
    ]
    adakv, full, seen = grids(records)
    assert (adakv.depths, adakv.lengths) == ([0.0, 0.5, 1.0], [100, 200])
    assert adakv.scores == [[0.75, None], [0.0, 1.0], [None, None]]
    assert (full.cell, full.scores[2]) == ("full", [1.0, None])
    assert (full.depths, full.lengths) == (adakv.depths, adakv.lengths)
    assert seen.seen and seen.scores[2] == [None, 1.0]


def test_depths_that_are_all_different_are_put_together_in_tenths():
    """41 depths, right in the first half only."""
    records = [record(depth=n / 40, score=float(n < 20)) for n in range(41)]
    (grid,) = grids(records)
    assert grid.depths == [tenth / 10 for tenth in range(11)]
    assert [row[0] for row in grid.scores] == pytest.approx([1] * 5 + [0.4] + [0] * 5, abs=0.11)


def test_curves_are_scores_over_budgets():
    records = [
        *(record(score=float(n % 2), document=n) for n in range(4)),
        *(record("adakv 10%", score=0.0, document=n, kept=0.1) for n in range(4)),
        *(record("snapkv 25%", document=n) for n in range(4)),
        *(record("full", score=float(n > 0), document=n, kept=1.0) for n in range(4)),
        record("adakv 25%", seen=True),
        record("pqcache 20%", kept=1.0),
        record("kvmerger:mode=eps", kept=0.3),
    ]
    unseen, seen = curves(records)
    assert unseen.full == 0.75 and seen.full == 0.75 and not unseen.seen and seen.seen
    assert set(unseen.methods) == {"adakv", "snapkv", "pqcache", "kvmerger:mode=eps"}
    assert unseen.methods["pqcache"][0].share == 0.2  # what it reads: it keeps everything
    assert unseen.methods["kvmerger:mode=eps"][0].share == 0.3
    assert [(p.share, p.score.mean) for p in unseen.methods["adakv"]] == [(0.1, 0.0), (0.25, 0.5)]
    assert unseen.methods["adakv"][1].score.low < 0.5 < unseen.methods["adakv"][1].score.high


def test_records_of_before_there_were_scores_are_drawn(tmp_path):
    old = {key: value for key, value in record().items() if key not in ("score", "depth")}
    assert not grids([old]) and curves([old])[0].methods["adakv"][0].score.mean == 1


def test_pictures_are_drawn_by_task_method_and_view(tmp_path):
    cells = ["full", "adakv 25%", "adakv 10%", "kvzip:chunk=64 25%"]
    records = [
        record(cell, depth, score, length)
        for cell in cells
        for depth, score in ((0.0, 1.0), (0.5, 0.0))
        for length in (100, 200)
    ]
    found = [path.name for path in pictures.draw(records, tmp_path)]
    assert found == [
        "depth-passkey-adakv-unseen.png",
        "depth-passkey-kvzip-chunk=64-unseen.png",
        "budget-passkey-unseen.png",
    ]
    for name in found:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KvchatError, match="--plot"):
        pictures.folder(str(tmp_path / "file" / "x"))
    assert pictures.folder(str(tmp_path / "new")).is_dir()
