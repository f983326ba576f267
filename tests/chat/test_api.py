"""The Python API: a chat about a document in a few lines."""

import json
import subprocess
import sys

import pytest

import kvchat
from kvchat.chat.attach import attach
from kvchat.documents import read
from kvchat.engine import sizes
from kvchat.engine.events import Delta, TurnDone
from kvchat.errors import KvchatError
from tests.support.forked import kvchat as program
from tests.support.program import DEMO, SAMPLE

STORY = "The boat of Mara Voss is Endeavour. " + "The mill stands by the river. " * 60
QUESTION = "What is the boat of Mara Voss?"


@pytest.fixture
def story(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "story.txt"
    path.write_text(STORY)
    return path


def opened(story, **options):
    usual = {"method": "adakv", "budget": "50%", "max_tokens": 12, "prompt_cache": "off"}
    return kvchat.open(str(DEMO), [story], **usual | options)


def test_an_answer_says_where_it_is_from(story):
    with opened(story, budget="100%") as chat:
        answer = chat.ask(QUESTION)
        [source, *_] = answer.sources
        assert "Endeavour" in answer.text and source.text == "The boat of Mara Voss is Endeavour."
        assert STORY[source.start : source.end] == source.text and 0.1 <= source.weight <= 1
        assert source.document == str(story) and source.label == "line 1"
        assert list(chat.sources) == list(answer.sources)


def test_sources_search_and_files_of_a_document_that_is_read_in_parts(tmp_path, monkeypatch):
    """Places are those of the document, whatever positions its parts stand at."""
    monkeypatch.setattr(sizes, "SMALL", 10)
    text = f"{SAMPLE.read_text('utf-8')[5000:9500]}\n"
    (tmp_path / "book.txt").write_text(text)
    (tmp_path / "more.txt").write_text("The lamp of Otto Birk is green. " * 4)
    place = [tmp_path / "book.txt"]
    given = {"method": "kvzip", "budget": "60%", "ctx_size": "512", "overflow": "stream"}
    with kvchat.open(str(DEMO), place, prompt_cache="off", max_tokens=12, **given) as opened:
        chat = opened._chat
        assert chat.book.streamed is not None and len(chat.book.streamed.parts) > 3
        wanted = "What is the boat of Henrik Ingram?"
        [source, *_] = opened.ask(wanted).sources
        assert "Henrik Ingram is Endeavour" in text[source.start : source.end] == source.text
        assert chat.book.found("boat Henrik Ingram")[0].text == source.text
        assert attach(chat, [read(str(tmp_path / "more.txt"))])
        assert [file.title for file in chat.book.files] == ["book.txt", "more.txt"]
        [source, *_] = opened.ask(wanted).sources
        assert source.text == text[source.start : source.end]
        assert "Henrik Ingram" in source.text
    asked = [str(place[0]), "-p", wanted, "-c", "512", "--overflow", "stream", "--budget", "15%"]
    asked += ["--method", "adakv", "--prompt-cache", "off", "--select"]
    told, blind = (program(*asked, how).stdout for how in ("question", "document"))
    assert b"Endeavour" in told and blind and b"Endeavour" not in blind


def test_a_short_document_is_kept_whole_whatever_the_method(story, monkeypatch):
    """Below a length that the constant says; bytes are the entries' and their positions'."""
    for small, kept in ((2000, 1.0), (100, 0.25)):
        monkeypatch.setattr(sizes, "SMALL", small)
        with opened(story, method="kvzip", budget="25%") as chat:
            answer = chat.ask(QUESTION)
            assert 100 < len(chat._chat.session.document) < 2000
            assert chat.kept_share == pytest.approx(kept, abs=0.01)
            turns = answer.prompt_tokens + answer.completion_tokens
            share = turns / chat._chat.session.cache.position
            assert answer.kv_bytes < 1.06 * (kept + share) * answer.full_bytes


def test_a_thought_is_beside_the_answer(story, tmp_path):
    """A template that opens a thought, which the demo model does not close."""
    template = tmp_path / "think.jinja"
    opened_ = (DEMO / "chat_template.jinja").read_text()
    template.write_text(opened_ + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}")
    with opened(story, chat_template=str(template)) as chat:
        *events, done = chat.stream(QUESTION)
        thought = "".join(e.text for e in events if isinstance(e, kvchat.Thought))
        assert done.answer == "" and thought.strip() == done.reasoning != ""
        answer = chat.ask(QUESTION)
        assert (answer.text, answer.reasoning) == ("", done.reasoning)
        assert answer.reasoning_tokens and not chat.warnings
    with opened(story, chat_template=str(template), think="off") as chat:
        answer = chat.ask(QUESTION)
        assert answer.text and answer.reasoning_tokens == 0


def test_importing_kvchat_imports_nothing_heavy():
    code = "import sys, kvchat; print(*({'torch', 'rich', 'typer', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_an_answer_is_that_of_the_program(story):
    with opened(story) as chat:
        answer = chat.ask(QUESTION)
        assert chat.kept_share == pytest.approx(0.5, abs=0.01)
    asked = ["--method", "adakv", "--budget", "50%", "-n", "12", "-p", QUESTION, "--json"]
    done = json.loads(program(str(story), "-m", str(DEMO), *asked).stdout)
    assert (answer.text, answer.finish_reason) == (done["answer"], done["finish_reason"])
    assert answer.completion_tokens == done["usage"]["completion_tokens"] > 0
    assert answer.kv_bytes == done["kv"]["bytes"] < answer.full_bytes == done["kv"]["full_bytes"]
    assert answer.ttft > 0 and answer.decode_seconds > 0


def test_a_stream_has_the_answer_in_pieces_and_can_be_given_up(story):
    with opened(story) as chat:
        *_, done = events = list(chat.stream(QUESTION))
        assert isinstance(done, TurnDone)
        assert "".join(e.text for e in events if isinstance(e, Delta)) == done.answer
        begun = chat.stream(QUESTION)
        next(begun)
        begun.close()
        turns = chat._chat.session.turns
        assert len(turns) == 1, "the question was taken back"


def test_recompressing_keeps_the_turns(story, capfd):
    with opened(story) as chat:
        chat.ask(QUESTION)
        chat.recompress("snapkv", "25%")
        assert chat.kept_share == pytest.approx(0.25, abs=0.01)
        with pytest.raises(KvchatError):
            chat.recompress("nonsense")
        assert chat.kept_share == pytest.approx(0.25, abs=0.01)
        assert chat.ask(QUESTION).completion_tokens > 0
    assert capfd.readouterr() == ("", ""), "a library prints nothing"


def test_a_saved_chat_goes_on_in_the_program(story, tmp_path):
    place = tmp_path / "talk.jsonl"
    with opened(story) as chat:
        with pytest.raises(KvchatError):
            chat.save(place)
        for question in (QUESTION, "Where is the mill?"):
            chat.ask(question)
        chat.save(place)
        with pytest.raises(KvchatError):
            chat.save(place)
    events = [json.loads(line) for line in place.read_text().splitlines()]
    assert [e["question"] for e in events if e["event"] == "turn"] == [
        QUESTION,
        "Where is the mill?",
    ]
    done = program("--resume", str(place), "-p", "Why?", "-n", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["usage"]["cached_tokens"] > 0


@pytest.mark.parametrize("options", [{"temperature": -1}, {"budget": "lots"}, {"select": "x"}])
def test_errors_have_the_program_s_codes(story, options):
    with pytest.raises(KvchatError) as caught:
        opened(story, **options)
    assert caught.value.exit_code == 2


def test_one_file_is_a_file(story):
    with kvchat.open(str(DEMO), str(story), prompt_cache="off", max_tokens=2) as chat:
        assert any(isinstance(event, kvchat.Delta) for event in chat.stream(QUESTION))


@pytest.mark.parametrize("name", ["budgets", "resume", "last", "prompts", "json", "log_file"])
def test_an_option_that_there_is_not(story, name):
    with pytest.raises(TypeError):
        opened(story, **{name: "x"})


def test_options_of_a_method_stay_with_it(story):
    with opened(story, method="snapkv", method_options=["window=8"], kv_bits=8) as chat:
        chat.recompress("kvzip", "30%")
        assert chat.kept_share == pytest.approx(0.3, abs=0.01)
