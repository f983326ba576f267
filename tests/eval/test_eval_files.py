"""Files of benchmarks: what is asked of them, and what is said of files that are not in order."""

import json
import re
from itertools import count

import pytest

from kvchat.errors import KvchatError
from kvchat.eval.case import Draw, Given
from kvchat.eval.files import LOADERS, _examined, load
from kvchat.eval.sources import Source, sources
from tests.support.program import ROOT

RULER = {
    "index": 3,
    "input": "Some numbers are hidden here.\nIt rains. Ada's number is 7421. It snows.\n"
    "What are the numbers of Ada?",
    "outputs": ["7421"],
    "answer_prefix": " The numbers of Ada are",
}
LONGBENCH = {
    "input": "Who lit the lamp?",
    "context": "The keeper lit the lamp.",
    "answers": ["the keeper", "keeper"],
    "length": 5,
    "dataset": "hotpotqa",
    "all_classes": None,
    "_id": "x",
}
LEVAL = {
    "instructions": [
        "Who?\nA. Ada\nB. Bob",
        "Which? (A) x (B) y (C) z",
        "It rains, True or False?",
    ],
    "outputs": ["B", "(AC) x and z", "False [fact: True]"],
    "input": "A long story.",
    "evaluation": "exam",
}


@pytest.fixture
def write(tmp_path):
    """`write(*lines) -> Path`; what is no text becomes JSON."""

    def written(*lines, name="data.jsonl"):
        path = tmp_path / name
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("\n".join(texts) + "\n")
        return path

    return written


def test_ruler_is_split_at_its_last_line(write):
    wordy = RULER | {"outputs": ["7421", "8000"], "input": RULER["input"] + "\n"}
    several = RULER | {"outputs": ["Ada", "Ada Lee"], "answer_prefix": " Answer:"}
    given = load(f"ruler:{write(RULER, '', wordy, several)}")
    first, second, third = (case.questions[0] for case in given.cases)
    document = given.cases[0].document
    assert document == "Some numbers are hidden here.\nIt rains. Ada's number is 7421. It snows."
    assert first.text == "What are the numbers of Ada?"
    assert first.begun == "The numbers of Ada are"
    assert first.depth == pytest.approx(document.index("7421") / (len(document) - 4), abs=1e-4)
    assert (second.metric, second.depth, second.score("7421")) == ("part", None, 0.5)
    assert (third.metric, third.score("it was Ada")) == ("any", 1)


def test_an_older_ruler_file_has_the_beginning_of_the_answer_in_its_input(write):
    older = {"input": "Documents.\n\nQuestion: Who? Answer:", "outputs": ["Ada", "Lee"]}
    (case,) = load(f"ruler:{write(older)}").cases
    (asked,) = case.questions
    assert (case.document, asked.text) == ("Documents.", "Question: Who? Answer:")
    assert (asked.metric, asked.begun) == ("any", "")


def test_longbench_asks_and_scores_by_its_data_set(write):
    def line(name, **changes):
        return LONGBENCH | {"dataset": name} | changes

    path = write(
        line("hotpotqa"),
        line("qasper_e"),
        line("trec", answers=["Date"], all_classes=["Date", "City"]),
        line("passage_retrieval_en", answers=["Paragraph 12"]),
        line("lcc", input="", answers=["return x"], context="def f(x):"),
        line("gov_report"),
        line("vcsum"),
        line("vcsum"),
    )
    given = load(f"longbench:{path}")
    questions = [case.questions[0] for case in given.cases]
    kinds = [(question.kind, question.metric) for question in questions]
    names = ["hotpotqa", "qasper", "trec", "passage_retrieval_en", "lcc"]
    assert kinds == [*zip(names, ["f1", "f1", "category", "number", "code"], strict=True)]
    assert "Who lit the lamp?" in questions[0].text and questions[0].is_right("A keeper.")
    assert given.cases[0].document == "The keeper lit the lamp."
    assert questions[2].is_right("Date\nType: City") and not questions[2].is_right("City")
    assert questions[3].is_right("Paragraph 12") and questions[4].is_right("return x")
    left_out = {why.split()[0]: count for why, count in given.left_out.items()}
    assert left_out == {"gov_report": 1, "vcsum": 2}


def test_leval_has_many_questions_about_one_document(write):
    f1 = LEVAL | {"evaluation": "f1", "instructions": ["Why?"], "outputs": ["It rained a lot."]}
    path = write(LEVAL, f1, LEVAL | {"evaluation": "human"}, LEVAL | {"input": ""})
    given = load(f"leval:{path}")
    letter, letters, judged = given.cases[0].questions
    assert (letter.metric, letter.answers) == ("letters", ("B",))
    assert letters.score("A, C") == 1 and letters.score("A") == 0.25
    assert judged.is_right("False.") and not judged.is_right("True")
    (why,) = given.cases[1].questions
    assert why.metric == "f1" and "about 4 words" in why.text and why.score("it rained") == 0.8
    assert sorted(given.left_out.values()) == [1, 1] and "'human'" in " ".join(given.left_out)


@pytest.mark.parametrize(
    ("output", "letters"),
    [("B", "B"), ("AC", "AC"), ("A, C", "AC"), ("A and D", "AD"), ("B) a bell", "B"),
     ("C, because of A", "C"), ("A & B.", "AB")],
)  # fmt: skip
def test_letters_of_leval(output, letters):
    assert _examined("Which?", output).answers == (letters,)


@pytest.fixture
def haystack(tmp_path):
    """`haystack(**changes) -> Path` of a new needle file beside a folder of texts."""
    numbers = count()

    def made(**changes):
        folder = tmp_path / "essays"
        folder.mkdir(exist_ok=True)
        (folder / "b.txt").write_text("Bells rang. Boats came in.")
        (folder / "a.txt").write_text("Apples fell! Was it autumn? It was.")
        (folder / "notes.md").write_text("Not this.")
        fields = {
            "needle": "The best thing to eat is pie.",
            "retrieval_question": "What is the best thing to eat?",
            "answers": ["pie"],
            "haystack_dir": "essays",
        }
        path = tmp_path / f"needle-{next(numbers)}.json"
        path.write_text(json.dumps(fields | changes))
        return path

    return made


def test_a_needle_of_ones_own_goes_between_sentences(haystack):
    task = load(f"niah:{haystack()}")
    for depth in (0.0, 0.3, 1.0):
        case = task(Draw(1, 400, depth=depth))
        before, _, after = case.document.partition("The best thing to eat is pie.")
        assert len(before) / len(before + after) == pytest.approx(depth, abs=0.02)
        assert not before or before.endswith((". ", "! ", "? "))
        assert len(case.document) == pytest.approx(1600, abs=40)
        assert "Not this" not in case.document
        assert case.questions[0].depth == depth and case.questions[0].is_right("Pie.")
    assert task(Draw(1, 400)) == task(Draw(1, 400))
    assert len({task(Draw(seed, 400)).document for seed in range(20)}) == 5  # where it begins


def test_further_needles_are_spread_over_what_follows(haystack):
    path = haystack(needles=["One.", "Two.", "Three."], answers=["1", "2", "3"])
    (question,) = load(f"niah:{path}")(Draw(1, 3000, depth=0.4)).questions
    text = load(f"niah:{path}")(Draw(1, 3000, depth=0.4)).document
    depths = [text.index(needle) / len(text) for needle in ("One.", "Two.", "Three.")]
    assert depths == pytest.approx([0.4, 0.6, 0.8], abs=0.02)
    assert question.score("1 and 3") == pytest.approx(2 / 3)


def test_the_samples_of_the_guide_are_files_in_order(write, haystack):
    haystack()  # for its folder
    guide = (ROOT / "docs" / "eval.md").read_text()
    samples = re.findall(r"\*\*`(\w+):FILE`\*\*.*?\n\n((?: {4}[^\n]*\n)+)", guide, re.DOTALL)
    assert [kind for kind, _ in samples] == list(LOADERS)
    for kind, sample in samples:
        loaded = load(f"{kind}:{write(sample, name=kind)}")
        (case,) = loaded.cases if isinstance(loaded, Given) else [loaded(Draw(1, 100))]
        assert case.document and all(question.text for question in case.questions)


@pytest.mark.parametrize(
    ("kind", "line", "place", "field"),
    [
        ("ruler", "{oops", "line 2, column 2", "JSON"),
        ("ruler", "[1]", "line 2", "JSON"),
        ("ruler", "[" * 100_000, "line 2", "JSON"),
        ("ruler", '{"outputs": ' + "9" * 5000 + "}", "line 2", "JSON"),
        ("ruler", RULER | {"input": "half a \ud800\nWhat?"}, "line 2", "'input'"),
        ("ruler", {"input": "a\nb"}, "line 2", "'outputs'"),
        ("ruler", RULER | {"outputs": "7421"}, "line 2", "'outputs'"),
        ("ruler", RULER | {"outputs": []}, "line 2", "'outputs'"),
        ("ruler", RULER | {"input": "all in one line"}, "line 2", "'input'"),
        ("longbench", LONGBENCH | {"dataset": "mine"}, "line 2", "'mine'"),
        ("longbench", LONGBENCH | {"context": 3}, "line 2", "'context'"),
        ("longbench", LONGBENCH | {"dataset": "trec"}, "line 2", "'all_classes'"),
        ("longbench", LONGBENCH | {"dataset": "passage_count"}, "line 2", "'answers'"),
        ("leval", LEVAL | {"outputs": ["B"]}, "line 2", "3 'instructions'"),
        ("leval", {"input": "x", "outputs": ["y"]}, "line 2", "'evaluation'"),
    ],
)
def test_a_line_out_of_order_is_named(write, kind, line, place, field):
    good = {"ruler": RULER, "longbench": LONGBENCH, "leval": LEVAL}[kind]
    path = write(good, line)
    with pytest.raises(KvchatError, match=f"^{re.escape(f'{path}, {place}')}: .*{field}") as caught:
        load(f"{kind}:{path}")
    assert caught.value.code == "input"
    assert any(LOADERS[kind][1] in way for way in caught.value.tries), "the format is told"


def test_what_cannot_be_asked_at_all_is_refused(write, haystack, tmp_path):
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "bad.json").write_text('{"needle": ')
    for spec, code, said in (
        (f"leval:{write(LEVAL | {'evaluation': 'LLM'})}", "input", "1 × .* 'LLM'"),
        (f"ruler:{write('', name='empty.jsonl')}", "input", "empty"),
        (f"ruler:{tmp_path / 'none.jsonl'}", "input", "none.jsonl"),
        (f"ruler:{tmp_path}", "input", str(tmp_path)),
        (f"ruler:{tmp_path / 'binary.jsonl'}", "input", "byte 0"),
        (f"niah:{tmp_path / 'bad.json'}", "input", "line 1, column 12"),
        (f"niah:{haystack(needle='')}", "input", "'needle'"),
        (f"niah:{haystack(answers=None)}", "input", "'answers'"),
        (f"niah:{haystack(haystack_dir='nowhere')}", "input", "nowhere"),
        ("mine:x.jsonl", "usage", ", ".join(LOADERS)),
        ("x.jsonl", "usage", "KIND:FILE"),
    ):
        with pytest.raises(KvchatError, match=said) as caught:
            load(spec)
        assert caught.value.code == code


def test_a_changed_file_is_another_experiment(write, haystack):
    def found():
        data = [f"ruler:{write(RULER)}", f"niah:{path}"]
        return {each.name: each.digest for each in sources([], data, Source("", 5))}

    path = haystack()
    before = found()
    assert len(before) == 2 and before == found()
    (path.parent / "essays" / "a.txt").write_text("Another text.")
    assert [key for key in before if before[key] != found()[key]] == [f"niah:{path}"]
