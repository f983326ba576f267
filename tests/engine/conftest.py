"""Fixtures that tests of the engine share."""

import pytest


@pytest.fixture
def folder(chat_folder):
    """A tiny model with a tokenizer of bytes and a template in which every role has a header."""
    return chat_folder("byte-level", "chatml")
