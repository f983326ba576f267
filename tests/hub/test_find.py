"""Models by name: which snapshot of the Hugging Face cache is taken."""

import os

import pytest
from huggingface_hub import constants

from kvchat.hub.find import find_model
from kvchat.hub.places import Missing, hub_cache

MAIN, NEWER, OTHER = "a" * 40, "b" * 40, "ab" + "c" * 38


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """`org/tiny` with three snapshots, of which `main` is the oldest."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    folder = tmp_path / "models--org--tiny"
    for age, commit in enumerate((NEWER, OTHER, MAIN)):
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        for path in (snapshot / "config.json", snapshot):
            os.utime(path, (1_000_000 - age, 1_000_000 - age))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(MAIN)
    (folder / "refs" / "v1").write_text(OTHER)
    return folder


@pytest.mark.parametrize(
    ("revision", "commit"),
    [(None, MAIN), ("main", MAIN), ("v1", OTHER), (NEWER, NEWER), ("bb", NEWER), ("ab", OTHER)],
)
def test_a_revision_is_what_its_name_says(revision, commit):
    assert find_model("org/tiny", revision=revision).path.name == commit


@pytest.mark.parametrize("revision", ["v2", "a", "ffff"])
def test_what_is_not_here_or_could_be_two_is_refused(revision):
    with pytest.raises(Missing) as caught:
        find_model("org/tiny", revision=revision)
    assert caught.value.exit_code == 3 and f"--revision {revision}" in caught.value.tries[0]


def test_an_alias_takes_main_too():
    aliases = {"mine": {"repo": "org/tiny"}}
    assert find_model("mine", aliases).path.name == MAIN


def test_the_list_has_main_or_what_came_last(repository):
    assert [(found.name, found.path.name) for found in hub_cache()] == [("org/tiny", MAIN)]
    (repository / "refs" / "main").unlink()
    assert [found.path.name for found in hub_cache()] == [NEWER]
    with pytest.raises(Missing):
        find_model("org/tiny")
