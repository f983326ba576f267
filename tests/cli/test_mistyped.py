"""Words that are neither a command nor a file."""

import pytest

from kvchat.cli.main import with_command
from kvchat.errors import KvchatError


@pytest.mark.parametrize("arguments", [["modles"], ["-v", "doctr"]], ids=["alone", "behind a flag"])
def test_a_mistyped_command_names_the_one_that_is_meant(arguments):
    with pytest.raises(KvchatError) as caught:
        with_command(arguments)
    assert caught.value.exit_code == 2
    assert caught.value.tries[0] in ("kvchat models", "kvchat doctor")


def test_a_file_of_such_a_name_is_a_document(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "modles").write_text("x")
    assert with_command(["modles"]) == ["chat", "modles"]
    for other in ("models.txt", "--continue", "x"):
        assert with_command([other]) == ["chat", other]
