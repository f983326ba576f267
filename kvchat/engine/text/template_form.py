"""A chat template, rendered with sentinels and taken apart."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from typing import Any, NamedTuple

from kvchat.engine.text.thoughts import GAP, Thoughts, marks_of
from kvchat.engine.text.tokenizer import Tokenizer

# Private-use characters: no tokenizer merges across them and no template looks for them.
SYSTEM, DOCUMENT, QUESTION, ANSWER, NEXT, THOUGHT = (f"\ue000{name}\ue001" for name in "sdqant")
SWITCHES = ("enable_thinking", "thinking")  # variables that templates ask
DIRECTIVES = "aAbBcdDeFGgHIjmMpRSTuUVwWxXyYZ"  # of a date's format
Messages = Sequence[Mapping[str, str]]


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
    thoughts: Thoughts | None = None


def template_form(
    tokenizer: Tokenizer, has_document: bool, day: date, thinks: bool | None = None
) -> Form | None:
    """The model's template as a `Form`, or None if it has none or cannot be taken apart.

    The document goes into the system message where the template keeps that message in front,
    otherwise to the head of the first user message. A template that has a switch for thoughts is
    told what `thinks` says; if it asks for them, a place for the document is taken where they are
    not lost.
    """
    if not tokenizer.hf.chat_template:
        return None
    dialogue = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": NEXT},
    ]
    layouts: list[Messages] = [dialogue]
    if has_document:
        text = f"{SYSTEM}\n\n{DOCUMENT}"
        merged = [{"role": "user", "content": f"{text}\n\n{QUESTION}"}, *dialogue[1:]]
        layouts = [[{"role": "system", "content": text}, *dialogue], merged]
    rendering = _Rendering(tokenizer, day)
    forms = (_form(rendering, messages, thinks) for messages in layouts)
    if rendering.marks is None:
        return next((form for form in forms if form), None)
    found = [form for form in forms if form]
    switched = [form for form in found if form.thoughts and form.thoughts.switch]
    if not found or not switched or found[0] is switched[0]:
        return found[0] if found else None
    if thinks:
        return switched[0]
    # the switch does nothing here, but neither are there thoughts that would have to be closed
    return replace(found[0], thoughts=switched[0].thoughts)


class _Parts(NamedTuple):
    """A rendered conversation without its texts, in their order; `answered` precedes the answer,
    `header` one that is to come."""

    lead: str
    joint: str
    opening: str
    answered: str
    between: str
    header: str


class _Rendering:
    """A template that is rendered again and again, on one day."""

    def __init__(self, tokenizer: Tokenizer, day: date):
        self._hf = tokenizer.hf
        template = self._hf.get_chat_template()
        self.marks = marks_of(template)
        self._template = dated(template, day)

    def parts(self, messages: Messages, thinks: bool | None) -> _Parts | None:
        """The parts around the texts of `messages`; None if the template refuses or loses one."""
        told = {} if thinks is None else dict.fromkeys(SWITCHES, thinks)
        try:
            rendered: str = self._hf.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
                **told,
            )
        except Exception:  # templates refuse roles in their own words
            return None
        given = "".join(message["content"] for message in messages)
        found = []
        for mark in (SYSTEM, DOCUMENT, QUESTION, ANSWER, NEXT):
            if mark not in given:
                continue
            before, there, rendered = rendered.partition(mark)
            if not there:
                return None
            found.append(before)
        lead, *document, answered, between = found
        joint, opening = document or ("", "")
        return _Parts(lead, joint, opening, answered, between, rendered)


def _form(rendering: _Rendering, messages: Messages, thinks: bool | None) -> Form | None:
    found = rendering.parts(messages, thinks)
    if found is None or DOCUMENT in found.header:
        return None
    # The first question must be followed by the same as the last, or turns are not alike. Templates
    # may put a space before answers that they are given, which a model writes itself, and open a
    # thought where one is to come.
    lead, joint, opening, answered, between, header = found
    alike, thoughts = answered.startswith(header.rstrip()), None
    if rendering.marks is not None:
        thoughts = _thoughts(rendering, messages, found, thinks)
        more = header.removeprefix(answered.rstrip())
        alike = alike or (more != header and any(mark in more for mark in rendering.marks))
    return Form(lead, joint, opening, header, between, thoughts=thoughts) if alike else None


def _thoughts(
    rendering: _Rendering, messages: Messages, found: _Parts, thinks: bool | None
) -> Thoughts:
    """What the template does about thoughts; `found` is how it writes these messages."""
    assert rendering.marks is not None
    marks = Thoughts(*rendering.marks)
    on = rendering.parts(messages, True) or found
    off = rendering.parts(messages, False) or found
    header, switch = found.header, on != off
    has_own = switch and (off.header != on.header or found == off)
    given = f"{marks.open}\n{THOUGHT}\n{marks.close}{GAP}{ANSWER}"
    thought = [
        {**message, "content": given} if message["content"] == ANSWER else message
        for message in messages
    ]
    past = rendering.parts(thought, thinks)
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


def dated(template: str, day: date) -> str:
    """A template for which it is `day`, whatever format of the date it asks `strftime_now` for.

    The function that templates know looks at the clock, and none can be handed to them; so it is
    hidden behind a macro.
    """
    if "strftime_now" not in template:
        return template
    at = datetime.combine(day, time())
    names = [f"%-{letter}" for letter in "dmyHIjMS"] + [f"%{letter}" for letter in DIRECTIVES]
    replaced: dict[str, Any] = {name: at.strftime(name) for name in names} | {"%%": "%"}
    filters = "".join(f"|replace({json.dumps(a)}, {json.dumps(b)})" for a, b in replaced.items())
    macro = f"{{%- macro strftime_now(format) -%}}{{{{ format{filters} }}}}{{%- endmacro -%}}"
    # the empty text keeps the macro's end from taking white space of the template
    return f"{macro}{{{{ '' }}}}{template}"
