"""Errors of a user, by their code: a message can be reworded."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvchat.errors import KvchatError


@contextmanager
def refused(code: str, *names: str) -> Iterator[None]:
    """What is inside raises a KvchatError of this code whose message has these names and numbers,
    and no line break."""
    with pytest.raises(KvchatError) as caught:
        yield
    assert caught.value.code == code and "\n" not in caught.value.message
    for name in names:
        assert name in caught.value.message
