"""A conversation in the form that its model was trained on: a document is tokenised once, and every
turn is spliced in as ids."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from datetime import date

from kvchat.engine.events import Turn
from kvchat.engine.text.template_form import UNDATED, Form, template_forms
from kvchat.engine.text.tokenizer import Tokenizer

Piece = tuple[str, bool]  # a text, and whether special tokens in it are meant as such
PLAIN_QUESTION, PLAIN_ANSWER = "\n\nQuestion: ", "\nAnswer:"

# Question and Answer lines, for models without a chat template
PLAIN = Form("", "\n\n", PLAIN_QUESTION, PLAIN_ANSWER, PLAIN_QUESTION, False, ("\nQuestion:",))


class Dialogue:
    """Ids of a document and of turns in the form that the model was trained on."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        has_document: bool = True,
        day: date | None = None,
        thinks: bool | None = None,
        system: str = "",
    ):
        """`has_document`: there is a document, or a system prompt in its place; without, no place
        is made. `system` is a system prompt behind the document: the first turn begins with it.

        `day` is the date that a template writes, today's by default; None afterwards if it writes
        none. Whoever keeps a document's KV keeps its day too: `on` that day the ids are the same.
        `thinks` is what a template with a switch for thoughts is told; None: nothing. `why_plain`
        says afterwards why the template is not used, if it is not.
        """
        self.tokenizer, self._has_document, self._thinks = tokenizer, has_document, thinks
        self.system = system
        day = day or date.today()
        forms, self.why_plain = template_forms(tokenizer, has_document, (day, UNDATED), thinks)
        self.form = forms[0] or PLAIN
        self.day = day if forms[0] != forms[1] else None

    def on(self, day: date) -> "Dialogue":
        """The same dialogue on another day; `UNDATED` gives ids that no day changes."""
        return Dialogue(self.tokenizer, self._has_document, day, self._thinks, self.system)

    def told(self, system: str) -> "Dialogue":
        """The same dialogue with another system prompt; the ids of a document are the same."""
        other = copy(self)
        other.system = system
        return other

    @property
    def told_tokens(self) -> int:
        """What the system prompt adds to the first turn."""
        return len(self.first("")) - len(self.told("").first("")) if self.system else 0

    @property
    def end_tokens(self) -> set[int]:
        """Tokens that end an answer: the tokenizer's, and the one the template puts after it."""
        ends = set(self.tokenizer.ends)
        first = self.tokenizer.encode([(self.form.between, True)], continues=True)[:1]
        return ends | (set(first) & set(self.tokenizer.specials.values()))

    def document(self, text: str) -> list[int]:
        """Everything up to the end of the document: what is read once and compressed."""
        lead = [] if self.form.is_template else self.tokenizer.bos
        return lead + self.tokenizer.encode([(self.form.lead, True), (text, False)])

    def document_begins(self, text: str) -> list[int]:
        """Where each of these ids begins in `text`, in characters; below 0 in what precedes it."""
        before = len(self.form.lead)
        found = self.tokenizer.begins([(self.form.lead, True), (text, False)])
        lead = [] if self.form.is_template else self.tokenizer.bos
        return [-before] * len(lead) + [at - before for at in found]

    def added(self, text: str) -> list[int]:
        """Ids of a text that stands behind a document."""
        return self.tokenizer.encode([(text, False)], continues=True)

    def added_begins(self, text: str) -> list[int]:
        """Where each of these ids begins in `text`."""
        return self.tokenizer.begins([(text, False)], continues=True)

    def header(self, thinks: bool | None = None) -> str:
        """What follows a question: with room for a thought, with none, or as the template has it
        when it is told neither."""
        thoughts = self.form.thoughts
        if thoughts is None or thinks is None:
            return self.form.header
        return thoughts.wanted if thinks else thoughts.closed

    def meant(self, thinks: bool | None) -> bool | None:
        """What None comes to with this template, as another `Dialogue` would have to be told it."""
        thoughts = self.form.thoughts
        if thoughts is None or thinks is not None:
            return thinks
        same = (at for at in (True, False) if self.header(at) == self.form.header)
        return next(same, None)

    def first(self, question: str, thinks: bool | None = None) -> list[int]:
        """The first turn: from the document's end to where the answer (or its thought) begins."""
        return self._turn(self._opening, question, self.header(thinks))

    def following(self, question: str, thinks: bool | None = None) -> list[int]:
        """A later turn: from the answer's end to where the next answer begins."""
        return self._turn(self._between, question, self.header(thinks))

    def exchange(self, question: str, answer: str) -> list[int]:
        """A first turn that is over but for its end: the question, and the answer after it. It
        has no system prompt: what is kept of a document does not depend on that."""
        opening = [(self.form.opening, True)]
        return self._turn(opening, question, self.header(False), answer)

    def conversation(
        self, turns: Sequence[tuple[str, str]], question: str, thinks: bool | None = None
    ) -> list[int]:
        """Questions with their answers, and one that is to be answered: from the document's end
        to where that answer (or its thought) begins."""
        thoughts, before = self.form.thoughts, self._opening
        answered = (
            self.header(False) if thoughts is None or thoughts.past is None else thoughts.bare
        )
        pieces: list[tuple[str, bool]] = []
        for asked, answer in turns:
            pieces += [*before, (asked, False), (answered, True), (answer, False)]
            before = self._between
        pieces += [*before, (question, False), (self.header(thinks), True)]
        return self.tokenizer.encode(pieces, continues=True)

    def past(self, turn: Turn, is_first: bool) -> Turn:
        """A turn as the template writes it once another question follows: without its thought.

        It is the same turn where the template keeps thoughts, and where another one has made it.
        """
        thoughts = self.form.thoughts
        if thoughts is None or thoughts.past is None or turn.whole is not None:
            return turn
        before, header = self._between, self.header(turn.thinks)
        if is_first:
            before = self._opening
        gone = self._turn(before, turn.question, header)
        come = self._turn(before, turn.question, thoughts.past if turn.thought else thoughts.bare)
        same = common(gone, come)
        kept = turn.asked - (len(gone) - same)
        if (gone == come and not turn.thought) or turn.ids[kept : turn.asked] != tuple(gone[same:]):
            return turn
        asked = (*turn.ids[:kept], *come[same:])
        answer, pending = turn.tokens[turn.thought :], turn.pending
        if len(answer) < len(pending):  # it was cut inside of its thought
            pending = ()
        answer = answer[: len(answer) - len(pending)]
        shown = self.tokenizer.decode([*answer, *pending]).strip()
        if shown != turn.answer.strip():  # a token has the end of the thought and its beginning
            answer = tuple(self.tokenizer.encode([(turn.answer, False)], continues=True))
            pending = tuple(token for token in pending if token in self.end_tokens)
        return replace(
            turn, ids=(*asked, *answer), asked=len(asked), pending=pending, thought=0, whole=turn
        )

    @property
    def _opening(self) -> list[Piece]:
        """What stands between the document and the first question."""
        told = [(self.form.joint, True), (self.system, False)] if self.system else []
        return [*told, (self.form.opening, True)]

    @property
    def _between(self) -> list[Piece]:
        return [(self.form.between, True)]

    def _turn(
        self, before: Sequence[Piece], question: str, header: str, answer: str = ""
    ) -> list[int]:
        pieces = [*before, (question, False), (header, True), (answer, False)]
        return self.tokenizer.encode(pieces, continues=True)


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
