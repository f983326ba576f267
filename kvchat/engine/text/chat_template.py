"""A chat template, rendered once with sentinels and taken apart, so that a document is tokenised
once and every turn is spliced in as ids.
"""

import json
import re
from dataclasses import dataclass
from datetime import date

from kvchat.engine.text.tokenizer import Tokenizer

# Private-use characters: no tokenizer merges across them and no template looks for them.
SYSTEM, DOCUMENT, QUESTION, ANSWER, NEXT = (f"\ue000{name}\ue001" for name in "sdqan")
UNDATED = date(2000, 1, 1)  # a day for ids that are only compared
NOW = re.compile(r"""\bstrftime_now\(\s*(["'])(.*?)\1\s*\)""")  # how templates ask for the date
PLAIN_QUESTION, PLAIN_ANSWER = "\n\nQuestion: ", "\nAnswer:"


@dataclass(frozen=True)
class Form:
    """The text around the parts of a conversation.

    `lead` precedes the system prompt, `joint` stands between it and the document, `opening` between
    the document and the first question, `header` after a question, `between` after an answer.
    """

    lead: str
    joint: str
    opening: str
    header: str
    between: str
    is_template: bool = True
    stop: tuple[str, ...] = ()


# Question and Answer lines, for models without a chat template
PLAIN = Form("", "\n\n", PLAIN_QUESTION, PLAIN_ANSWER, PLAIN_QUESTION, False, ("\nQuestion:",))


class Dialogue:
    """Ids of a document and of turns in the form that the model was trained on."""

    def __init__(self, tokenizer: Tokenizer, has_document: bool = True, day: date | None = None):
        """`has_document`: there is a document or a system prompt; without, no place is made.

        `day` is the date that a template writes, today's by default; None afterwards if it writes
        none. Whoever keeps a document's KV keeps its day too: `on` that day the ids are the same.
        """
        self.tokenizer, self._has_document = tokenizer, has_document
        day = day or date.today()
        forms = [template_form(tokenizer, has_document, each) for each in (day, UNDATED)]
        self.form = forms[0] or PLAIN
        self.day = day if forms[0] != forms[1] else None

    def on(self, day: date) -> "Dialogue":
        """The same dialogue on another day; `UNDATED` gives ids that no day changes."""
        return Dialogue(self.tokenizer, self._has_document, day)

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


def template_form(tokenizer: Tokenizer, has_document: bool, day: date) -> Form | None:
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
        return _taken_apart(tokenizer, dialogue, (QUESTION, ANSWER, NEXT), day)
    text = f"{SYSTEM}\n\n{DOCUMENT}"
    merged = [{"role": "user", "content": f"{text}\n\n{QUESTION}"}, *dialogue[1:]]
    marks = (SYSTEM, DOCUMENT, QUESTION, ANSWER, NEXT)
    for messages in ([{"role": "system", "content": text}, *dialogue], merged):
        if form := _taken_apart(tokenizer, messages, marks, day):
            return form
    return None


def _taken_apart(
    tokenizer: Tokenizer, messages: list[dict[str, str]], marks: tuple[str, ...], day: date
) -> Form | None:
    try:
        template = NOW.sub(
            lambda call: json.dumps(day.strftime(call[2])), tokenizer.hf.get_chat_template()
        )
        rendered = tokenizer.hf.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
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
