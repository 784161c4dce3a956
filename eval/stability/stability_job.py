"""``vtc stability``: methods measured one after the other, as a table, as Markdown, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vtc.eval.terminal.option_checks import token_counts
from vtc.eval.terminal.progress_bars_and_eta import plain_progress
from vtc.eval.vlm.pruning_settings import split_list
from vtc.pruners import list_pruners

from . import in_a_model, rounding_overlap
from .in_a_model import Subject, measure_inside
from .rounding_overlap import EPSILON, LEAST, Stability, measure, setting

MADE_UP = {name: question.words for name, question in rounding_overlap.QUESTIONS.items()}

HEAD = f"""# How much of a choice is rounding

A method that keeps other tokens because a sum was added up in another order gives another answer on another card. So
each one chooses twice for the same made-up signals, and the kept sets are compared: 1.000 is the same tokens.

- *float32 against float64*: the same numbers, in which the method then computes.
- *the same, many tokens equal*: as the line above, where two thirds of a picture's tokens are copies of others, and a
  video stands still for three frames at a time. True ties must not be decided by rounding, but by the lowest index.
- *features off by {EPSILON:g}*: all that is read, features and signals, times ``1 + {EPSILON:g} z``, z normal.
- *features in bfloat16*: rounded to bfloat16 and back, as a model in half precision gives them.

The first three are contracts (`tests/eval/stability/`): at least {LEAST:g} of the kept tokens are the same. The third
is not promised by a method that *cascades*: one near tie decides much of what comes after it, which its docstring
explains. Nothing is promised in bfloat16, whose rounding is some 4,000 times as large as the perturbation of the third.
"""

INSIDE = """# How much of a choice inside {model} is rounding

Each method chooses in the model in float32, in float64 and in bfloat16, for the same pictures and questions, and the
kept sets are compared with those of float32: 1.000 is the same tokens. What a method reads differs by what the model's
own layers round, which grows from layer to layer; nothing is promised. The worst of {pictures} pictures, in brackets
their mean where they differ; of a picture the least of all stops and crops.
"""


@dataclass(frozen=True)
class StabilityOptions:
    """What ``vtc stability`` was asked for; `methods` None means all.

    With a `subject` the choices are those inside a model, of its pictures' tokens.
    """

    methods: str | None = None
    tokens: str = "576,2880"
    keep: int | float = 0.11
    draws: int = 6
    subject: Subject | None = None

    @property
    def questions(self) -> dict[str, str]:
        """What is compared, in words."""
        return MADE_UP if self.subject is None else in_a_model.QUESTIONS


def asked_methods(options: StabilityOptions) -> list[str]:
    """The methods to measure.

    Raises
    ------
    ValueError
        If one can't be read; before anything is measured.
    """
    named = None if options.methods in (None, "all") else options.methods
    found = list_pruners() if named is None else split_list(named)
    if not found:
        raise ValueError("--pruners names no method; vtc pruners lists them")
    for spec in found:
        setting(spec, options.keep)
    return found


def run_stability(options: StabilityOptions, console: Console, quiet: bool = False) -> list[Stability]:
    """Measure what was asked for, with a bar unless `quiet`."""
    methods, tokens, subject = asked_methods(options), token_counts(options.tokens), options.subject
    found: list[Stability] = []
    with plain_progress(console, disable=quiet) as progress:
        if subject is not None:
            task = progress.add_task("", total=len(methods) * (1 + len(in_a_model.OTHERS)))

            def advance(spec: str) -> None:
                progress.update(task, advance=1, description=spec.split("(")[0])

            return measure_inside(subject, methods, options.keep, advance)
        task = progress.add_task("", total=len(methods) * len(tokens))
        for spec in methods:
            progress.update(task, description=spec.split("(")[0])
            for n in tokens:
                found.append(measure(spec, n, options.keep, options.draws))
                progress.advance(task)
    return found


def cell(row: Stability, question: str) -> str:
    """The worst overlap, and the mean where the draws differ."""
    if row.failed:
        return "-"
    values = row.overlaps[question]
    worst, mean = min(values), sum(values) / len(values)
    return f"{worst:.3f}" if worst == mean else f"{worst:.3f} ({mean:.3f})"


def remark(row: Stability) -> str:
    """What else is to be said."""
    broken = [MADE_UP[q] for q in row.broken]
    said = [row.failed, "cascades" if row.cascades else "", f"below {LEAST:g}: {', '.join(broken)}" if broken else ""]
    return "; ".join(filter(None, said)) or "-"


def screen_table(rows: Sequence[Stability], questions: Mapping[str, str]) -> Table:
    """The table for the screen, with a column for each of `questions`."""
    table = Table(title="Overlap of the kept tokens: worst draw (mean)", title_justify="left")
    for column in ("method", "tokens", *questions.values(), "remarks"):
        table.add_column(column, no_wrap=column == "method")
    for row in rows:
        table.add_row(row.method, f"{row.tokens:,}", *(cell(row, q) for q in questions), remark(row))
    return table


def markdown(rows: Sequence[Stability], options: StabilityOptions) -> str:
    """The page in docs."""
    columns = ["method", "tokens", *options.questions.values(), "remarks"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        values = [f"`{row.method}`", f"{row.tokens:,}", *(cell(row, q) for q in options.questions), remark(row)]
        lines.append(f"| {' | '.join(values)} |")
    asked = f"--keep {options.keep} --draws {options.draws}"
    if options.subject is not None:
        name = options.subject.model or "bundled"
        about = INSIDE.format(model=f"`{name}`", pictures=options.draws)
        return "\n".join([about, *lines, "", f"Made by `vtc stability --model {name} {asked} --output FILE`.", ""])
    made = f"vtc stability --tokens {options.tokens} {asked}"
    how = (
        f"The worst of {options.draws} draws, in brackets their mean where they differ. Half of the draws are pictures "
        "(2,880 tokens: a thumbnail and four crops), half are videos of 12 x 12 tokens a frame; signals are normal "
        "numbers or their softmax, of LLaVA-1.5's shapes but for 1,024 channels in the decoder. All stops of a method "
        "follow one another, and the least overlap of them counts. On the CPU."
    )
    return "\n".join([HEAD, how, "", *lines, "", f"Made by `{made} --output docs/stability.md`.", ""])


def as_rows(found: Sequence[Stability]) -> list[dict[str, Any]]:
    """Everything, ready for JSON."""
    return [{**asdict(row), "broken": row.broken} for row in found]


def write_page(path: Path, rows: Sequence[Stability], options: StabilityOptions) -> None:
    """Write the Markdown page."""
    path.write_text(markdown(rows, options), encoding="utf-8")
