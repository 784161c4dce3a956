"""Metrics of free text, against cases worked by hand."""

from __future__ import annotations

import pytest

from vtc.eval.tasks.metrics import list_metrics, metric, official
from vtc.eval.tasks.metrics.anls import levenshtein
from vtc.eval.tasks.metrics.numeric import find_number
from vtc.eval.tasks.metrics.vqa_text import textvqa_form, vqa_form
from vtc.eval.tasks.questions import Question


def ask(name: str, *answers: str, category: str = "", group: str = "") -> Question:
    return Question("q", "t", "i", "what?", answers[0], references=answers, metric=name, category=category, group=group)


def score(name: str, prediction: str, *answers: str, category: str = "") -> float:
    return metric(name).score(ask(name, *answers, category=category), prediction)


def test_the_registry():
    assert {"exact", "exact_match", "vqa", "textvqa", "pope", "mme", "choice", "mmbench", "anls", "relaxed", "numeric",
            "ocrbench"} <= set(list_metrics())  # fmt: skip
    with pytest.raises(ValueError, match=r"unknown metric 'bleu'. There is: ai2d, anls"):
        metric("bleu")


@pytest.mark.parametrize("name", list_metrics())
def test_every_metric_takes_any_prediction(name: str):
    """Scores lie in [0, 1], the right answer's is 1, an empty one's 0, and the aggregate has its headline."""
    answer = {"anls": "red", "exact": "red", "numeric": "3", "pope": "yes", "mme": "yes"}.get(name, "B")
    q = ask(name, *[answer] * 10, category="c", group="g")
    for prediction in ("", " ", "\n", "é—ü", "𝟛", "x" * 500, "a\tb", "%", ".", "-", "1e999", "B", "no", "«»"):
        assert 0 <= metric(name).score(q, prediction) <= 1
        assert isinstance(metric(name).parse(q, prediction), str)
    assert metric(name).score(q, answer) == 1
    assert metric(name).score(q, "") == 0
    metric(name).check(q)
    row = {"score": 1.0, "parsed": metric(name).parse(q, answer), "prediction": answer}
    found = official([q], {"q": row})["t"]
    assert found[metric(name).main] > 0
    assert all(isinstance(value, float) for value in found.values())


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("Red.", "red", 1),
        (" red ", "red", 1),
        ("dark red", "red", 0),
        ("t-shirt", "T shirt", 0),
        ("tshirt", "T-shirt", 1),
        ("", "red", 0),
        ("3.5", "35", 1),  # punctuation goes, as in the official script
        ("Éclair", "éclair", 1),
    ],
)
def test_exact_match(prediction: str, answer: str, right: int):
    assert score("exact_match", prediction, answer) == right


def test_exact_keeps_its_rule_and_takes_several_answers():
    assert score("exact", "I see 3 cubes", "three") == 1
    assert score("exact", "the grey one", "gray one", "grey one") == 1
    assert metric("exact").parse(ask("exact", "yes"), "Well, yes.") == "yes"
    assert metric("exact").parse(ask("exact", "4"), "none at all") == ""


TEN = ("cat", "cat", "cat", "dog", "dog", "bird", "fish", "cow", "pig", "hen")


@pytest.mark.parametrize(
    ("prediction", "answers", "accuracy"),
    [
        # 3 of 10: the 3 who said so see 2 others (2/3), the other 7 see 3 (1): (3 * 2/3 + 7) / 10
        ("cat", TEN, 0.9),
        # 2 of 10: (2 * 1/3 + 8 * 2/3) / 10
        ("dog", TEN, 0.6),
        # 1 of 10: (0 + 9 * 1/3) / 10
        ("bird", TEN, 0.3),
        ("horse", TEN, 0.0),
        ("", TEN, 0.0),
        ("cat", ("cat",) * 4 + TEN[4:], 1.0),
        ("The Cat.", TEN, 0.9),
        ("a, b", [f"{c}, b" for c in "abcdefghij"], 0.3),  # all ten answers differ
        ("two", ["2"] * 10, 1.0),
        ("2", ["two"] * 10, 1.0),
        ("dont", ["don't"] * 10, 1.0),
        ("10,000", ["10000"] * 10, 1.0),
        ("3.5", ["3.5."] * 10, 1.0),
        ("none", ["0"] * 10, 1.0),
    ],
)
def test_vqa_accuracy(prediction: str, answers: tuple[str, ...], accuracy: float):
    for name in ("vqa", "textvqa"):
        assert score(name, prediction, *answers) == pytest.approx(accuracy, abs=1e-12)


def test_vqa_normal_forms():
    assert vqa_form("The man's hat - it's an old,one!") == "man's hat it's old 1"
    assert textvqa_form("The man's hat") == "man 's hat"
    assert vqa_form("U.S.A. 3.5 left/right") == "usa 3.5 left right"
    assert vqa_form("a\tb\nthe") == "b"
    with pytest.raises(ValueError, match="usually 10, got 1"):
        metric("vqa").check(ask("vqa", "cat"))


@pytest.mark.parametrize(
    ("prediction", "answers", "anls"),
    [
        ("kitten", ["sitting"], 1 - 3 / 7),  # three edits, the longer has 7 letters
        ("Hello  World", ["hello world"], 1.0),
        ("abcd", ["abxy"], 0.5),  # exactly one half still counts
        ("abcd", ["axyz"], 0.0),
        ("", ["abc"], 0.0),
        ("1.000", ["1,000", "1.000"], 1.0),
        ("naïve", ["naive"], 0.8),
    ],
)
def test_anls(prediction: str, answers: list[str], anls: float):
    assert score("anls", prediction, *answers) == pytest.approx(anls, abs=1e-12)


def test_levenshtein():
    assert [levenshtein(*pair) for pair in (("", ""), ("", "abc"), ("flaw", "lawn"), ("kitten", "sitting"))] == [
        0, 3, 2, 3,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("105", "100", 1),
        ("105.1", "100", 0),
        ("95", "100", 1),
        ("-100", "100", 0),
        ("0.5", "50%", 1),
        ("50", "50%", 0),
        ("1,000", "1000", 0),  # no number for the official script
        ("14 million", "14", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),  # a relative error of zero is not defined: to the letter
        ("Yes", "yes", 1),
        ("yes.", "yes", 0),
        ("", "5", 0),
        ("2019", "2020", 1),  # within 5%: known of this metric
    ],
)
def test_relaxed(prediction: str, answer: str, right: int):
    assert score("relaxed", prediction, answer) == right


def test_ocrbench():
    formulas = "Handwritten Mathematical Expression Recognition"
    assert score("ocrbench", "The word is CENTRE.", "centre") == 1
    assert score("ocrbench", "cent\nre", "cent re") == 1
    assert score("ocrbench", "ＡＢＣ　１２", "abc 12") == 1
    assert score("ocrbench", "cent", "centre") == 0
    assert score("ocrbench", "", "centre") == 0
    assert score("ocrbench", "one or two", "two", "three") == 1
    assert score("ocrbench", "x ^ { 2 }", "x^{2}", category=formulas) == 1
    assert score("ocrbench", "X^{2}", "x^{2}", category=formulas) == 0
    with pytest.raises(ValueError, match="empty"):
        metric("ocrbench").check(ask("ocrbench", "x", " "))
    questions = [Question(f"q{i}", "t", "i", "?", "a", metric="ocrbench", category=f"c{i % 2}") for i in range(4)]
    rows = {f"q{i}": {"score": float(i != 1), "parsed": "a"} for i in range(4)}
    found = official(questions, rows)["t"]
    assert (found["ocrbench_score"], found["accuracy"], found["accuracy/c1"]) == (3, 0.75, 0.5)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It costs $1,250.50 in total", 1250.5),
        ("12 %", 0.12),
        ("50%", 0.5),
        ("about 3.5 km, not 4", 3.5),
        ("seven dwarfs", 7),
        ("−4 °C", -4),  # a minus sign, not a hyphen
        ("１２", 12),
        ("1e3", 1000),
        (".5", 0.5),
        ("12,34", 12),  # no thousands
        ("v2", None),
        ("someone", None),
        ("", None),
    ],
)
def test_numbers(text: str, number: float | None):
    assert find_number(text) == (pytest.approx(number) if number is not None else None)


def test_numeric():
    assert score("numeric", "There are 12 of them.", "12") == 1
    assert score("numeric", "12.0 cm", "twelve") == 1
    assert score("numeric", "13", "12") == 0
    assert score("numeric", "none", "12") == 0
    assert metric("numeric").parse(ask("numeric", "1"), "1,000,000 people") == "1000000"
    with pytest.raises(ValueError, match="must be a number, it is 'many'"):
        metric("numeric").check(ask("numeric", "many"))


def test_unparsed_and_categories():
    questions = [Question(f"q{i}", "t", "i", "?", "1", metric="numeric", category="ab"[i % 2]) for i in range(4)]
    rows = {f"q{i}": {"score": s, "parsed": p} for i, (s, p) in enumerate([(1, "1"), (0, ""), (1, "1"), (1, "1")])}
    assert official(questions, rows) == {
        "t": {"accuracy": 0.75, "category_average": 0.75, "accuracy/a": 1.0, "accuracy/b": 0.5, "unparsed": 0.25}
    }
    assert official(questions, {}) == {}
    without = [Question("q9", "t", "i", "?", "1", metric="numeric"), *questions[:1]]
    assert set(official(without, {**rows, "q9": rows["q0"]})["t"]) == {"accuracy", "unparsed"}
