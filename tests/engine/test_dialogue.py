"""Chat templates taken apart: a document and turns spliced in as ids equal the template rendered as
a whole."""

from datetime import date

import pytest

from kvchat.engine.text.chat_template import UNDATED, Dialogue
from kvchat.engine.text.tokenizer import Tokenizer

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
    and encoded as text.
    """
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
    got = dialogue.document(DOCUMENT, SYSTEM) + dialogue.first(FIRST)
    got += answer_ids(dialogue, f"{lead}Ships.") + dialogue.following(SECOND)
    got += answer_ids(dialogue, f"{lead}Stars") + dialogue.following("Why?")
    head = f"{SYSTEM}\n\n{DOCUMENT}"
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
    got = dialogue.document("The sea was calm", "Read.") + dialogue.first(FIRST)
    got += answer_ids(dialogue, " Ships.") + dialogue.following(SECOND)
    text = (
        f"Read.\n\nThe sea was calm\n\nQuestion: {FIRST}\nAnswer: Ships."
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
    ids = [each.document(DOCUMENT, SYSTEM) + each.first(FIRST) for each in on]
    assert ids[0] == ids[2] != ids[1]
    texts = [dialogue.tokenizer.decode(each) for each in ids]
    assert "30 Nov 2026" in texts[0] and texts[0].replace("30 Nov", "01 Dec") == texts[1]
    assert len({str(each.on(UNDATED).document(DOCUMENT, SYSTEM)) for each in on}) == 1
    assert Dialogue(Tokenizer.load(tokenizer_folder("byte-level", "chatml"))).day is None


def test_a_chat_without_a_document_begins_with_the_question(tokenizer_folder):
    dialogue = Dialogue(Tokenizer.load(tokenizer_folder("byte-level", "chatml")))
    ids = dialogue.document("") + dialogue.first(FIRST)
    text = dialogue.tokenizer.hf.decode(ids)
    assert text.count(FIRST) == 1 and text.endswith("<|im_start|>assistant\n")
    plain = Dialogue(Tokenizer.load(tokenizer_folder("sentencepiece")))
    assert plain.document("") == plain.tokenizer.bos
