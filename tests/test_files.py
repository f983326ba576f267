"""Files and folders: plain ones are read, our own are private."""

import os
import stat

import pytest

from kvchat.engine.store.atomic import NewFile
from kvchat.files import is_regular, private_folder


@pytest.fixture(params=[0, 0o022, 0o777])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_folders_and_their_parents_are_the_users_alone_whatever_the_umask(tmp_path, umask):
    there = tmp_path / "there"
    there.mkdir()
    there.chmod(0o755)
    made = private_folder(there / "a" / "b" / "c")
    for folder in (made, made.parent, made.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(there.stat().st_mode) == 0o755, "what is there stays as it is"
    assert private_folder(made) == made


def test_what_is_saved_stands_in_private_folders(tmp_path, umask):
    with NewFile(tmp_path / "x" / "y" / "file") as file:
        file.write(b"saved")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "x" / "y" / "file").stat().st_mode) & 0o177 == 0


def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "a").write_text("x")
    for name in ("a", "a/b"):
        with pytest.raises(OSError):
            private_folder(tmp_path / name)


def test_only_plain_files_are_regular(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    found = [name for name in ("file", "link", "pipe", "none", ".") if is_regular(tmp_path / name)]
    assert found == ["file", "link"]
    assert not any(map(is_regular, (tmp_path / ("n" * 5000), tmp_path / "a\0b")))
