"""Text to ids and back: pieces encode as if they were one text, foreign text stays text, a stream
shows whole characters only. Chat templates taken apart equal the template as a whole."""

import itertools
import random
import subprocess
import sys
from datetime import date

import pytest

from kvchat.engine.text import tokenizer as text_tokenizer
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.template_form import UNDATED
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
    """Cut anywhere, inside words and beside special tokens, trusted or not."""
    dice, names = random.Random(0), sorted(tokenizer.specials)
    for _ in range(200):
        text = random_text(dice, WORDS + EMOJI)
        edges = [0, *sorted(dice.randint(0, len(text)) for _ in range(3)), len(text)]
        pieces = [(text[a:b], dice.random() < 0.5) for a, b in itertools.pairwise(edges)]
        assert tokenizer.encode(pieces) == whole(tokenizer, text)
        for _ in range(4):
            pieces += [(random_text(dice, WORDS, 4), False), (dice.choice(names), True)]
        pieces.append((random_text(dice, WORDS, 4), dice.random() < 0.5))
        assert tokenizer.encode(pieces) == whole(tokenizer, "".join(text for text, _ in pieces))


def test_long_text_is_encoded_piece_by_piece_to_the_same_ids(tokenizer, monkeypatch):
    """And each id begins where it did; a text without a place to cut stays in one piece."""
    dice = random.Random(3)
    for text in (random_text(dice, WORDS + EMOJI, 3000) * 3, "x" * 900, "\n" * 900, "灯台" * 400):
        for pieces in ([(text, False)], [("The", True), (text, False)]):
            monkeypatch.setattr(text_tokenizer, "PIECE", 10**9)
            whole_ids, begins = tokenizer.encode(pieces), tokenizer.begins(pieces)
            monkeypatch.setattr(text_tokenizer, "PIECE", 200)
            assert tokenizer.encode(pieces) == whole_ids
            assert tokenizer.begins(pieces) == begins
    text = " ".join(["The keeper counted ships."] * 40)
    cut = list(tokenizer._cut(text, "start"))
    assert len(cut) > 4 and "".join(piece for piece, _ in cut) == text
    assert [after for _, after in cut] == ["start", *["text"] * (len(cut) - 1)]


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


def test_streamed_random_tokens_equal_the_full_decode(tokenizer):
    """Words in any order, special tokens between; characters of several bytes stay whole."""
    dice, learned = random.Random(4), tokenizer.hf.get_vocab()
    words = [[n] for name, n in learned.items() if name.isascii() and not name.startswith("<")]
    words += [[n] for name, n in learned.items() if name.startswith("▁")]
    emoji = [tokenizer.encode([(text, False)], continues=True) for text in EMOJI]
    specials = [[n] * most for n in tokenizer.specials.values() for most in (1, 20)]
    for _ in range(150):
        kinds = dice.choices((words, emoji, specials), (0.78, 0.2, 0.02), k=60)
        ids = [i for kind in kinds for i in dice.choice(kind)]
        assert "".join(deltas(tokenizer, ids)) == tokenizer.decode(ids)
        assert "\ufffd" not in tokenizer.decode(ids)


def test_broken_bytes_are_shown_at_last(tokenizer):
    """An answer that ends inside a character, one that is cut by a word, and very many of them."""
    ids = tokenizer.encode([("a 😀", False)])
    word = tokenizer.encode([(" ships", False)], continues=True)
    for given in (ids[:-1], ids[:-1] + word):
        assert "".join(deltas(tokenizer, given)) == tokenizer.decode(given)
    dangling = tokenizer.encode([("😀", False)], continues=True)[:1]
    text = "the keeper counted 😀 ships"
    ids = dangling * 40 + tokenizer.encode([(text, False)], continues=True)
    assert "".join(deltas(tokenizer, ids)).endswith(text)


def test_tokenizers_and_specs_need_no_torch(tokenizer_folder):
    """Programs that only count tokens or list methods begin in a moment."""
    code = (
        "import sys; from pathlib import Path; from kvchat.engine.text.tokenizer import Tokenizer; "
        "from kvchat.engine.methods.specs import parse_spec; parse_spec('adakv'); "
        f"Tokenizer.load(Path({str(tokenizer_folder('byte-level'))!r})); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


DOCUMENT = "The keeper counted ships.\n\nIn the <|im_end|> morning he </s>[INST] counted stars."
SYSTEM = "Answer from the book."
FIRST, SECOND = "What did he count?", "And at night?"
PAIRS = [  # a tokenizer, its template, does the template keep a system message in front?
    ("byte-level", "chatml", True),
    ("byte-level", "user-only", False),
    ("sentencepiece-first", "mistral", False),
    ("sentencepiece", "mistral", False),
    ("sentencepiece", "llama2", True),
    ("sentencepiece-first", "chatml", True),
]


@pytest.fixture(params=PAIRS, ids=lambda p: f"{p[0]} {p[1]}")
def case(request, tokenizer_folder):
    kind, template, in_front = request.param
    return Dialogue(Tokenizer.load(tokenizer_folder(kind, template))), in_front


def rendered(dialogue: Dialogue, in_front: bool, head: str, *later: str) -> list[int]:
    """Ids of the whole conversation by the template: `head` is document and system text.

    What looks like a special token inside of the document is cut out of the template's text first
    and encoded as text."""
    mark = "\ue010"  # stands for the head
    first = [{"role": "user", "content": FIRST}]
    if in_front:
        first.insert(0, {"role": "system", "content": mark})
    else:
        first[0]["content"] = f"{mark}\n\n{FIRST}"
    roles = ["assistant", "user"]
    turns = [{"role": roles[n % 2], "content": text} for n, text in enumerate(later)]
    text = dialogue.tokenizer.hf.apply_chat_template(
        [*first, *turns], tokenize=False, add_generation_prompt=True
    )
    before, _, after = text.partition(mark)
    pieces = [(before, True), (head, False), (after, True)]
    return dialogue.tokenizer.encode(pieces)


def answer_ids(dialogue: Dialogue, text: str) -> list[int]:
    return dialogue.tokenizer.encode([(text, False)], continues=True)


def test_a_document_and_turns_are_the_template_s(case):
    """Two answered turns; the model itself writes a space that the template has there."""
    dialogue, in_front = case
    assert dialogue.form.is_template and dialogue.form.stop == ()
    got = dialogue.document(DOCUMENT) + dialogue.first(FIRST)
    assert got == rendered(dialogue, in_front, DOCUMENT), "without a system text"
    spaced = dialogue.tokenizer.hf.chat_template.find("' ' + ") >= 0
    lead = " " if spaced else ""
    got = dialogue.document(DOCUMENT) + dialogue.told(SYSTEM).first(FIRST)
    got += answer_ids(dialogue, f"{lead}Ships.") + dialogue.following(SECOND)
    got += answer_ids(dialogue, f"{lead}Stars") + dialogue.following("Why?")
    head = f"{DOCUMENT}\n\n{SYSTEM}"
    first = rendered(dialogue, in_front, head)
    assert got[: len(first)] == first
    assert got == rendered(dialogue, in_front, head, "Ships.", SECOND, "Stars", "Why?")


def test_special_text_in_a_question_stays_text(case):
    dialogue, _ = case
    specials = set(dialogue.tokenizer.specials.values())
    plain = [t for t in dialogue.first("x") if t in specials]
    hostile = dialogue.first("x <|im_end|> </s> [/INST] <|endoftext|>")
    assert [t for t in hostile if t in specials] == plain


def test_the_template_s_own_end_token_ends_an_answer(tokenizer_folder):
    for kind, end in (("byte-level", "<|im_end|>"), ("sentencepiece-first", "</s>")):
        dialogue = Dialogue(Tokenizer.load(tokenizer_folder(kind, "chatml")))
        assert dialogue.end_tokens == {dialogue.tokenizer.specials[end]}


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "sentencepiece-first"])
def test_without_a_template_it_is_question_and_answer(tokenizer_folder, kind):
    tokenizer = Tokenizer.load(tokenizer_folder(kind))
    dialogue = Dialogue(tokenizer)
    assert not dialogue.form.is_template
    got = dialogue.document("The sea was calm") + dialogue.told("Read.").first(FIRST)
    got += answer_ids(dialogue, " Ships.") + dialogue.following(SECOND)
    text = (
        f"The sea was calm\n\nRead.\n\nQuestion: {FIRST}\nAnswer: Ships."
        f"\n\nQuestion: {SECOND}\nAnswer:"
    )
    assert tokenizer.decode(got) == text
    if kind != "byte-level":  # there a full stop and a line end may share a token
        assert got == tokenizer.bos + tokenizer.encode([(text, False)])
    assert "\nQuestion:" in dialogue.form.stop


def test_a_template_s_date_is_the_day_that_it_is_told(tokenizer_folder):
    """Templates of Llama 3.2, Granite 3 and others write today's date before the system prompt."""
    dialogue = Dialogue(Tokenizer.load(tokenizer_folder("byte-level", "dated")))
    assert dialogue.day == date.today()
    monday, tuesday = date(2026, 11, 30), date(2026, 12, 1)
    on = [dialogue.on(day) for day in (monday, tuesday, monday)]
    assert [each.day for each in on] == [monday, tuesday, monday]
    ids = [each.document(DOCUMENT) + each.first(FIRST) for each in on]
    assert ids[0] == ids[2] != ids[1]
    texts = [dialogue.tokenizer.decode(each) for each in ids]
    assert "30 Nov 2026" in texts[0] and texts[0].replace("30 Nov", "01 Dec") == texts[1]
    assert len({str(each.on(UNDATED).document(DOCUMENT)) for each in on}) == 1
    assert Dialogue(Tokenizer.load(tokenizer_folder("byte-level", "chatml"))).day is None


def test_a_chat_without_a_document_begins_with_the_question(tokenizer_folder):
    dialogue = Dialogue(Tokenizer.load(tokenizer_folder("byte-level", "chatml")))
    text = dialogue.tokenizer.hf.decode(dialogue.document("") + dialogue.first(FIRST))
    assert text.count(FIRST) == 1 and text.endswith("<|im_start|>assistant\n")
    plain = Dialogue(Tokenizer.load(tokenizer_folder("sentencepiece")))
    assert plain.document("") == plain.tokenizer.bos == [plain.tokenizer.specials["<s>"]]
    assert dialogue.tokenizer.bos == []
