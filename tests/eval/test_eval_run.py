"""`kvchat eval` as a whole, on a tiny model: what it writes, goes on with, and refuses."""

import copy
import json
import re

import pytest

from kvchat.engine.session import Session
from kvchat.engine.text.chat_template import Dialogue
from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.errors import KvchatError
from kvchat.eval.answers import Answers
from kvchat.eval.case import Question
from kvchat.eval.files import LOADERS
from kvchat.eval.measure import answer
from kvchat.eval.sources import Source, fitted
from kvchat.eval.tasks import TASKS
from tests.engine import tiny
from tests.support.forked import kvchat

SAMPLE = {"input": "It rains. Ada has 7421. It snows.\nWhat has Ada?", "outputs": ["7421"]}


@pytest.fixture
def evaluate(chat_folder, tmp_path):
    """`evaluate(*arguments)`: the command on a tiny model, with its results in tmp_path/eval."""
    model = str(chat_folder("byte-level", "chatml"))

    def run(*arguments: str, **environment: str):
        place = [] if environment else ["--out", str(tmp_path / "eval")]
        fixed = ["-m", model, *place, "--threads", "1", "--budget", "50%"]
        fixed += ["--method", "full", "--method", "snapkv"]  # the full cache counts once
        return kvchat("eval", *fixed, *arguments, **environment)

    return run


@pytest.fixture
def answers(tmp_path):
    """`answers()`: all records that were written."""

    def read() -> list[dict]:
        text = (tmp_path / "eval" / "answers.jsonl").read_text()
        return [json.loads(line) for line in text.split("\n") if line]

    return read


@pytest.fixture(scope="module")
def session(chat_folder):
    folder = chat_folder("byte-level", "chatml")
    return Session(tiny.load_engine(folder), Dialogue(Tokenizer.load(folder)))


def test_a_run_resumes_and_refuses_another_experiment(evaluate, answers):
    arguments = ["--task", "needle", "--length", "100,100", "--depth", "0,100"]
    arguments += ["--method", "snapkv"]
    first = evaluate(*arguments, "--questions", "1")
    assert first.returncode == 0, first.stderr
    records = answers()
    assert {(r["cell"], r["seen"]) for r in records} == {
        ("full", False),
        ("snapkv 50%", False),
        ("snapkv 50%", True),
    }
    assert all(r["kl"] == 0 and r["kept"] == 1 for r in records if r["cell"] == "full")
    assert all(r["kl"] >= -1e-6 for r in records)
    assert all(r["right"] == (r["score"] == 1) and r["metric"] == "all" for r in records)

    more = evaluate(*arguments, "--questions", "4", "-o", "json")
    assert more.returncode == 0
    assert answers()[: len(records)] == records and len(answers()) == 4 * len(records)
    depths = {r["document"]: r["depth"] for r in answers()}
    assert depths == {0: 0.0, 1: 1.0, 2: 0.0, 3: 1.0}
    found = json.loads(more.stdout)
    assert found["run"]["settings"]["depths"] == [0, 100]
    assert {row["cell"]: row["questions"] for row in found["table"]} == {"full": 4, "snapkv 50%": 4}

    for option, value, said in (("--seed", "9", b"seed"), ("--depth", "50", b"depths")):
        other = evaluate(*arguments, "--questions", "4", option, value)
        assert other.returncode == 8 and said in other.stderr
    assert len(answers()) == 4 * len(records)


def test_without_a_folder_each_experiment_has_one_below_the_state_folder(
    evaluate, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    state = {"HOME": str(tmp_path / "home"), "XDG_STATE_HOME": str(tmp_path / "state")}
    arguments = ["--task", "passkey", "--length", "80", "--view", "unseen"]

    def found() -> list[int]:
        done = evaluate(*arguments, **state)
        assert done.returncode == 0, done.stderr
        files = sorted(tmp_path.glob("**/answers.jsonl"))
        assert not [f for f in files if not {"kvchat", "eval"} <= {*f.relative_to(tmp_path).parts}]
        return sorted(len(file.read_text().splitlines()) for file in files)

    arguments += ["--questions", "1"]
    assert found() == [2]
    arguments[-1] = "2"
    assert found() == [4], "the same experiment goes on"
    arguments += ["--seed", "3"]
    assert found() == [4, 4], "another one has a folder of its own"
    assert not (tmp_path / "eval").exists()


DESCRIBED = {"settings": {"data": {}, "seed": 1, "overflow": "error", "questions": 4}}


def document(number: int, count: int = 2) -> list[dict]:
    return [{"task": "t", "length": 9, "document": number, "question": n} for n in range(count)]


@pytest.fixture
def stored(tmp_path):
    """Two documents of two records, written down."""
    found = Answers(tmp_path / "eval")
    found.resume(copy.deepcopy(DESCRIBED))
    found.add(document(0))
    found.add(document(1))
    return tmp_path / "eval" / "answers.jsonl"


@pytest.mark.parametrize("cut", [2, 30, 70, 75])
def test_a_document_that_was_not_written_to_its_end_is_measured_again(stored, cut):
    """Also if the end of the process cut between two records."""
    whole = stored.read_text()
    stored.write_text(whole[:-cut])
    again = Answers(stored.parent)
    again.resume(copy.deepcopy(DESCRIBED))
    assert again.done == {("t", 9, 0)} and len(again.records) == 2
    again.add(document(1))
    assert stored.read_text() == whole


def test_damage_is_named_and_a_folder_without_answers_is_free(stored, tmp_path):
    folder = stored.parent
    text = stored.read_text()
    stored.write_text("{\n" + text)
    with pytest.raises(KvchatError, match=r"answers\.jsonl, line 1 ") as caught:
        Answers(folder).resume(copy.deepcopy(DESCRIBED))
    assert caught.value.code == "session"
    stored.write_text(text)
    (stored.parent / "run.json").write_text("{")
    with pytest.raises(KvchatError, match=r"run\.json"):
        Answers(folder).resume(copy.deepcopy(DESCRIBED))
    stored.write_text("")
    Answers(folder).resume(copy.deepcopy(DESCRIBED))
    with pytest.raises(KvchatError, match="--out") as caught:
        Answers(stored)
    assert caught.value.code == "usage"


def test_what_is_too_long_may_be_cut_later_on(stored):
    """Nothing was cut before, so what is there is whole; the other way round it is not known."""
    cut = {"settings": DESCRIBED["settings"] | {"overflow": "middle"}}
    Answers(stored.parent).resume(copy.deepcopy(cut))
    with pytest.raises(KvchatError, match="overflow"):
        Answers(stored.parent).resume(copy.deepcopy(DESCRIBED))


def test_files_are_asked_once_and_must_stay_what_they_were(evaluate, answers, tmp_path):
    path = tmp_path / "validation.jsonl"
    path.write_text(f"{json.dumps(SAMPLE)}\n{json.dumps(SAMPLE | {'outputs': ['Ada', 'Bob']})}\n")
    arguments = ["--view", "unseen", "--plot", str(tmp_path / "pictures"), "-o", "md"]
    first = evaluate("--data", f"ruler:{path}", *arguments)
    assert first.returncode == 0, first.stderr
    assert f"### ruler:{path}" in first.stdout.decode()
    assert [(r["task"], r["length"], r["document"]) for r in answers()] == [
        (f"ruler:{path}", 0, number) for number in (0, 0, 1, 1)
    ]
    assert len(list((tmp_path / "pictures").glob("budget-*.png"))) == 1

    # without the file in between: it is remembered what it was
    other = ["--view", "unseen", "--task", "passkey", "--length", "80", "--questions", "1"]
    assert evaluate(*other).returncode == 0
    path.write_text(json.dumps(SAMPLE | {"outputs": ["8000"]}))
    changed = evaluate("--data", f"ruler:{path}", "--view", "unseen")
    assert changed.returncode == 8 and b"data ruler:" in changed.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--task", "nothing"], 2, b"nothing"),
        (["--data", "ruler:none.jsonl"], 4, b"none.jsonl"),
        (["--depth", "101"], 2, b"101"),
        (["--overflow", "all"], 2, b"--overflow error"),
        (["-o", "csv"], 2, b"csv"),
        (["--method", "nonsense"], 2, b"nonsense"),
        (["--budget", "much"], 2, b"much"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(evaluate, arguments, code, said):
    refused = evaluate(*arguments, "-m", "no-such-model")
    assert refused.returncode == code and said in refused.stderr, refused.stderr


def test_help_names_every_task_and_kind_of_file():
    shown = re.sub(r"[^\w-]+", " ", kvchat("eval", "--help", COLUMNS="200").stdout.decode())
    assert not [name for name in (*TASKS, *LOADERS) if f" {name} " not in shown]


def test_an_answer_goes_on_from_where_it_is_begun_and_ends_where_it_must(session):
    cache, _ = tiny.read(session.engine, session.dialogue.document("The sea was calm."))
    found = answer(session, cache, Question("What?", ("x",), "k", longest=3, begun="The sea"))
    assert session.dialogue.tokenizer.decode(found.prompt).endswith("The sea")
    assert 0 < len(found.ids) <= 3 and len(found.logits) == len(found.ids)


def test_what_does_not_fit_the_window_is_refused_or_cut_where_asked(session):
    source = Source("passkey", 1, 1, (600,), (0.5,), TASKS["passkey"])
    case, dialogue = source.case(session.dialogue, 600, 0), session.dialogue
    question = case.questions[0]
    with pytest.raises(KvchatError) as caught:
        fitted(case, dialogue, 300, "error")
    error = caught.value
    assert error.code == "too_long" and error.details["limit"] == 300 < error.details["needed"]
    assert "--overflow middle" in error.tries[0]
    assert fitted(case, dialogue, 1000, "middle") is case
    for overflow in ("head", "tail", "middle"):
        cut = fitted(case, dialogue, 300, overflow)
        used = len(dialogue.document(cut.document)) + len(dialogue.first(question.text))
        assert 270 < used + question.longest <= 300 and cut.questions == case.questions
        assert question.answer not in cut.document
        assert case.document.startswith(cut.document[:20]) == (overflow != "head")
        assert case.document.endswith(cut.document[-20:]) == (overflow != "tail")
