"""Multiple choice: finding the letter, the option, and circular evaluation."""

from __future__ import annotations

import pytest

from vtc.eval.tasks.metrics import metric, official
from vtc.eval.tasks.metrics.letters import find_letter, find_option
from vtc.eval.tasks.questions import Question

OPTIONS = ("dog", "cat", "a red car", "car")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("B. cat", "B"), ("B) cat", "B"), ("B: cat", "B"),
        ("B cat", "B"), ("**B**", "B"), ("[B]", "B"), ("The answer is (B).", "B"), ("The answer is B", "B"),
        ("Answer: C\nbecause", "C"), ("The correct answer is B: the cat", "B"), ("I think it is B.", "B"),
        ("A is wrong. The answer is C.", "C"), ("The answer is A because it is red", "A"), ("A is correct", "A"),
        ("B\n\nExplanation: A is wrong", "B"), ("The best answer is:\nD", "D"), ("\\boxed{B}", "B"),
        ("答案是B。", "B"), ("选C", "C"), ("（B）", "B"), ("Ｂ", "B"), ("Option D", "D"),
        ("I first thought (A), but (C) fits", "C"), ("The answer is A? No, the answer is C indeed", "C"),
        # no choice
        ("", ""), ("   ", ""), ("A cat", ""), ("A or B", ""), ("B and C", ""), ("Because", ""), ("E", ""),
        ("the answer is a dog", ""), ("The answer is: Dog", ""), ("not sure", ""), ("Yes", ""),
    ],
)  # fmt: skip
def test_letters(text: str, letter: str):
    assert find_letter(text) == letter


def test_letters_follow_the_number_of_options():
    assert find_letter("E. none", "ABCDE") == "E"
    assert find_letter("C", "AB") == ""


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Cat.", "B"),
        ("a red car", "C"),
        ("It is the cat", "B"),
        ("car", "D"),
        ("dog or cat", ""),
        ("cats", ""),
        ("", ""),
    ],
)
def test_option_texts(text: str, letter: str):
    assert find_option(text, OPTIONS) == letter


def ask(name: str, answer: str, **more: object) -> Question:
    return Question("q", "t", "i", "?", answer, metric=name, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "prediction", "parsed"),
    [
        ("choice", "it is the cat", "B"), ("choice", "B. dog", "B"), ("choice", "horse", ""),
        ("choice_letter", "it is the cat", ""), ("choice_letter", "The answer is (B).", "B"),
        ("scienceqa", "b", "B"), ("scienceqa", "B. cat", "B"), ("scienceqa", "(B)", ""), ("scienceqa", "b. cat", ""),
        ("scienceqa", "E. x", ""), ("scienceqa", "", ""),
        ("ai2d", "(B)", "B"), ("ai2d", " B. cat", "B"), ("ai2d", "b", "B"), ("ai2d", "B cat", ""), ("ai2d", "", ""),
        ("seed", "Because", "B"), ("seed", "bird", "B"), ("seed", "(B)", ""), ("seed", "", ""),
    ],
)  # fmt: skip
def test_each_benchmark_reads_its_way(name: str, prediction: str, parsed: str):
    q = ask(name, "B", options=OPTIONS)
    assert metric(name).parse(q, prediction) == parsed
    assert metric(name).score(q, prediction) == float(parsed == "B")


def test_realworldqa_has_letters_and_words():
    assert metric("realworldqa").score(ask("realworldqa", "B"), "The answer is B.") == 1
    assert metric("realworldqa").score(ask("realworldqa", "Downhill"), " downhill.") == 1
    assert metric("realworldqa").score(ask("realworldqa", "0"), "zero") == 0
    with pytest.raises(ValueError, match="empty"):
        metric("realworldqa").check(ask("realworldqa", " "))


@pytest.mark.parametrize("answer", ["E", "BC", "", "cat"])
def test_answers_that_are_no_letter_are_refused(answer: str):
    with pytest.raises(ValueError, match="must be one of A, B, C, D, it is"):
        metric("choice").check(ask("choice", answer, options=OPTIONS))


def test_circular_evaluation():
    """Question 1 is right in all its turns, question 2 in one of two, question 3 has a single turn."""
    cases = [("1", 1, "x"), ("1", 1, "x"), ("1", 1, "x"), ("2", 1, "y"), ("2", 0, "y"), ("3", 1, "y")]
    questions = [
        Question(f"q{i}", "t", "i", "?", "A", metric="mmbench", group=group, category=category)
        for i, (group, _, category) in enumerate(cases)
    ]
    rows = {f"q{i}": {"score": float(right), "parsed": "A"} for i, (_, right, _) in enumerate(cases)}
    found = official(questions, rows)["t"]
    assert found["circular_accuracy"] == pytest.approx(2 / 3)
    assert found["accuracy"] == pytest.approx(5 / 6)
    assert (found["circular_accuracy/x"], found["circular_accuracy/y"], found["category_average"]) == (1, 0.5, 0.75)
    with pytest.raises(ValueError, match="needs a group"):
        metric("mmbench").check(ask("mmbench", "A"))
