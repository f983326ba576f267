"""Metrics against figures worked out by hand."""

import pytest

from kvchat.eval.case import Question
from kvchat.eval.metrics import METRICS

CASES = [
    ("verbatim", " Yes. ", ["Yes."], 1),
    ("verbatim", "yes.", ["Yes."], 0),
    ("all", "They are 67890 and 12345.", ["12345", "67890"], 1),
    ("all", "It is 12345.", ["12345", "67890"], 0),
    ("any", "It is paris, I think", ["London", "Paris"], 1),
    ("any", "Rome", ["London", "Paris"], 0),
    ("part", "ABCDE, then fghij", ["ABCDE", "FGHIJ", "KLMNO"], 2 / 3),
    ("part", "", ["ABCDE"], 0),
    # 'cat sat on mat' and 'cat on mat': three in common, of four and of three
    ("f1", "The cat sat on the mat.", ["a cat on a mat"], 6 / 7),
    ("f1", "mat mat mat", ["mat dog"], 2 / 5),
    ("f1", "nothing", ["dog", "cat nothing"], 2 / 3),
    ("f1", "the", ["dog"], 0),
    ("f1", "  The U.S.A., an  Apple & a Theme ", ["usa apple theme"], 1),  # as in SQuAD
    ("f1-line", "\nblue\nType: red", ["blue"], 1),
    ("f1", "\nblue\nType: red", ["blue"], 1 / 2),
    ("number", "Paragraph 12", ["12"], 1),
    ("number", "12, or 3, or 12", ["12"], 2 / 3),
    ("number", "no idea", ["12"], 0),
    ("letters", "B", ["B"], 1),
    ("letters", "(B) because A is wrong", ["B"], 1),
    ("letters", "The answer is C.", ["B"], 0),
    ("letters", "A, C", ["AC"], 1),
    ("letters", "CA", ["AC"], 1),
    ("letters", "A. one\nB. two", ["ABD"], 1 / 4),
    ("letters", "A, D", ["AC"], 0),
    ("letters", "I cannot say", ["AC"], 0),
    ("code", "# a comment\nreturn a\nmore", ["return a"], 1),
    ("code", "abcd", ["bcde"], 6 / 8),  # one block of three
    ("code", "", ["bcde"], 0),
    ("rouge-l", "police killed gunman", ["x", "police kill gunman"], 2 / 3),  # as in Lin 2004
    ("rouge-l", "gunman kill the police", ["police kill the gunman"], 1 / 3),
    ("rouge-l", "", ["x"], 0),
]


@pytest.mark.parametrize(("metric", "given", "answers", "score"), CASES)
def test_scores(metric, given, answers, score):
    question = Question("?", tuple(answers), "k", metric)
    assert question.score(given) == pytest.approx(score)
    assert question.is_right(given) == (score == 1)


@pytest.mark.parametrize(
    ("given", "score"),
    [
        ("Human", 1),
        ("human beings\nanimal", 0),
        ("Human or Animal", 1 / 2),
        ("Human group", 1 / 2),  # names two, the right one and a longer one
        ("plant", 0),
    ],
)
def test_categories(given, score):
    choices = ("Human", "Human group", "Animal", "human beings")
    question = Question("?", ("Human",), "k", "category", choices=choices)
    assert question.score(given) == score


def test_a_category_within_the_right_one_is_not_named():
    choices = ("Human", "Human group", "Animal")
    question = Question("?", ("Human group",), "k", "category", choices=choices)
    assert question.score("Human group") == 1
    assert question.score("Human") == 0


@pytest.mark.parametrize(
    ("given", "score"), [("True.", 1), ("It is true, not false", 1), ("False", 0), ("Untrue", 0)]
)
def test_the_choice_named_first(given, score):
    assert Question("?", ("True",), "k", "choice", choices=("True", "False")).score(given) == score


def test_every_metric_is_tried_here():
    assert {case[0] for case in CASES} | {"category", "choice"} == METRICS.keys()
