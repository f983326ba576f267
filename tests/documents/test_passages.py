"""Passages: where sentences end, what their places are called, which tokens stand where."""

import pytest

from kvchat.documents import decode
from kvchat.documents.document_ids import compose
from kvchat.documents.passages import LONG, best, label_at, marks, spans
from kvchat.documents.search import search
from kvchat.engine.text.tokenizer import Tokenizer

FACT = "The lock of cellar 7 opens with 4711."


def document(text, name="story.txt"):
    return decode(name, text.encode())


def named(text, at, name="story.txt"):
    file = document(text, name)
    return label_at(file, marks(file), file.text.index(at))


def test_spans_are_sentences_and_no_longer_than_a_few_lines():
    text = 'One. "Two!" Three?\n\n# Four\n\nfive\n' + "word " * 200 + "\n" + "長い文。次の文。"
    parts = [text[a:b] for a, b in spans(text)]
    assert parts[:5] == ["One.", '"Two!"', "Three?", "# Four", parts[4]]
    assert parts[-2].endswith("長い文。") and parts[-1] == "次の文。"
    assert max(map(len, parts)) <= LONG and all(part == part.strip() for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split()), "nothing is lost"


def test_an_abbreviation_ends_no_sentence():
    text = "Fire it from 7 a.m. to 9 p.m. only. Ask Mr. Brown or P. Lee at St. Ives. Done!"
    assert [text[a:b] for a, b in spans(text)] == [
        "Fire it from 7 a.m. to 9 p.m. only.", "Ask Mr. Brown or P. Lee at St. Ives.", "Done!"
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["[Page {}]", "--- page {} ---", "Page {} of 9", "p. {}",
                                  "<page {}>"])  # fmt: skip
def test_marks_of_pages_stand_in_a_text(form):
    text = "".join(f"{form.format(n)}\nText of number {n}.\n\n" for n in (1, 2, 3))
    assert named(text, "number 3") == "p. 3" and named(text, "number 1") == "p. 1"
    below = "".join(f"Text of number {n}.\n{form.format(n)}\n\n" for n in (1, 2, 3))
    assert named(below, "number 3") == "p. 3" and named(below, "number 1") == "p. 1"


def test_places_are_pages_then_headings_then_lines():
    assert named("One.\fTwo.\fThree.", "Three") == "p. 3"
    assert named("# First\n\nOne.\n\n## Second part\n\nTwo.", "Two") == "Second part"
    assert named("CHAPTER I. The sea\n\nOne.\n\nCHAPTER II\n\nTwo.", "Two") == "CHAPTER II"
    assert named("One.\nTwo.\nThree.", "Three") == "line 3"


def test_clauses_are_named_by_their_numbers():
    law = "LEASE\n\n§ 1 Parties\n\nOne.\n\n§ 2a Rent\nTwo is as § 9\nsays here.\n\nThree."
    assert named(law, "Two") == named(law, "Three") == "§ 2a Rent"
    assert named("Article IV\n\nOne.\n\nArt. 5 Rent\n\nTwo.", "Two") == "Art. 5 Rent"
    plain = "1. Parties\n\nOne.\n\n1.2 The rent\n\nTwo.\n\n3. Buy milk.\n4. Go\n\nThree."
    assert named(plain, "Three") == "1.2 The rent", "a list is none"


def test_remarks_of_code_are_no_headings():
    code = "# Install\nOne\n\n# Use\nTwo\n"
    assert named(code, "Two") == "Use" and named(code, "Two", "a.sh") == "line 5"
    listing = f"# First\n\n```sh\n{code}```\n\nThree\n\n# Last\n"
    assert named(listing, "Three") == "First"


def test_the_best_passages_are_joined_with_their_neighbours():
    text = "Aa. Bb. Cc. Dd."
    parts, begins = spans(text), [0, 4, 8, 12]
    [(a, b, weight)] = best([0, 2, 3, 0], begins, parts)
    assert (text[a:b], weight) == ("Bb. Cc.", 5)
    found = best([3, 0, 0, 2], begins, parts)
    assert [text[a:b] for a, b, _ in found] == ["Aa.", "Dd."]
    assert [text[a:b] for a, b, _ in best([9, 0, 0, 1], begins, parts)] == ["Aa."]


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "sentencepiece-first"])
def test_tokens_know_where_they_begin(tokenizer_folder, kind):
    tokenizer = Tokenizer.load(tokenizer_folder(kind))
    special = sorted(tokenizer.specials)[0]
    pieces = [(f"{special}Be brief.\n\n", True), ("The keeper counted  ships,\n灯台 4711.", False)]
    begins, ids = tokenizer.begins(pieces), tokenizer.encode(pieces)
    text = "".join(piece for piece, _ in pieces)
    assert len(begins) == len(ids) and begins == sorted(begins) and begins[-1] < len(text)
    at = text.index("counted")
    first = next(n for n, begin in enumerate(begins) if begin >= at - 1)
    assert "counted".startswith(tokenizer.decode(ids[first : first + 1]).strip()[:1])


@pytest.mark.parametrize("overflow", ["head", "tail", "middle"])
def test_a_source_is_in_its_own_file_whatever_was_cut(chat_folder, overflow):
    """Two documents, the fact in the second or first, with a part of them left out."""
    tokenizer = Tokenizer.load(chat_folder("byte-level", "chatml"))
    filler = " ".join(f"Word number {n}." for n in range(400))
    files = [document(f"{FACT} {filler}", "a.txt"), document(f"{filler} {FACT}", "b.txt")]
    book = compose(tokenizer, files, "Be brief.", 2000, overflow)
    assert book.cut is not None and len(book.begins) == len(book.ids)
    joined = f"# a.txt\n\n{files[0].text}\n\n# b.txt\n\n{files[1].text}"
    nowhere = [i for i, at in zip(book.ids, book.begins, strict=True) if at == -1]
    mark = f"[{book.cut.characters:,} characters left out]"
    assert mark in tokenizer.decode(nowhere), "no file has it"
    wanted = {"head": ["b.txt"], "tail": ["a.txt"], "middle": ["a.txt", "b.txt"]}[overflow]
    for name in wanted:
        at = joined.index(FACT) if name == "a.txt" else joined.rindex(FACT)
        weights = [float(at <= begin < at + len(FACT)) for begin in book.begins]
        [source] = book.sources(weights)
        file = files[name == "b.txt"]
        assert source.document == name and source.text == FACT and source.weight == 1
        assert file.text[source.start : source.end] == FACT


def test_attention_to_everything_has_no_source(chat_folder):
    tokenizer = Tokenizer.load(chat_folder("byte-level", "chatml"))
    book = compose(tokenizer, [document(" ".join(f"It is {n}." for n in range(99)))], "", 4000)
    assert book.sources([1.0] * len(book.ids)) == []
    assert book.sources([0.0] * len(book.ids)) == []


@pytest.mark.parametrize(("wanted", "numbers"), [
    ("old mill", [2, 0]), ("Mill OLD", [0, 2]), ("the mill", [0, 2]), ("rent", [1]),
    ("the rent of the mill", [1, 0, 2]), ("zebra", []), ("?", []), ("mil", [0, 2]),
])  # fmt: skip
def test_words_find_passages(wanted, numbers):
    texts = ["The mill is old.", "The rent is 140.", "There is an old  mill.", "The end."]
    assert search(texts, wanted) == numbers
