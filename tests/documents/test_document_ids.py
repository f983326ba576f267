"""Documents longer than the window: numbers, ways out, and cuts that are told."""

import re

import pytest

from kvchat.documents import decode
from kvchat.documents.document_ids import compose
from kvchat.documents.overflow import ends
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.errors import KvchatError

WORDS = " ".join(f"word{number}" for number in range(3000))


@pytest.fixture
def tokenizer(chat_folder):
    return Tokenizer.load(chat_folder("byte-level", "chatml"))


def book(tokenizer, text=WORDS, limit=2000, overflow="error", system=""):
    file = decode("story.txt", text.encode())
    return compose(tokenizer, [file], system, limit, overflow, lambda needed: [f"-m x {needed}"])


def test_what_fits_is_whole(tokenizer):
    found = book(tokenizer, "A short story.")
    assert found.cut is None and "A short story." in tokenizer.decode(found.ids)


def test_the_error_has_numbers_and_every_way_out(tokenizer):
    with pytest.raises(KvchatError) as caught:
        book(tokenizer)
    error = caught.value
    assert error.exit_code == 5 and error.details["limit"] == 2000
    needed = error.details["needed"]
    assert needed == len(book(tokenizer, limit=10**6).ids)
    assert f"{needed:,}" in error.message and error.details["reserve"] == 500
    text = "\n".join(error.tries)
    for flag in ("--overflow tail", "--overflow middle", "--overflow head", f"-m x {needed}"):
        assert flag in text


@pytest.mark.parametrize("policy", ["head", "tail", "middle"])
@pytest.mark.parametrize("limit", [400, 2000])
def test_cuts_fill_the_room_and_say_what_is_gone(tokenizer, policy, limit):
    found = book(tokenizer, limit=limit, overflow=policy, system="Be brief.")
    room = limit - min(512, limit // 4)
    assert 0.9 * room <= len(found.ids) + found.dialogue.told_tokens <= room
    text = tokenizer.decode([*found.ids, *found.dialogue.first("Why?")])
    assert "Be brief." in text and f"[{found.cut.characters:,} " in text
    assert ("word0 " in text) == (policy != "head")
    assert ("word2999" in text) == (policy != "tail")
    assert found.cut.tokens == found.cut.total_tokens - len(found.ids)
    assert found.cut.report()["policy"] == policy and f"{found.cut.tokens:,}" in str(found.cut)
    kept = [word for word in text.split() if word.startswith("word")]
    assert set(kept) <= set(WORDS.split()), "whole words only"


def test_a_library_is_estimated_from_its_beginning(tokenizer, monkeypatch):
    longest = []
    encode = Tokenizer.encode
    monkeypatch.setattr(
        Tokenizer,
        "encode",
        lambda self, pieces, continues=False: (
            longest.append(sum(len(text) for text, _ in pieces)),
            encode(self, pieces, continues),
        )[1],
    )
    text = WORDS * 40
    with pytest.raises(KvchatError, match=r"\babout\b"):
        book(tokenizer, text)
    assert max(longest) < len(text) / 10
    found = book(tokenizer, text, overflow="tail")
    assert len(found.ids) <= 1500 and max(longest) < len(text) / 10


def test_pages_are_offered_if_there_are_any(tokenizer):
    pages = "\f".join(f"Page {number}. " + "word " * 200 for number in range(1, 21))
    with pytest.raises(KvchatError) as caught:
        book(tokenizer, pages)
    assert any(way.startswith("--pages 1-") and " 20 " in way for way in caught.value.tries)
    assert any(re.search(r"--overflow tail .*page \d+", way) for way in caught.value.tries)


def test_special_tokens_in_a_document_stay_text(tokenizer):
    found = book(tokenizer, "before <|im_end|> after")
    end = tokenizer.specials["<|im_end|>"]
    assert found.ids.count(end) == book(tokenizer, "before after").ids.count(end)
    assert "<|im_end|>" in tokenizer.hf.decode(found.ids)


@pytest.mark.parametrize(
    ("kept", "front", "want"),
    [
        (11, 1.0, ("one two", "")),
        (9, 0.0, ("", "four")),
        (18, 0.5, ("one two", "four")),
        (0, 0.5, ("", "")),
    ],
)
def test_ends_are_whole_words(kept, front, want):
    assert ends("one two three four", kept, front) == want


@pytest.mark.parametrize("text", [f"Chapter 1\n{'字' * 5000}", "Word list\n" + "stone\n" * 1000])
def test_ends_of_a_text_without_spaces_are_as_long_as_asked(text):
    for kept in (500, 3000):
        assert all(len(each) > kept / 2 - 100 for each in ends(text, kept, 0.5))
