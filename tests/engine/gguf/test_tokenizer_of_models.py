"""Tokenizers of real GGUF files have llama.cpp's ids, and are there in little time."""

import json
import time

import pytest

from kvchat.engine.gguf.file import GGUF
from kvchat.engine.text.tokenizer import Tokenizer
from tests.engine.gguf import files
from tests.support.models import MODELS

KNOWN = json.loads(files.MODELS.read_text(encoding="utf-8"))
TEXTS = files.load()["texts"]
pytestmark = pytest.mark.model


@pytest.fixture(params=sorted(MODELS.rglob("*.gguf")), ids=lambda path: path.stem)
def known(request):
    """A file whose tokens are those of a model of which ids are recorded, and the record."""
    number = files.checksum(GGUF(request.param)["tokenizer.ggml.tokens"])
    if number not in KNOWN:
        pytest.skip(f"{request.param.name} has other tokens than {len(KNOWN)} known models")
    return request.param, KNOWN[number]


def test_ids_and_ends_are_those_of_llama_cpp(known):
    path, record = known
    tokenizer = Tokenizer.load(path)
    ids = [
        files.checksum([tokenizer.encode([(text, trusted)]) for trusted in (False, True)])
        for text in TEXTS
    ]
    # there `</s>` is special by its text, here only where the file says so
    same = [
        a == b for a, b, text in zip(ids, record["ids"], TEXTS, strict=True) if "</s>" not in text
    ]
    assert all(same) and len(same) >= 200
    tag = {tokenizer.hf.convert_tokens_to_ids("</s>")}  # an end there even where it is HTML
    assert set(record["ends"]) - tokenizer.ends <= tag and tokenizer.ends <= set(record["ends"])


def test_a_tokenizer_is_there_in_little_time(known):
    """A second and a half is for 260,000 tokens on one slow core."""
    begin = time.process_time()
    Tokenizer.load(known[0])
    assert time.process_time() - begin < 2.5
