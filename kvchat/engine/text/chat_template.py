"""A chat template, rendered once with sentinels and taken apart, so that a document is tokenised
once and every turn is spliced in as ids. Knows text and ids, no model.
"""

from dataclasses import dataclass

from kvchat.engine.text.tokenizer import Tokenizer

# Private-use characters: no tokenizer merges across them and no template looks for them.
SYSTEM, DOCUMENT, QUESTION, ANSWER, NEXT = (f"\ue000{name}\ue001" for name in "sdqan")
PLAIN_QUESTION, PLAIN_ANSWER = "\n\nQuestion: ", "\nAnswer:"


@dataclass(frozen=True)
class Form:
    """The text around the parts of a conversation.

    `lead` precedes the system text, `joint` stands between it and the document, `opening` between
    the document and the first question, `header` after a question, `between` after an answer.
    """

    lead: str
    joint: str
    opening: str
    header: str
    between: str
    is_template: bool = True
    stop: tuple[str, ...] = ()


class Dialogue:
    """Ids of a document and of turns in the form that the model was trained on."""

    def __init__(self, tokenizer: Tokenizer, has_document: bool = True):
        """`has_document`: there is a document or a system text; without, no place is made."""
        self.tokenizer = tokenizer
        self.form = template_form(tokenizer, has_document) or plain_form()

    @property
    def end_tokens(self) -> set[int]:
        """Tokens that end an answer: the tokenizer's, and the one the template puts after it."""
        ends = {self.tokenizer.hf.eos_token_id} - {None}
        first = self.tokenizer.encode([(self.form.between, True)], continues=True)[:1]
        return ends | (set(first) & set(self.tokenizer.specials.values()))

    def document(self, text: str, system: str = "") -> list[int]:
        """Everything up to the end of the document: what is read once and compressed."""
        joint = self.form.joint if system and text else ""
        pieces = [(self.form.lead, True), (system, False), (joint, True), (text, False)]
        lead = [] if self.form.is_template else self.tokenizer.bos
        return lead + self.tokenizer.encode(pieces)

    def first(self, question: str) -> list[int]:
        """The first turn: from the document's end to where the answer begins."""
        return self._turn(self.form.opening, question)

    def following(self, question: str) -> list[int]:
        """A later turn: from the answer's end to where the next answer begins."""
        return self._turn(self.form.between, question)

    def exchange(self, question: str, answer: str) -> list[int]:
        """A first turn that is over but for its end: the question, and the answer after it."""
        return self._turn(self.form.opening, question, answer)

    def _turn(self, before: str, question: str, answer: str = "") -> list[int]:
        header = (self.form.header, True)
        pieces = [(before, True), (question, False), header, (answer, False)]
        return self.tokenizer.encode(pieces, continues=True)


def plain_form() -> Form:
    """Question and Answer lines, for models without a chat template."""
    return Form("", "\n\n", PLAIN_QUESTION, PLAIN_ANSWER, PLAIN_QUESTION, False, ("\nQuestion:",))


def template_form(tokenizer: Tokenizer, has_document: bool = True) -> Form | None:
    """The model's template as a `Form`, or None if it has none or cannot be taken apart.

    The document goes into the system message where the template keeps that message in front,
    otherwise to the head of the first user message.
    """
    if not tokenizer.hf.chat_template:
        return None
    dialogue = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": NEXT},
    ]
    if not has_document:
        return _taken_apart(tokenizer, dialogue, (QUESTION, ANSWER, NEXT))
    text = f"{SYSTEM}\n\n{DOCUMENT}"
    merged = [{"role": "user", "content": f"{text}\n\n{QUESTION}"}, *dialogue[1:]]
    for messages in ([{"role": "system", "content": text}, *dialogue], merged):
        if form := _taken_apart(tokenizer, messages, (SYSTEM, DOCUMENT, QUESTION, ANSWER, NEXT)):
            return form
    return None


def _taken_apart(
    tokenizer: Tokenizer, messages: list[dict[str, str]], marks: tuple[str, ...]
) -> Form | None:
    try:
        rendered = tokenizer.hf.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    except Exception:  # templates refuse roles in their own words
        return None
    parts = []
    for mark in marks:
        before, found, rendered = rendered.partition(mark)
        if not found:
            return None
        parts.append(before)
    lead, *document, answered, between = parts
    joint, opening = document or ("", "")
    header = rendered  # what follows the last question: the model speaks next
    # The first question must be followed by the same, or turns are not alike. Templates may put a
    # space before answers that they are given, which a model writes itself.
    if DOCUMENT in header or not answered.startswith(header.rstrip()):
        return None
    return Form(lead, joint, opening, header, between)
