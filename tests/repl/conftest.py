"""A chat over a tiny model in a folder of its own."""

import pytest

from tests.support.scene import Scene


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder that the chat is started in; its state and config are there too."""
    for name in ("STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    for name in ("VISUAL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def folder(chat_folder):
    return chat_folder("byte-level", "chatml")


@pytest.fixture
def scene(folder, home):
    return Scene(folder)
