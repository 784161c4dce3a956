"""Samples that flipped, a few per method, and the tokens that were kept of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vtc.eval.statistics.cell_summary import CellSummary, keep_text
from vtc.eval.statistics.paired import CHANGE
from vtc.eval.tasks.questions import Question, TaskSet
from vtc.eval.vlm.pruning_settings import UNPRUNED

from .sample_pictures import Finder, draw_kept, jpeg, picture_of, shrink

SHOWCASE = 0.25  # the keep nearest to it is shown: differences are seen there, and not everything is lost
WANTED = {"down": 2, "up": 1}  # examples per method
QUESTIONS, PANELS = 12, 6


@dataclass(frozen=True)
class Panel:
    """One method's answer to a question, with a picture if there is one."""

    method: str
    keep: str
    direction: str
    prediction: str
    picture: str = ""
    alt: str = ""
    note: str = ""


@dataclass
class Example:
    """A question whose answer flipped under some methods."""

    task: str
    question: str
    answer: str
    before: str
    was_right: bool
    change: str
    picture: str = ""
    panels: list[Panel] = field(default_factory=list)


def showcase(cells: Sequence[CellSummary]) -> list[CellSummary]:
    """One cell per method, most of them at the same keep."""
    shares = {c.spec: c.tokens_kept / c.tokens_total if c.tokens_total else 1.0 for c in cells}
    pruned = [c for c in cells if not c.is_unpruned]
    common = Counter(c.keep for c in pruned if c.keep is not None)
    most = max(common.values(), default=0)
    keeps = {k for k, n in common.items() if n == most}
    best: dict[str, CellSummary] = {}
    for c in sorted(pruned, key=lambda c: (c.keep not in keeps, abs(shares[c.spec] - SHOWCASE))):
        best.setdefault(c.method, c)
    order = list(dict.fromkeys(c.method for c in pruned))
    return sorted(best.values(), key=lambda c: order.index(c.method))


def choose(cells: Sequence[CellSummary], rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Questions that flipped, with the (spec, direction) of each method that did; few questions for many methods.

    Parameters
    ----------
    cells : sequence of CellSummary
        One per method, and the unpruned one.
    rows : iterable of mappings
        All result rows.
    """
    wanted = {c.spec: dict(WANTED) for c in cells if not c.is_unpruned}
    score: dict[str, dict[str, float]] = {}
    image_of: dict[str, str] = {}
    for row in rows:
        if row["cell"] in wanted or row["cell"] == UNPRUNED.spec:
            score.setdefault(row["cell"], {})[row["question_id"]] = row["score"]
            image_of[row["question_id"]] = row["image_id"]
    base = score.get(UNPRUNED.spec, {})
    flipped: dict[str, list[tuple[str, str]]] = {}
    seen: set[str] = set()  # images: a new one is worth more than the same again
    for spec in wanted:
        for q, s in score.get(spec, {}).items():
            if q in base and abs(s - base[q]) > CHANGE:
                flipped.setdefault(q, []).append((spec, "down" if s < base[q] else "up"))

    def useful(q: str) -> int:
        return sum(wanted[spec][direction] > 0 for spec, direction in flipped[q])

    chosen: list[tuple[str, list[tuple[str, str]]]] = []
    while flipped and len(chosen) < QUESTIONS:
        best = max(sorted(flipped), key=lambda q: useful(q) - 1.5 * (image_of[q] in seen))
        if useful(best) == 0:
            break
        seen.add(image_of[best])
        # those that still need an example come first; a stable sort keeps the methods' order
        shown = sorted(flipped.pop(best), key=lambda flip: wanted[flip[0]][flip[1]] <= 0)[:PANELS]
        for spec, direction in shown:
            wanted[spec][direction] -= 1
        chosen.append((best, shown))
    return chosen


def make_examples(
    cells: Sequence[CellSummary], tasks: TaskSet, rows: Iterable[Mapping[str, Any]], find: Finder | None = None
) -> list[Example]:
    """Draw them.

    Parameters
    ----------
    cells : sequence of CellSummary
        All cells.
    tasks : TaskSet
        Questions and images.
    rows : iterable of mappings
        All result rows.
    find : callable, optional
        Gives the masks and pictures of a cell's spec and a question, or None; see ``kept_finder``.
    """
    shown = {c.spec: c for c in showcase(cells)}
    plain = [c for c in cells if c.is_unpruned]
    rows = [row for row in rows if row["cell"] in shown or row["cell"] == UNPRUNED.spec]
    row_of = {(row["cell"], row["question_id"]): row for row in rows}
    question_of = {q.question_id: q for q in tasks.questions}
    examples = []
    for q, flips in choose([*shown.values(), *plain], (r for r in rows if r["question_id"] in question_of)):
        question, base = question_of[q], row_of[UNPRUNED.spec, q]
        after = [row_of[spec, q]["score"] for spec, _ in flips]
        picture = picture_of(tasks, question)
        example = Example(
            question.task,
            question.question,
            question.answer,
            str(base["prediction"]),
            base["score"] > 0.5,
            _change(base["score"], after),
            jpeg(shrink(picture)) if picture else "",
        )
        for (spec, direction), score in zip(flips, after, strict=True):
            cell, made = shown[spec], _drawn(find, shown[spec], question) if find and picture else {}
            note = [made.pop("note", ""), "" if score in (0, 1) else f"score {score:.2g}"]
            made["note"] = ", ".join(filter(None, note))
            prediction = str(row_of[spec, q]["prediction"])
            example.panels.append(Panel(cell.method, keep_text(cell.keep), direction, prediction, **made))
        examples.append(example)
    return examples


def _drawn(find: Finder, cell: CellSummary, question: Question) -> dict[str, str]:
    """The kept tokens as a picture with its words; a model that can't be asked again spoils no report."""
    try:
        kept = find(cell.spec, question)
    except (RuntimeError, ValueError, NotImplementedError) as e:
        return {"note": f"kept tokens not drawn: {type(e).__name__}"}
    if kept is None:
        return {}
    n, total = sum(int(m.sum()) for m in kept[0]), sum(m.size for m in kept[0])
    alt = f"The image with the {n} of {total} patches that {cell.label} keeps, the others darkened"
    return {"picture": jpeg(draw_kept(kept)), "alt": alt, "note": f"{n} of {total} patches"}


def _change(before: float, after: Sequence[float]) -> str:
    """What pruning did to a question, in words; nothing where methods differ."""
    if before == 1 and set(after) == {0}:
        return "right → wrong"
    if before == 0 and set(after) == {1}:
        return "wrong → right"
    return "score fell" if max(after) < before else "score rose" if min(after) > before else ""
