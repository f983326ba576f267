"""Models that think: their templates are taken apart, the thought is told from the answer, and
history has it or not as the template says."""

from datetime import date

import pytest

from kvchat.engine.events import Delta, Thought, Turn, drain
from kvchat.engine.methods.build import parse_method
from kvchat.engine.prefill.archive_writer import InMemory
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.stop_strings import Answer
from kvchat.engine.text.thoughts import Splitter, Thoughts
from kvchat.engine.text.tokenizer import TextStream, Tokenizer
from kvchat.errors import KvchatError
from tests.engine.scripted import BOOK, ScriptedEngine, ask, new_session, tokens_in

KINDS = ("byte-level", "byte-level-marks")  # marks of several tokens, and of one
MARKS = Thoughts("<think>", "</think>")
DROPPED = ("opens", "deepseek", "hybrid")
FULL, ADAKV = parse_method("full"), parse_method("adakv:budget=40%,window=8")


def dialogue_of(tokenizer_folder, template, kind="byte-level-marks", **options) -> Dialogue:
    return Dialogue(Tokenizer.load(tokenizer_folder(kind, template)), **options)


def test_a_template_that_opens_a_thought_is_used(tokenizer_folder):
    """The right values of the case think-prefill."""
    form = dialogue_of(tokenizer_folder, "opens").form
    assert form.is_template and form.header == "<|im_end|>\n<|im_start|>assistant\n<think>\n"
    thoughts = form.thoughts
    assert thoughts.past == thoughts.bare == "<|im_end|>\n<|im_start|>assistant\n"
    assert thoughts.closed == form.header + "\n</think>\n\n" and not thoughts.switch
    assert thoughts.is_open(form.header) and not thoughts.is_open(thoughts.closed)


def test_white_space_that_a_template_keeps_behind_a_thought_is_kept(tokenizer_folder):
    thoughts = dialogue_of(tokenizer_folder, "deepseek").form.thoughts
    assert thoughts.past == "<|im_end|>\n<|im_start|>assistant\n\n"
    assert thoughts.bare == "<|im_end|>\n<|im_start|>assistant"


def test_a_hybrid_s_own_switch(tokenizer_folder):
    dialogue = dialogue_of(tokenizer_folder, "hybrid")
    thoughts = dialogue.form.thoughts
    plain = "<|im_end|>\n<|im_start|>assistant\n"
    assert thoughts.switch and not thoughts.renews
    assert dialogue.header() == dialogue.header(True) == thoughts.past == plain
    assert dialogue.header(False) == plain + "<think>\n\n</think>\n\n"
    told = dialogue_of(tokenizer_folder, "hybrid", thinks=False)
    assert told.header() == told.header(False) == dialogue.header(False)
    assert told.header(True) == plain and told.form.thoughts.past == plain


def test_a_switch_that_the_system_message_names(tokenizer_folder):
    on, off = (dialogue_of(tokenizer_folder, "named", thinks=each) for each in (None, False))
    assert "/think" in on.form.lead and "/no_think" in off.form.lead
    assert on.form.thoughts.renews == (False,) and off.form.thoughts.renews == (True,)
    assert on.form.thoughts.past is None
    assert on.header(False) == off.header() == on.header() + "<think>\n\n</think>\n"
    noon = date(2026, 11, 20)
    assert "20 November 2026" in off.on(noon).form.lead and "/no_think" in off.on(noon).form.lead


def test_thoughts_that_are_asked_for_in_a_system_message(tokenizer_folder):
    """Granite's default is none; told to think, the document must not replace what asks for it."""
    none, on = (dialogue_of(tokenizer_folder, "granite", thinks=each) for each in (None, True))
    assert "thought process" not in none.form.lead and none.header(False) == none.header()
    assert "thought process" in on.form.lead and on.form.thoughts.renews == (False,)
    assert none.form.thoughts.renews == (True,)


def test_a_template_without_thoughts_knows_none(tokenizer_folder):
    dialogue = dialogue_of(tokenizer_folder, "chatml")
    assert dialogue.form.thoughts is None
    assert dialogue.header(True) == dialogue.header(False) == dialogue.header()


@pytest.mark.parametrize("template, lead", [("named", "Today: 01 February 2026"),
                         ("date-string", "Today Date: 01 Feb 2026")])  # fmt: skip
def test_dates_in_any_form(tokenizer_folder, template, lead):
    dialogue = dialogue_of(tokenizer_folder, template, day=date(2026, 2, 1))
    assert lead in dialogue.form.lead and dialogue.day == date(2026, 2, 1)


def parted(text: str, size: int, inside: bool) -> tuple[str, str]:
    splitter = Splitter(MARKS, inside)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    found = [*(splitter.push(piece) for piece in pieces), splitter.push("", final=True)]
    return "".join(a for a, _ in found), "".join(b for _, b in found)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("text, inside, want", [
    ("<think>\nSea.\n</think>\n\nShips.", False, ("\nSea.\n", "Ships.")),
    ("Sea.\n</think>\n\n  Ships <think> and", True, ("Sea.\n", "Ships <think> and")),
    (" <b>Ships</b>", False, ("", " <b>Ships</b>")),
    ("<thin ice", False, ("", "<thin ice")),
    ("<think>Sea </thi", False, ("Sea </thi", "")),
    ("</think>Ships", True, ("", "Ships")),
    ("\n", False, ("", "\n")),
])  # fmt: skip
def test_a_thought_is_told_from_the_answer(text, inside, want, size):
    assert parted(text, size, inside) == want


def session_of(chat_folder, template, kind="byte-level-marks", **options):
    return new_session(chat_folder(kind, template), kind=ScriptedEngine, **options)


def script(session, text: str, end: bool = True) -> list[int]:
    """Let the model write this; marks are tokens of their own where the tokenizer has such."""
    ids = session.dialogue.tokenizer.encode([(text, True)], continues=True)
    ids += [session.dialogue.tokenizer.specials["<|im_end|>"]] if end else []
    session.engine.script = list(ids)
    return ids


def thinks(session, question, thought, answer, **options):
    """A turn with a thought, as the template wants it to begin."""
    opened = session.dialogue.form.thoughts.is_open(session.dialogue.header())
    begin = "" if opened else "<think>\n"
    script(session, f"{begin}{thought}\n</think>\n\n{answer}")
    return ask(session, question, **options)


def text_in(session) -> str:
    return session.dialogue.tokenizer.hf.decode(tokens_in(session))


def rendered(session, *texts: str) -> str:
    """The conversation as the template itself writes it: thoughts are given to it."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    book = [{"role": "system", "content": BOOK}]
    text: str = session.dialogue.tokenizer.hf.apply_chat_template(
        [*book, *messages], tokenize=False, add_generation_prompt=True
    )
    return text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [*DROPPED, "named"])
def test_history_is_what_the_template_writes(chat_folder, template, kind):
    """Two thoughts, then a third question: the cache holds the template's own text."""
    session = session_of(chat_folder, template, kind)
    done = thinks(session, "What?", "At sea.", "Ships.")
    assert (done.answer, done.reasoning, done.finish_reason) == ("Ships.", "At sea.", "stop")
    thinks(session, "And?", "By night.", "Stars.")
    script(session, "x", end=False)
    ask(session, "Why?", max_tokens=1)
    whole = [f"<think>\n{a}\n</think>\n\n{b}" for a, b in
             (("At sea.", "Ships."), ("By night.", "Stars."))]  # fmt: skip
    assert text_in(session) == rendered(session, "What?", whole[0], "And?", whole[1], "Why?")
    assert ("At sea." in text_in(session)) == (template == "named")
    assert [(t.answer, t.reasoning) for t in session.turns[:2]] == [
        ("Ships.", "At sea."), ("Stars.", "By night.")]  # fmt: skip
    assert session.cache.position == len(session.document) + sum(len(t.ids) for t in session.turns)


@pytest.mark.parametrize("kind", KINDS)
def test_events_and_numbers_of_a_thought(chat_folder, kind):
    session = session_of(chat_folder, "hybrid", kind)
    ids = script(session, "<think>\nAt sea.\n</think>\n\nShips 😀.")
    answer = session.dialogue.tokenizer.encode([("Ships 😀.", False)], continues=True)
    *events, done = session.ask("What?")
    assert "".join(e.text for e in events if isinstance(e, Thought)) == "At sea.\n"
    assert "".join(e.text for e in events if isinstance(e, Delta)) == done.answer == "Ships 😀."
    assert done.completion_tokens == len(ids)
    assert done.reasoning_tokens == len(ids) - len(answer) - 1
    turn = session.turns[-1]
    assert turn.tokens[turn.thought : -1] == tuple(answer)


def test_an_answer_that_begins_with_bytes_of_a_character(chat_folder):
    session = session_of(chat_folder, "opens")
    script(session, "At sea.</think>\n\n😀")
    count = len(session.dialogue.tokenizer.encode([("😀", False)], continues=True))
    assert count > 1
    done = ask(session, "What?")
    assert done.completion_tokens - done.reasoning_tokens == count + 1
    [past] = session._past(session.turns)
    assert session.dialogue.tokenizer.hf.decode(past.tokens) == "😀<|im_end|>"


def test_a_mark_that_shares_a_token_with_the_answer(tokenizer_folder):
    """The answer is tokenised again: it cannot be cut out of the tokens that were drawn."""
    tokenizer = Tokenizer.load(tokenizer_folder("byte-level", "opens"))
    dialogue, made = Dialogue(tokenizer), Answer(TextStream(tokenizer), (), Splitter(MARKS, True))
    for piece in ("At", "</think"):
        for token in tokenizer.encode([(piece, False)], continues=True):
            made.push(token, is_end=False)
    tokenizer.hf.add_tokens([">Ships"])
    made.push(last := len(tokenizer.hf) - 1, is_end=False)
    assert (made.thought, made.text) == ("At", "Ships") and made.tokens[-1] == last
    ids = dialogue.first("What?")
    turn = Turn("What?", "Ships", "length", (*ids, *made.tokens[:-1]), len(ids), (last,),
                "At", made.thought_tokens)  # fmt: skip
    past = dialogue.past(turn, is_first=True)
    assert tokenizer.hf.decode(past.ids).endswith("<|im_start|>assistant\nShips")
    assert past.pending == () and past.whole == turn


def test_special_marks_are_seen_though_their_text_is_not(chat_folder):
    session = session_of(chat_folder, "magistral")
    script(session, "[THINK]At sea.[/THINK]Ships.")
    done = ask(session, "What?")
    assert (done.reasoning, done.answer) == ("At sea.", "Ships.")
    script(session, "x", end=False)
    ask(session, "And?", max_tokens=1)
    assert "[THINK]At sea.[/THINK]Ships." in text_in(session)  # this template keeps it


def test_a_stop_string_ends_the_answer_alone(chat_folder):
    session = session_of(chat_folder, "hybrid")
    script(session, "<think>\nSTOP at sea.</think>\n\nShips STOP and")
    done = ask(session, "What?", stop=["STOP"])
    assert (done.answer, done.reasoning, done.finish_reason) == ("Ships ", "STOP at sea.", "stop")
    assert text_in(session).endswith("</think>\n\nShips ")
    script(session, "<the answer", end=False)  # what waits to be told is no part of it either
    assert ask(session, "And?", stop=["<t"]).answer == ""
    assert text_in(session).endswith("assistant\n")


@pytest.mark.parametrize("template", ["opens", "hybrid"])
def test_a_thought_that_a_limit_cut_goes_on(chat_folder, template):
    session, whole = (session_of(chat_folder, template) for _ in range(2))
    want = thinks(whole, "What?", "At sea.", "Ships.")
    thinks(session, "What?", "At sea.", "Ships.", max_tokens=4)
    turn = session.turns[-1]
    assert (turn.answer, turn.finish_reason, turn.thought) == ("", "length", 4)
    *events, done = session.more()
    assert (done.answer, done.reasoning, done.finish_reason) == ("Ships.", "At sea.", "stop")
    assert "".join(e.text for e in events if isinstance(e, Delta)) == "Ships."
    assert done.reasoning_tokens == want.reasoning_tokens
    assert session.turns == whole.turns and tokens_in(session) == tokens_in(whole)


def test_a_question_after_a_cut_thought_drops_it_and_undo_brings_it_back(chat_folder):
    session, other = (session_of(chat_folder, "opens") for _ in range(2))
    for each in (session, other):
        thinks(each, "What?", "At sea.", "Ships.", max_tokens=4)
    rest = list(session.engine.script)
    before = list(session.turns)
    thinks(session, "And?", "By night.", "Stars.")
    assert "At sea" not in text_in(session) and session.turns[0].pending == ()
    assert "assistant\n<|im_end|>" in text_in(session)
    session.undo(1)
    assert session.turns == before and tokens_in(session) == tokens_in(other)
    session.engine.script = rest
    *_, done = session.more()
    assert (done.reasoning, done.answer) == ("At sea.", "Ships.")


def test_a_question_that_was_given_up_lets_a_cut_thought_go_on(chat_folder):
    session = session_of(chat_folder, "opens")
    thinks(session, "What?", "At sea.", "Ships.", max_tokens=4)
    rest, before = list(session.engine.script), tokens_in(session)
    list(session.ask("And?", cancelled=lambda: True))
    assert session.turns[-1].whole is not None
    session.engine.script = rest
    *_, done = session.more()
    assert (done.reasoning, done.answer) == ("At sea.", "Ships.")
    assert tokens_in(session)[: len(before)] == before


def test_a_question_that_does_not_fit_leaves_the_thought(chat_folder):
    session = session_of(chat_folder, "opens")
    thinks(session, "What?", "At sea.", "Ships.")
    before, turns = tokens_in(session), list(session.turns)
    with pytest.raises(KvchatError) as caught:
        list(session.ask("x" * 4000))
    assert caught.value.code == "too_long"
    assert tokens_in(session) == before and session.turns == turns


@pytest.mark.parametrize("template", DROPPED)
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_undo_and_saved_turns(chat_folder, template, count):
    """Undo leaves what an earlier moment would have been after its next question, and turns that
    are restored with all their thoughts end up in the same."""
    sessions = [session_of(chat_folder, template) for _ in range(3)]
    said = (("What?", "At sea.", "Ships."), ("And?", "By night.", "Stars."),
            ("Why?", "He is alone.", "To sleep."))  # fmt: skip
    for turn in said:
        thinks(sessions[0], *turn)
    for turn in said[: 3 - count]:
        thinks(sessions[1], *turn)
    saved = [turn.whole or turn for turn in sessions[0].turns]
    sessions[0].undo(count)
    drain(sessions[2].restore(saved[: 3 - count]))
    for session in sessions:
        thinks(session, "So?", "Hm.", "Yes.")
    assert tokens_in(sessions[0]) == tokens_in(sessions[1]) == tokens_in(sessions[2])
    assert sessions[0].turns == sessions[1].turns == sessions[2].turns


@pytest.mark.parametrize("template", ["opens", "hybrid"])
@pytest.mark.parametrize("before, after", [(None, False), (False, None)])
def test_saved_turns_under_another_position_of_the_switch(chat_folder, template, before, after):
    """A chat that is resumed with another `--think` drops the thoughts of before all the same."""
    first, second = (session_of(chat_folder, template) for _ in range(2))
    for session, told in ((first, before), (second, after)):
        session.dialogue = Dialogue(session.dialogue.tokenizer, thinks=told)
    script(first, "<think>\nAt sea.\n</think>\n\nShips.")
    ask(first, "What?")
    drain(second.restore(first.turns))
    script(second, "x", end=False)
    ask(second, "And?", max_tokens=1)
    assert "At sea" not in text_in(second) and "assistant\nShips." in text_in(second)


def test_no_thought_where_none_is_wanted(chat_folder):
    """By the template's switch and by an empty thought; history has neither."""
    for template, closed in (("hybrid", "<think>\n\n</think>\n\n"),
                             ("opens", "<think>\n\n</think>\n\n")):  # fmt: skip
        session = session_of(chat_folder, template)
        script(session, "Ships.")
        done = ask(session, "What?", thinks=False)
        assert (done.answer, done.reasoning) == ("Ships.", "")
        assert text_in(session).endswith(f"assistant\n{closed}Ships.")
        script(session, "x", end=False)
        ask(session, "And?", thinks=False, max_tokens=1)
        want = rendered(session, "What?", "Ships.", "And?").removesuffix("<think>\n")
        assert text_in(session) == want + closed


@pytest.mark.parametrize("method", [FULL, ADAKV])
def test_another_document_under_thoughts(chat_folder, method):
    session, other = (session_of(chat_folder, "opens") for _ in range(2))
    for each in (session, other):
        thinks(each, "What?", "At sea.", "Ships.")
        thinks(each, "And?", "By night.", "Stars.")
    book = session.dialogue.document(BOOK + " He slept.")
    like = Dialogue(session.dialogue.tokenizer)
    drain(session.recompress(method, document=book, dialogue=like))
    assert [t.ids for t in session.turns] == [t.ids for t in other.turns]
    thinks(session, "So?", "Hm.", "Yes.")
    assert "By night" not in text_in(session)


def test_a_tail_budget_folds_turns_without_their_thoughts(chat_folder):
    sessions = [session_of(chat_folder, "opens", method=ADAKV, tail_budget=64) for _ in range(2)]
    for session in sessions:
        for n in range(6):
            thinks(session, f"What {n}?", "At sea. " * 3, f"Ships {n}.")
            assert session.turns[-1].thought and session.cache.frozen <= (
                session.cache.position - len(session.turns[-1].ids)
            )
    assert sessions[0].compacted > 0 and not any(t.thought for t in sessions[0].turns[:-1])
    [gone] = sessions[0].undo(1)
    drain(sessions[0].restore([gone]))
    for session in sessions:
        thinks(session, "So?", "Hm.", "Yes.")
    assert [t.ids for t in sessions[0].turns] == [t.ids for t in sessions[1].turns]


def test_every_question_chooses_beside_thoughts(chat_folder):
    """With a full copy: the cache holds the template's history, and the answer its own choice."""
    sessions = [
        session_of(chat_folder, "opens", method=ADAKV, archiving=InMemory(), by_question=True)
        for _ in range(2)
    ]
    for session in sessions:
        session.chooser = ADAKV
        thinks(session, "What?", "At sea.", "Ships.")
        thinks(session, "And?", "By night.", "Stars.", max_tokens=3)
    rest = list(sessions[0].engine.script)
    thinks(sessions[0], "Why?", "Hm.", "So.")
    sessions[0].undo(1)
    assert sessions[0].turns == sessions[1].turns
    assert tokens_in(sessions[0]) == tokens_in(sessions[1])
    kept = [[s.position.tolist() for s in each.cache.segments()] for each in sessions]
    assert kept[0] == kept[1]
    sessions[0].engine.script = rest
    assert list(sessions[0].more())[-1].answer == "Stars."
