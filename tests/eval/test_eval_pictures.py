"""Pictures of an evaluation: their data worked out by hand, and that they are rendered."""

import pytest

from kvchat.errors import KvchatError
from kvchat.eval.report import rows

pictures = pytest.importorskip("kvchat.eval.pictures", exc_type=KvchatError)


def record(cell="adakv 25%", score=1.0, document=0, seen=False, kept=0.25, length=100):
    fixed = {"task": "passkey", "kind": "passkey", "question": 0, "kl": 0.0, "bytes": 1}
    return fixed | {
        "cell": cell, "seen": seen, "length": length, "document": document, "score": score,
        "right": score == 1, "kept": kept,
    }  # fmt: skip


def test_a_panel_has_the_scores_of_a_view_and_of_the_full_cache():
    records = [
        *(record(score=float(n % 2), document=n) for n in range(4)),
        *(record("adakv 10%", score=0.0, document=n, kept=0.1) for n in range(4)),
        *(record("full", score=float(n > 0), document=n, kept=1.0) for n in range(4)),
        record("adakv 25%", seen=True),
        record("pqcache 20%", kept=1.0),
        record("kvmerger:mode=eps", kept=0.3),
    ]
    unseen, seen = pictures.panels(rows(records))
    found = {row.cell: (pictures.percent(row), row.score.mean) for row in unseen}
    assert found == {
        "adakv 25%": (25, 0.5),
        "adakv 10%": (10, 0),
        "pqcache 20%": (20, 1),  # what it reads: it keeps everything
        "kvmerger:mode=eps": (30, 1),
        "full": (100, 0.75),
    }
    assert [(row.cell, row.seen) for row in seen] == [("adakv 25%", True), ("full", False)]


def test_pictures_are_rendered_by_task_and_view_with_a_panel_per_length(tmp_path, monkeypatch):
    panels = []
    rendered = pictures._panel
    monkeypatch.setattr(
        pictures, "_panel", lambda axes, *rest: panels.append(axes) or rendered(axes, *rest)
    )
    cells = ("full", "adakv 25%", "adakv 10%", "kvzip:chunk=64 25%")
    records = [record(cell, n / 2, n, length=100 * n) for cell in cells for n in (2, 1)]
    (path,) = pictures.render(rows(records), tmp_path)
    assert path.name == "budget-passkey-unseen.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    for axes, score in zip(panels, (50, 100), strict=True):
        names = [text.get_text() for text in axes.get_legend().get_texts()]
        assert sorted(names) == ["adakv", "full", "kvzip:chunk=64"]
        assert set(axes.lines[0].get_ydata()) == {score}, "the full cache"


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KvchatError, match="--plot") as caught:
        pictures.folder(str(tmp_path / "file" / "x"))
    assert caught.value.code == "usage"
    assert pictures.folder(str(tmp_path / "new")).is_dir()
