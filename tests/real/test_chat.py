"""A chat with a real model: what is in the document is found, thoughts and days are told apart."""

import json
import re
from datetime import date

import pytest

from kvchat.engine.text import chat_template
from tests.engine.thinking import OPENS
from tests.prompt_cache.test_prompt_cache import DATED
from tests.real.conftest import TEXT
from tests.support.program import kvchat
from tests.support.scene import Place

pytestmark = pytest.mark.model
NEEDLE = "The password of the harbour office is Marzipan."
QUESTION = "What is the password of the harbour office?"
PARTS = TEXT[:5000].split("\n\n")
THREADS = {"OMP_NUM_THREADS": "2"}


@pytest.fixture
def story(tmp_path):
    """A part of the sample with a sentence of which no model knows."""
    half = len(PARTS) // 2
    path = tmp_path / "story.txt"
    path.write_text("\n\n".join([*PARTS[:half], NEEDLE, *PARTS[half:]]), encoding="utf-8")
    return path


@pytest.fixture
def ask(smollm2, story):
    """`ask(*arguments)`: the JSON of one greedy answer about the story."""

    def run(*arguments):
        given = ("-m", str(smollm2), "-f", str(story), "-p", QUESTION, "--temp", "0", "--json")
        done = kvchat(*given, "-n", "24", *arguments, **THREADS)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize("method", ["full", "kvzip"])
def test_a_needle_is_found(ask, method):
    found = ask("--method", method)
    assert "Marzipan" in found["answer"]
    assert found["usage"]["document_tokens"] > 1000


def test_a_thought_is_told_from_the_answer(ask, tmp_path):
    """The generation prompt opens a thought that this model never closes; off: there is none."""
    template = tmp_path / "think.jinja"
    template.write_text(OPENS)
    given = ("--chat-template", str(template), "--method", "full")
    found = ask(*given)
    assert found["answer"] == "" and found["reasoning"].strip()
    thought, tokens = (found["usage"][f"{kind}_tokens"] for kind in ("reasoning", "completion"))
    assert 3 < thought <= tokens <= thought + 1, "the end token is of neither"
    found = ask(*given, "--think", "off")
    assert found["answer"].strip() and not found.get("reasoning")


def test_a_prompt_cache_serves_the_next_day(smollm2, tmp_path, monkeypatch):
    """Also where the template writes the date: the document keeps the day of its prefill."""
    template = tmp_path / "date.jinja"
    template.write_text(DATED)
    place = Place(smollm2, tmp_path, chat_template=str(template))
    place.story.write_text("\n\n".join([*PARTS[:3], NEEDLE]))
    first = place.opened()
    assert first.restored is None and len(place.files()) == 1
    today = date.today()

    class Tomorrow(date):
        @classmethod
        def today(cls):
            return date.fromordinal(today.toordinal() + 1)

    monkeypatch.setattr(chat_template, "date", Tomorrow)
    second = place.opened()
    assert second.restored and second.book.dialogue.day == today
    assert second.session.document == first.session.document
    answers = [[*chat.session.ask(QUESTION, max_tokens=16)][-1].answer for chat in (first, second)]
    assert answers[0] == answers[1] and "Marzipan" in answers[0]


def test_the_second_act(smollm2, tmp_path, monkeypatch):
    """With the full cache it answers what the document says; a quarter is a quarter."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2-135m.gguf").symlink_to(smollm2)
    monkeypatch.chdir(tmp_path)
    done = kvchat("demo", "--act", "2", **THREADS)
    out = done.stdout.decode()
    assert done.returncode == 0, done.stderr.decode()
    found = re.findall(r"(?m)^(full cache|kvzap 25%) +(\d) of 5 +([\d.]+) MiB", out)
    (_, full, whole), (_, default, quarter) = found
    assert int(full) >= 4 and int(default) >= 2
    assert 3.5 < float(whole) / float(quarter) < 4.5
    marks = re.findall(r"(?m)^(right|WRONG) +(right|WRONG) ", out)
    assert [str(each.count("right")) for each in zip(*marks, strict=True)] == [full, default]
    tokens = re.search(r"prefill ([\d,]+) tokens", done.stderr.decode())
    assert tokens and 3000 <= int(tokens[1].replace(",", "")) <= 4000
