"""POPE and MME, against cases worked by hand."""

from __future__ import annotations

import pytest

from vtc.eval.tasks.metrics import metric, official
from vtc.eval.tasks.metrics.mme import yes_no_prefix
from vtc.eval.tasks.metrics.pope import yes_no
from vtc.eval.tasks.questions import Question


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("yes", "yes"), ("No.", "no"), ("Yes, there is a dog.", "yes"), ("There is not.", "no"), ("", ""),
        ("Yes. There is no cat though.", "yes"),  # the first sentence counts
        ("No, but yes", "no"), ("nothing", ""), ("I don't know", ""), ("YES!", "yes"), ("the answer is yes", "yes"),
    ],
)  # fmt: skip
def test_pope_reading(text: str, answer: str):
    assert yes_no(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("yes", "yes"), ("No.", "no"), ("Y", "yes"), ("n.", "no"), ("x", ""), ("", ""), ("Yes, there is", "yes"),
        ("I think yes", ""), ("Not sure", "no"), ("a no", "no"), ("maybe", ""), ("noyes", "no"),
    ],
)  # fmt: skip
def test_mme_reading(text: str, answer: str):
    assert yes_no_prefix(text) == answer


def figures(name: str, cases: list[tuple[str, str, str, str]]) -> dict[str, float]:
    """Official figures of (answer, prediction, group, category)."""
    questions, rows = [], {}
    for i, (answer, prediction, group, category) in enumerate(cases):
        q = Question(f"q{i}", "t", "i", "?", answer, metric=name, group=group, category=category)
        metric(name).check(q)
        questions.append(q)
        rows[q.question_id] = {"score": metric(name).score(q, prediction), "parsed": metric(name).parse(q, prediction)}
    return official(questions, rows)["t"]


def test_pope_figures():
    cases = [
        ("yes", "yes", "", "random"), ("yes", "no", "", "random"), ("yes", "Yes!", "", "random"),
        ("no", "yes", "", "random"), ("no", "no", "", "popular"), ("no", "dunno", "", "popular"),
        ("yes", "", "", "popular"), ("yes", "yes", "", "popular"),
    ]  # fmt: skip
    found = figures("pope", cases)
    # of 5 yes questions 3 are answered yes; 4 predictions say yes; 4 of 8 are right (unparsed ones never)
    assert found["precision"] == pytest.approx(3 / 4)
    assert found["recall"] == pytest.approx(3 / 5)
    assert found["f1"] == pytest.approx(2 / 3)
    assert (found["accuracy"], found["yes_ratio"], found["unparsed"]) == (0.5, 0.5, 0.25)
    assert found["f1/random"] == pytest.approx(2 / 3)
    assert found["f1/popular"] == pytest.approx(2 / 3)
    assert found["category_average"] == pytest.approx(2 / 3)


def test_pope_of_a_model_that_never_says_yes():
    found = figures("pope", [("yes", "no", "", ""), ("no", "no", "", "")])
    assert (found["f1"], found["precision"], found["recall"], found["accuracy"]) == (0, 0, 0, 0.5)


def test_rows_without_what_was_parsed_are_parsed_again():
    q = Question("q", "t", "i", "?", "yes", metric="pope")
    found = official([q], {"q": {"score": 1.0, "prediction": "Yes, one."}})["t"]
    assert (found["f1"], found["unparsed"]) == (1, 0)


def test_mme_figures():
    cases = [
        ("Yes", "yes", "existence/1", "existence"), ("No", "no", "existence/1", "existence"),  # both right
        ("Yes", "yes", "existence/2", "existence"), ("No", "yes", "existence/2", "existence"),  # one right
        ("Yes", "no", "code/1", "code_reasoning"), ("No", "no", "code/1", "code_reasoning"),  # one right
    ]  # fmt: skip
    found = figures("mme", cases)
    assert found["mme_score/existence"] == 75 + 50
    assert found["mme_score/code_reasoning"] == 50
    assert (found["mme_perception"], found["mme_cognition"], found["mme_score"]) == (125, 50, 175)
    assert found["mme_acc"] == pytest.approx(4 / 6)
    assert found["mme_acc_plus"] == pytest.approx(1 / 3)
    assert found["mme_categories"] == 2


def test_mme_counts_acc_plus_over_whole_pairs():
    cases = [("Yes", "yes", "a", "OCR"), ("No", "no", "a", "OCR"), ("Yes", "no", "b", "OCR")]
    assert figures("mme", cases)["mme_score/OCR"] == pytest.approx(200 / 3 + 100)
    pair = [Question(f"q{i}", "t", "i", "?", "Yes", metric="mme", group="g", category="OCR") for i in range(3)]
    with pytest.raises(ValueError, match="pairs of questions, 'g' has 3"):
        metric("mme").check_group(pair)


@pytest.mark.parametrize("name", ["pope", "mme"])
def test_answers_that_are_neither_are_refused(name: str):
    with pytest.raises(ValueError, match="must be yes or no, it is 'perhaps'"):
        metric(name).check(Question("q", "t", "i", "?", "perhaps", metric=name, group="g", category="c"))
    if name == "mme":
        with pytest.raises(ValueError, match="needs a group"):
            metric(name).check(Question("q", "t", "i", "?", "yes", metric=name))
