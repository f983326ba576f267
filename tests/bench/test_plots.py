"""Pictures are whole PNG files or nothing, and say what is missing."""

import struct
import subprocess
import sys

import pytest

from kvchat.errors import KvchatError

plots = pytest.importorskip("kvchat.plots", exc_type=KvchatError)


def test_a_figure_becomes_a_png_and_foreign_names_are_no_formulas(tmp_path):
    path = tmp_path / "a.png"
    with plots.figure(path, columns=2) as axes:
        for each in axes:
            each.plot([1, 2], [3, 4], label="cost $x_{")
            each.legend()
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and data.endswith(b"IEND\xaeB`\x82")
    assert struct.unpack(">II", data[16:24]) == (2 * 5.6 * 150, 4.2 * 150)
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_picture_that_was_there(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), plots.figure(path) as (axes,):
        axes.plot([1 / 0])
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_where_no_picture_can_be_is_said_before_the_work(tmp_path):
    for name in ("a.svg", "a", "no/such/folder/a.png"):
        with pytest.raises(KvchatError) as caught:
            plots.target(str(tmp_path / name))
        assert caught.value.code == "usage" and caught.value.tries
    assert plots.target(str(tmp_path / "a.PNG")) == tmp_path / "a.PNG"


def test_without_matplotlib_the_way_out_is_named_and_no_window_system_is_loaded():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from kvchat.errors import KvchatError\n"
        "try: import kvchat.plots\n"
        "except KvchatError as error: print(error.code, *error.tries)\n"
        "del sys.modules['matplotlib']; import kvchat.plots\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "usage pip install 'kvchat[plot]'\nFalse\n", done.stderr
