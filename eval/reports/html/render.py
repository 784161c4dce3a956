"""The page and the appendix, from a sweep's records; nothing is fetched, everything is in the one file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vtc.eval.files.atomic import write_atomic
from vtc.eval.reports.wording import notices
from vtc.eval.reports.wording import numbers_in_words as words
from vtc.eval.reports.wording.against_smaller import ABOUT as SMALLER_ABOUT
from vtc.eval.reports.wording.against_smaller import HEADS as SMALLER_HEADS
from vtc.eval.reports.wording.against_smaller import smaller_rows
from vtc.eval.reports.wording.hidden_scores import ABOUT as HIDDEN_ABOUT
from vtc.eval.reports.wording.hidden_scores import hidden_heads, hidden_rows
from vtc.eval.statistics.cell_summary import CellSummary, keep_text
from vtc.eval.statistics.which_flops import flops_ratio, flops_shown, flops_words
from vtc.eval.tasks.questions import TaskSet

from . import headline
from . import main_table as view
from . import results_by_task as heat
from .chart_elements import Chart
from .charts import Cost, Range, focus, make_chart
from .cost_table import cost_columns, memory_note
from .flipped_samples import make_examples
from .how_it_was_made import facts
from .markdown_escaping import breaks, cell, fence
from .sample_pictures import Finder

CLASSIFIER = "classifier"  # the kind of a sweep without questions and prompts
SIZES = {"wide": (586, 372), "narrow": (344, 316)}
GLYPHS = {"better": "▲", "worse": "▼", "none": "○"}
RULES = {"keep": "the same keep", "mean-tokens": "equal visual tokens per layer", "flops": "equal FLOPs"}
COMPARED = RULES | {"keep": RULES["mean-tokens"]}  # what was asked for is no budget
MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z",
    "M-3.6-3.6h7.2v7.2h-7.2Z",
    "M0-4.8 4.6 3.6H-4.6Z",
    "M0-5 5 0 0 5-5 0Z",
    "M0 4.8 4.6-3.6H-4.6Z",
    "M-1.5-4.6h3v3.1h3.1v3h-3.1v3.1h-3v-3.1h-3.1v-3h3.1Z",
    "M0-5.2 1.5-1.7 5.2-1.6 2.3 .8 3.3 4.5 0 2.4-3.3 4.5-2.3 .8-5.2-1.6-1.5-1.7Z",
)


def _flops(shown: str) -> Cost:
    def of(cell: CellSummary) -> Range | None:
        ratio = flops_ratio(cell, shown)
        return None if ratio is None else (ratio, ratio, ratio)

    return of


def _time(cell: CellSummary) -> Range | None:
    if cell.time is None:
        return None
    range_of = (cell.cost.whole if cell.cost else None) or (cell.time.seconds,) * 3
    return cell.time.ratio, range_of[1] / cell.time.reference, range_of[2] / cell.time.reference


def _charts(cells: Sequence[CellSummary], classifier: bool = False) -> list[tuple[str, str, dict[str, Chart]]]:
    """Title, name of the axis and the drawings of each cost that was measured and can be relied on."""
    looks, shown = focus(cells), flops_shown(cells)
    repeats = max((c.time.repeats for c in cells if c.time), default=0)
    costs = [("FLOPs", f"{flops_words(shown, classifier)}, relative to unpruned", _flops(shown))]
    if notices.times_shown(cells):
        what = "" if classifier else "prefill "
        costs.append((f"measured time (median of {repeats})", f"{what}time, relative to unpruned", _time))
    found = []
    for title, label, cost in costs:
        made = {size: make_chart(cells, cost, label, looks, *shape) for size, shape in SIZES.items()}
        drawn = {size: chart for size, chart in made.items() if chart is not None}
        if drawn:
            found.append((title, label, drawn))
    return found


def _environment(html: bool) -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vtc.eval.reports.html", "templates"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"words": words, "keep_text": keep_text, "heat_of": heat.heat_of}
    environment.globals |= {"MARKERS": MARKERS, "GLYPHS": GLYPHS}
    environment.filters |= {"cell": cell, "fence": fence, "breaks": breaks}
    return environment


def _context(cells: Sequence[CellSummary], about: dict[str, Any], tasks: TaskSet) -> dict[str, Any]:
    rule = about.get("match") or "keep"
    names = list(dict.fromkeys([*tasks.tasks, *(t for c in cells for t in c.accuracy)]))
    images = (about.get("data") or {}).get("images") or len({q.image_id for q in tasks.questions})
    questions = len(tasks.questions)
    plain = next((c for c in cells if c.is_unpruned), None)
    known = [c.detectable for c in cells if c.detectable is not None]
    return {
        "cells": cells,
        "about": about,
        "tasks": [t for t in names if any(t in c.accuracy for c in cells)],
        "rows": view.table_rows(cells, questions),
        "span": view.span_of(cells),
        "plain": plain,
        "images": images,
        "questions": questions,
        "facts": facts(about),
        "notices": notices.notices(cells, images),
        "long": " long" if any(len(c.method) > 18 for c in cells) else "",
        "title": headline.headline(cells),
        "lede": headline.lede(cells),
        "beaten": headline.beaten(cells),
        "sweep": notices.sweep_line(cells, about),
        "safe": headline.cheapest(cells),
        "detectable": sorted(known)[len(known) // 2] if known else None,
        "comparisons": len(known),
        "budgets": view.budgets_of(cells, rule),
        "rule": RULES[rule],
        "compared": COMPARED[rule],
        "official": heat.official_rows(cells),
        "flops_of": partial(flops_ratio, shown=flops_shown(cells)),
        "timed": notices.times_shown(cells) and any(c.time is not None for c in cells),
        "command": about.get("command") or "",
        "steps": heat.heat_scale(cells),
        "heat": len(names) > 1 and any(c.difference_by_task for c in cells),
        "classifier": about.get("kind") == CLASSIFIER,
        "batch": about.get("batch_size"),
        "costs": cost_columns(cells),
        "smaller": smaller_rows(cells),
        "smaller_heads": SMALLER_HEADS,
        "smaller_about": SMALLER_ABOUT,
        "hidden": hidden_rows(cells),
        "hidden_heads": hidden_heads(cells),
        "hidden_about": HIDDEN_ABOUT,
        "memory": memory_note(cells),
        "configuration": json.dumps(about.get("configuration") or {}, indent=1, ensure_ascii=False, default=str),
        "version": (about.get("versions") or {}).get("vtc", ""),
    }


def render_report(
    summaries: Sequence[CellSummary],
    about: dict[str, Any],
    tasks: TaskSet,
    rows: Iterable[Mapping[str, Any]] = (),
    find: Finder | None = None,
) -> str:
    """The page: one HTML file without any reference to another.

    Parameters
    ----------
    summaries : sequence of CellSummary
        What ``summarise`` returned.
    about : dict
        As in ``summary.json``; whatever it lacks is left out. ``match`` is the rule of the comparison.
    tasks : TaskSet
        Questions and images of the examples.
    rows : iterable of mappings
        Result rows, for the samples that flipped.
    find : callable, optional
        Gives the kept tokens of rows that don't record them; see ``kept_finder``.
    """
    here = Path(__file__).parent / "templates"
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    legend = [(i, name, look) for i, (name, look) in enumerate(focus(summaries).items())]
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment(html=True).get_template("page.html.j2")
    return page.render(
        **_context(summaries, about, tasks),
        style=style,
        script=script,
        script_hash=script_hash,
        charts=_charts(summaries, about.get("kind") == CLASSIFIER),
        legend=legend,
        examples=make_examples(summaries, tasks, rows, find),
        FOREST=view.FOREST,
    )


def render_markdown(summaries: Sequence[CellSummary], about: dict[str, Any], tasks: TaskSet) -> str:
    """The appendix of a paper: the same tables in Markdown."""
    return _environment(html=False).get_template("report.md.j2").render(**_context(summaries, about, tasks))


def write_report(
    folder: Path,
    summaries: Sequence[CellSummary],
    about: dict[str, Any],
    tasks: TaskSet,
    rows: Iterable[Mapping[str, Any]] = (),
    find: Finder | None = None,
) -> None:
    """Write ``report.html`` and ``report.md`` into `folder`, each in one go."""
    page, appendix = render_report(summaries, about, tasks, rows, find), render_markdown(summaries, about, tasks)
    for name, text in (("report.html", page), ("report.md", appendix)):
        write_atomic(folder / name, text.encode(errors="replace"))  # half a surrogate pair is no text
