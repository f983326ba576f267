"""Tables that leave columns out where a terminal is narrow."""

import pytest

from kvchat.terminal.tables import Column, lines

COLUMNS = (Column("name"), Column("size", 1, right=True), Column("kind", 2), Column("fits"))
ROWS = ["a place", ("first", "9 MiB", "llama", "yes"), ("日本", "10 MiB", "x", "no")]


@pytest.mark.parametrize(
    "width, found",
    [
        (80, ["name     size  kind   fits", "a place", "first   9 MiB  llama  yes",
              "日本   10 MiB  x      no"]),
        (26, ["name     size  kind   fits", "a place", "first   9 MiB  llama  yes",
              "日本   10 MiB  x      no"]),
        (25, ["name     size  fits", "a place", "first   9 MiB  yes", "日本   10 MiB  no"]),
        (15, ["name   fits", "a place", "first  yes", "日本   no"]),
        (8, ["name", "  fits", "a place", "first", "  yes", "日本", "  no"]),
    ],
)  # fmt: skip
def test_columns_go_in_their_order(width, found):
    assert lines(COLUMNS, ROWS, width) == found


def test_no_rows():
    assert lines(COLUMNS, [], 80) == ["name  size  kind  fits"]
