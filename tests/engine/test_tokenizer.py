"""Text to ids and back: pieces encode as if they were one text, foreign text stays text, and a
stream of tokens shows whole characters only."""

import itertools
import random
import subprocess
import sys

import pytest

from kvchat.engine.text.tokenizer import TextStream, Tokenizer
from kvchat.errors import KvchatError

KINDS = ["byte-level", "sentencepiece", "sentencepiece-first"]
WORDS = ["The keeper", " counted", " ships", "\n\n", "  two spaces", " green book.", "Ünï", " 4711",
         "\tTab", "灯台", " the", "s", "’s", "x"]  # fmt: skip
EMOJI = ["😀", "👩‍🚀", "é", "漢字", " 🇫🇷", "́"]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tokenizer_folder) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder(request.param))


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    """What Hugging Face makes of the text; special tokens in it are parsed."""
    return tokenizer.hf(text, add_special_tokens=False)["input_ids"]


def random_text(dice: random.Random, words: list[str], most: int = 12) -> str:
    return "".join(dice.choice(words) for _ in range(dice.randint(1, most)))


def test_pieces_encode_like_the_whole_text(tokenizer):
    """Cut anywhere, inside words and characters' neighbours, trusted or not."""
    dice = random.Random(0)
    for _ in range(200):
        text = random_text(dice, WORDS + EMOJI)
        cuts = sorted(dice.randint(0, len(text)) for _ in range(3))
        edges = [0, *cuts, len(text)]
        pieces = [(text[a:b], dice.random() < 0.5) for a, b in itertools.pairwise(edges)]
        assert tokenizer.encode(pieces) == whole(tokenizer, text)


def test_special_tokens_between_pieces_encode_like_the_whole_text(tokenizer):
    dice, names = random.Random(1), sorted(tokenizer.specials)
    for _ in range(200):
        pieces = []
        for _ in range(4):
            pieces += [(random_text(dice, WORDS, 4), False), (dice.choice(names), True)]
        pieces.append((random_text(dice, WORDS, 4), dice.random() < 0.5))
        text = "".join(text for text, _ in pieces)
        assert tokenizer.encode(pieces) == whole(tokenizer, text)


def test_a_continuation_encodes_like_the_end_of_the_text(tokenizer):
    """After plain text: no space in front. Cut before a space, where no token is split."""
    for before, after in (("The keeper", " counted ships"), ("ships", "\n\nQuestion: x"),
                          ("a.", " the sea"), ("book", "\n")):  # fmt: skip
        ids = tokenizer.encode([(before, False)])
        ids += tokenizer.encode([(after, False)], continues=True)
        assert ids == whole(tokenizer, before + after)


def test_special_text_in_a_document_stays_text(tokenizer):
    for name, number in tokenizer.specials.items():
        text = f"The {name} keeper{name}"
        foreign = tokenizer.encode([(text, False)])
        assert number not in foreign
        assert tokenizer.decode(foreign) == text
        assert tokenizer.encode([(text, True)]).count(number) == 2


def test_the_beginning_token_is_the_tokenizer_s_own(tokenizer_folder):
    assert Tokenizer.load(tokenizer_folder("byte-level")).bos == []
    llama = Tokenizer.load(tokenizer_folder("sentencepiece"))
    assert llama.bos == [llama.specials["<s>"]]


@pytest.mark.parametrize("name, content", [(None, ""), ("tokenizer.json", "{"),
                                           ("tokenizer.json", "")])  # fmt: skip
def test_a_missing_or_damaged_tokenizer_is_a_model_error(tmp_path, name, content):
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(KvchatError) as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.code == "model" and str(tmp_path) in caught.value.message


def deltas(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in ids), stream.flush()]


def test_streamed_text_is_the_text_in_whole_characters(tokenizer):
    dice = random.Random(2)
    for _ in range(150):
        text = "x" + random_text(dice, WORDS + 3 * EMOJI, 40)  # a space in front may be lost
        ids = tokenizer.encode([(text, False)])
        pieces = deltas(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids) == text
        assert "\ufffd" not in "".join(pieces)


def test_streamed_text_survives_special_tokens_between(tokenizer):
    dice, specials = random.Random(3), list(tokenizer.specials.values())
    for _ in range(100):
        ids: list[int] = []
        for _ in range(dice.randint(1, 6)):
            ids += tokenizer.encode([(random_text(dice, WORDS + EMOJI, 3), False)], bool(ids))
            ids += [dice.choice(specials)] * dice.choice([0, 0, 1, 20])
        assert "".join(deltas(tokenizer, ids)) == tokenizer.decode(ids)


def test_streamed_random_tokens_equal_the_full_decode(tokenizer):
    """Any words in any order; characters of several bytes stay whole, as text has them."""
    dice, learned = random.Random(4), tokenizer.hf.get_vocab()
    words = [n for name, n in learned.items() if name.isascii() and not name.startswith("<")]
    words += [n for name, n in learned.items() if name.startswith("▁")]
    emoji = [tokenizer.encode([(text, False)], continues=True) for text in EMOJI]
    for _ in range(100):
        ids: list[int] = []
        for _ in range(60):
            ids += dice.choice(emoji) if dice.random() < 0.2 else [dice.choice(words)]
        pieces = deltas(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        assert "\ufffd" not in "".join(pieces)


def test_broken_bytes_are_shown_at_last(tokenizer):
    """An answer that ends inside a character, and one that is cut by a word."""
    ids = tokenizer.encode([("a 😀", False)])
    assert "".join(deltas(tokenizer, ids[:-1])) == tokenizer.decode(ids[:-1])
    word = tokenizer.encode([(" ships", False)], continues=True)
    assert "".join(deltas(tokenizer, ids[:-1] + word)) == tokenizer.decode(ids[:-1] + word)


def test_no_number_of_broken_bytes_swallows_what_follows(tokenizer):
    dangling = tokenizer.encode([("😀", False)], continues=True)[:1]
    text = "the keeper counted 😀 ships"
    ids = dangling * 40 + tokenizer.encode([(text, False)], continues=True)
    assert "".join(deltas(tokenizer, ids)).endswith(text)


def test_the_short_way_to_a_tokenizer_ends_where_the_long_one_does(tokenizer_folder):
    from transformers import AutoTokenizer

    folder = tokenizer_folder("byte-level", "chatml")
    short = Tokenizer.load(folder).hf
    long = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert type(short) is type(long) and short.init_kwargs == long.init_kwargs
    assert short.backend_tokenizer.to_str() == long.backend_tokenizer.to_str()
    assert short.chat_template == long.chat_template


def test_tokenizers_and_specs_need_no_torch(tokenizer_folder):
    """Programs that only count tokens or list methods begin in a moment."""
    code = (
        "import sys; from pathlib import Path; from kvchat.engine.text.tokenizer import Tokenizer; "
        "from kvchat.engine.methods.naming import parse_spec; parse_spec('adakv'); "
        f"Tokenizer.load(Path({str(tokenizer_folder('byte-level'))!r})); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
