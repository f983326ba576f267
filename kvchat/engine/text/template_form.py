"""A chat template, rendered with sentinels and taken apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import NamedTuple

from kvchat.engine.text.rendering import Asked, render
from kvchat.engine.text.thoughts import GAP, Thoughts, marks_of
from kvchat.engine.text.tokenizer import Tokenizer

# Private-use characters: no tokenizer merges across them and no template looks for them.
SYSTEM, DOCUMENT, QUESTION, ANSWER, NEXT, THOUGHT = (f"\ue000{name}\ue001" for name in "sdqant")
SWITCHES = ("enable_thinking", "thinking")  # variables that templates ask
MARKS = (DOCUMENT, SYSTEM, QUESTION, ANSWER, NEXT)
# Where the document and the system prompt can stand; the last is for templates without such a role.
PLACES = ("nowhere", "system message", "first question")
UNDATED = date(2000, 1, 1)  # a day for ids that are only compared


@dataclass(frozen=True)
class Form:
    """The text around the parts of a conversation.

    `lead` precedes the document, `joint` stands between it and a system prompt, `opening` before
    the first question, `header` after a question, `between` after an answer.
    """

    lead: str
    joint: str
    opening: str
    header: str
    between: str
    is_template: bool = True
    stop: tuple[str, ...] = ()
    thoughts: Thoughts | None = None


def template_forms(
    tokenizer: Tokenizer, has_document: bool, days: Sequence[date], thinks: bool | None = None
) -> tuple[list[Form | None], str]:
    """The model's template as a `Form` on each day, None if it has none or cannot be taken apart;
    and why that is so on the first day.

    The document goes into the system message where the template keeps that message in front,
    otherwise to the head of the first user message. A template that has a switch for thoughts is
    told what `thinks` says; if it asks for them, a place for the document is taken where they are
    not lost.
    """
    try:
        template = tokenizer.hf.get_chat_template() if tokenizer.hf.chat_template else None
    except ValueError as error:  # several, and none for chats
        return [None] * len(days), str(error).strip().splitlines()[0]
    if not isinstance(template, str):
        return [None] * len(days), "it has none"
    marks = marks_of(template)
    asked = [
        _Asked(place, told, marks if has_thought else None)
        for place in PLACES
        for told in (None, True, False)
        for has_thought in ((False, True) if marks else (False,))
    ]
    variables = {name: str(token) for name, token in tokenizer.hf.special_tokens_map.items()}
    dates = days if "strftime_now" in template else [UNDATED] * len(days)
    on_days = render(template, variables, [each.request() for each in asked], dates)
    renderings = [_Rendering(dict(zip(asked, each.texts, strict=True)), marks) for each in on_days]
    places = PLACES[1:] if has_document else PLACES[:1]
    forms = [_best(rendering, places, thinks) for rendering in renderings]
    if forms[0] is not None:
        return forms, ""
    reasons = dict(zip(asked, on_days[0].reasons, strict=True))
    why = (reasons[_Asked(place, thinks)] for place in places)
    return forms, next(filter(None, why), "it changes the texts that it is given, or loses one")


def _best(rendering: "_Rendering", places: Sequence[str], thinks: bool | None) -> Form | None:
    found = [form for place in places if (form := _form(rendering, place, thinks))]
    switched = [form for form in found if form.thoughts and form.thoughts.switch]
    if not found or not switched or found[0] is switched[0]:
        return found[0] if found else None
    if thinks:
        return switched[0]
    # the switch does nothing here, but neither are there thoughts that would have to be closed
    return replace(found[0], thoughts=switched[0].thoughts)


class _Asked(NamedTuple):
    """A conversation: where the document stands, what the template's switch says, and the marks of
    a thought before its answer, if it has one."""

    place: str
    told: bool | None
    thought: tuple[str, str] | None = None

    def request(self) -> Asked:
        """Its messages, and the variables for them."""
        answer = ANSWER
        if self.thought is not None:
            begin, end = self.thought
            answer = f"{begin}\n{THOUGHT}\n{end}{GAP}{ANSWER}"
        texts, head = [QUESTION, answer, NEXT], f"{DOCUMENT}\n\n{SYSTEM}"
        if self.place == "first question":
            texts[0] = f"{head}\n\n{QUESTION}"
        roles = zip(("user", "assistant", "user"), texts, strict=True)
        messages = [{"role": role, "content": text} for role, text in roles]
        if self.place == "system message":
            messages.insert(0, {"role": "system", "content": head})
        return messages, {} if self.told is None else dict.fromkeys(SWITCHES, self.told)


class _Parts(NamedTuple):
    """A rendered conversation without its texts, in their order; `answered` precedes the answer,
    `header` one that is to come."""

    lead: str
    joint: str
    opening: str
    answered: str
    between: str
    header: str


@dataclass(frozen=True)
class _Rendering:
    """What a template made of every conversation on one day."""

    texts: Mapping[_Asked, str | None]
    marks: tuple[str, str] | None

    def parts(self, place: str, told: bool | None, has_thought: bool = False) -> _Parts | None:
        """The parts around the texts; None if the template refuses them or loses one."""
        rendered = self.texts[_Asked(place, told, self.marks if has_thought else None)]
        found = []
        for mark in MARKS[2 if place == PLACES[0] else 0 :]:
            before, there, rendered = (rendered or "").partition(mark)
            if not there:
                return None
            found.append(before)
        assert rendered is not None
        lead, *document, answered, between = found
        joint, opening = document or ("", "")
        return _Parts(lead, joint, opening, answered, between, rendered)


def _form(rendering: _Rendering, place: str, thinks: bool | None) -> Form | None:
    found = rendering.parts(place, thinks)
    if found is None or DOCUMENT in found.header:
        return None
    # The first question must be followed by the same as the last, or turns are not alike. Templates
    # may put a space before answers that they are given, which a model writes itself, and open a
    # thought where one is to come.
    lead, joint, opening, answered, between, header = found
    alike, thoughts = answered.startswith(header.rstrip()), None
    if rendering.marks is not None:
        thoughts = _thoughts(rendering, place, found, thinks)
        more = header.removeprefix(answered.rstrip())
        alike = alike or (more != header and any(mark in more for mark in rendering.marks))
    return Form(lead, joint, opening, header, between, thoughts=thoughts) if alike else None


def _thoughts(rendering: _Rendering, place: str, found: _Parts, thinks: bool | None) -> Thoughts:
    """What the template does about thoughts; `found` is how it writes this conversation."""
    assert rendering.marks is not None
    marks = Thoughts(*rendering.marks)
    on = rendering.parts(place, True) or found
    off = rendering.parts(place, False) or found
    header, switch = found.header, on != off
    has_own = switch and (off.header != on.header or found == off)
    past = rendering.parts(place, thinks, has_thought=True)
    # a template that cannot be given a thought does not drop it either
    drops = past is not None and THOUGHT not in past.answered
    alike = found.answered.rstrip() == header.rstrip()
    return Thoughts(
        *rendering.marks,
        wanted=on.header if switch else header,
        closed=off.header if has_own else marks.shut(header),
        past=past.answered if past is not None and drops else None,
        bare=header if alike else found.answered,
        switch=switch,
        renews=tuple(at for at, parts in ((True, on), (False, off)) if parts[:3] != found[:3]),
    )
