"""MME: two questions per image; a category's score is its accuracy plus the share of images with both right."""

from __future__ import annotations

from collections.abc import Sequence

from vtc.eval.tasks.questions import Question

from .base import Metric, Rows, grouped, register, share

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
PAIR = 2


def yes_no_prefix(text: str) -> str:
    """MME's own reading: the whole answer, one letter of it, or a yes or no within its first four characters."""
    text = text.lower().strip().replace(".", "")
    if text in ("yes", "no", "y", "n"):
        return "yes" if text.startswith("y") else "no"
    if len(text) == 1:
        return ""
    return next((word for word in ("yes", "no") if word in text[:4]), "")


def category_figures(rows: Rows) -> tuple[float, float]:
    """Accuracy and accuracy+ of one category in percent; acc+ is over the images of which both answers are there."""
    accuracy = 100 * sum(row["score"] for row in rows) / len(rows)
    pairs = [pair for pair in grouped(rows, "group").values() if len(pair) == PAIR]
    both = sum(all(row["score"] == 1 for row in pair) for pair in pairs)
    return accuracy, 100 * both / len(pairs) if pairs else 0.0


@register
class MME(Metric):
    """The sum of ``acc + acc+`` (each up to 100) over the categories: perception, cognition and both."""

    name = "mme"
    main = "mme_score"

    def parse(self, question: Question, prediction: str) -> str:
        """The yes or no that it says, or nothing."""
        return yes_no_prefix(prediction)

    def score(self, question: Question, prediction: str) -> float:
        """1 if it is the answer."""
        return float(yes_no_prefix(prediction) == yes_no_prefix(question.answer))

    def check(self, question: Question) -> None:
        """The answer is yes or no, and the question has a category and an image to be paired by."""
        if question.answer.strip().lower().rstrip(".") not in ("yes", "no"):
            raise ValueError(f"the answer must be yes or no, it is {question.answer!r}")
        if not question.group or not question.category:
            raise ValueError("MME needs a group (the image) and a category")

    def check_group(self, questions: Sequence[Question]) -> None:
        """Two questions per image."""
        if len(questions) != PAIR:
            raise ValueError(f"MME scores pairs of questions, {questions[0].group!r} has {len(questions)}")

    def aggregate(self, rows: Rows) -> dict[str, float]:
        """mme_score, mme_perception and mme_cognition, and ``mme_score/CATEGORY``; mme_acc and mme_acc_plus of all."""
        figures = {name: category_figures(part) for name, part in grouped(rows, "category").items()}
        scores = {name: accuracy + plus for name, (accuracy, plus) in figures.items()}
        perception = float(sum(score for name, score in scores.items() if name in PERCEPTION))
        accuracy, plus = category_figures(rows) if rows else (0.0, 0.0)
        total = {
            "mme_score": float(sum(scores.values())),
            "mme_perception": perception,
            "mme_cognition": sum(scores.values()) - perception,
            "mme_acc": accuracy / 100,
            "mme_acc_plus": plus / 100,
            "mme_categories": float(len(scores)),
            "unparsed": share(rows, lambda row: row["parsed"] == ""),
        }
        return total | {f"mme_score/{name}": score for name, score in scores.items()}
