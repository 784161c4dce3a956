"""``vtc pruners`` and the table of docs/methods.md: what there is, what each method needs, and where it runs."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vtc.eval.vlm.pruning_settings import telling
from vtc.models.method_support import DEPTH, support
from vtc.pipeline_text import format_pipeline, parse
from vtc.pruners import list_pruners, make_pruner, pruner_class
from vtc.pruners.base import FLAGS, STAGES, Pruner
from vtc.pruners.registry import nearest
from vtc.pruners.signals import Signal

DETAILED = 3  # methods that are few enough to show everything about them
# what a signal is called in a table
WORDS = {
    "EncoderAttention": "encoder attention",
    "EncoderQueries": "encoder queries",
    "EncoderKeys": "encoder keys",
    "EncoderValues": "encoder values",
    "EncoderSpecial": "encoder queries",
    "EncoderSegments": "encoder queries",
    "EncoderFeatures": "encoder states",
    "PreProjector": "encoder output",
    "Pixels": "pixels",
    "Projected": "projected features",
    "TextEmbeddings": "text",
    "QuestionState": "a pass over the question",
    "DecoderAttention": "decoder attention",
    "AttentionAhead": "decoder attention",
    "DecoderKeys": "decoder keys",
    "DecoderValues": "decoder values",
    "DecoderHidden": "hidden states",
    "DecoderTransition": "sublayer outputs",
}
# settings that may move a method to another stage
MOVES: tuple[dict[str, Any], ...] = ({"layer": 2}, {"at": "vision"}, {"at": "vision", "layer": 2}, {"at": "input"})
TABLE_HEAD = "| method | what it does | paper | stage | needs | remarks | families |\n|---|---|---|---|---|---|---|"


def stages_of(pruner: Pruner) -> list[str]:
    """The stages at which `pruner` prunes."""
    return sorted({stop.stage for stop in telling(pruner).stops(DEPTH)}, key=STAGES.index)


def other_stages(pruner: Pruner) -> list[str]:
    """The stages at which the same method can prune when it is told to."""
    found = set()
    for params in MOVES:
        try:
            found.update(stages_of(make_pruner(pruner.name, **params)))
        except (ValueError, TypeError):  # it has no such parameter, or not in that combination
            continue
    return sorted(found - {*stages_of(pruner)}, key=STAGES.index)


def signals_of(pruner: Pruner) -> list[Signal]:
    """Everything that `pruner` reads, stop by stop, in the order declared."""
    return list(dict.fromkeys(s for stop in pruner.stops(DEPTH) for s in pruner.signals_at(stop)))


def flags_of(pruner: Pruner) -> dict[str, bool]:
    """The flags of an instance."""
    return {flag: bool(getattr(pruner, flag)) for flag in ("uses_attention", "uses_cls", *FLAGS)}


def summary_of(pruner: Pruner) -> str:
    """One line on what a method does: its file's first, or its class's where the file holds several."""
    cls = type(pruner)
    shared = Counter(pruner_class(name).__module__ for name in list_pruners())
    built_in = cls.__module__.startswith("vtc.pruners.") and shared[cls.__module__] == 1
    text = (sys.modules[cls.__module__].__doc__ if built_in else cls.__doc__) or ""
    line = text.strip().split("\n\n")[0].replace("\n", " ")
    # "Name (authors, arXiv number): what it does"
    found = re.match(r"^[^:(]*\([^)]*\d{4}[^)]*\): (.*)$", line) or re.match(r"^[\w' +-]+: (.*)$", line)
    line = found[1] if found else line
    return line[:1].upper() + line[1:]


def describe_method(pruner: Pruner) -> dict[str, Any]:
    """Everything about one method as it is set up, ready for JSON."""
    cls, kept = type(pruner), telling(pruner)
    where = support([kept])
    defaults = {f.name: f.default for f in fields(cls) if f.init and f.name != "keep" and f.default is not MISSING}
    return {
        "name": pruner.name,
        "spec": format_pipeline([pruner]),
        "summary": summary_of(pruner),
        "paper": cls.paper,
        "stages": stages_of(pruner),
        "other_stages": other_stages(pruner),
        "signals": [str(signal) for signal in signals_of(kept)],
        "needs": needs_of(kept),
        **flags_of(kept),
        "parameters": {name: getattr(pruner, name) for name in defaults},
        "families": list(where.runs),
        "families_in_words": str(where),
        "not_on": where.reasons,
    }


def needs_of(pruner: Pruner) -> list[str]:
    """What a method reads beside the tokens themselves, in words."""
    words = [WORDS.get(type(signal).__name__, str(signal)) for signal in signals_of(pruner)]
    words += ["question"] if pruner.uses_question else []
    words += ["projector"] if pruner.projects else []
    words += ["vocabulary"] if pruner.reads_vocabulary else []
    return list(dict.fromkeys(words))


def describe(pattern: str = "*") -> list[dict[str, Any]]:
    """Describe methods.

    Parameters
    ----------
    pattern : str
        A shell-style pattern of names; or a method with parameters, or a pipeline, whose methods are described as
        they are set up there.

    Raises
    ------
    ValueError
        If no name matches, or the pipeline can't be read.
    """
    if "(" in pattern or "+" in pattern:
        return [describe_method(pruner) for pruner in parse(pattern)]
    names = list_pruners(pattern)
    if not names:
        raise ValueError(f"no pruner matches {pattern!r}. {nearest(pattern, list_pruners())}")
    return [describe_method(make_pruner(name)) for name in names]


def remarks(row: dict[str, Any]) -> list[str]:
    """What is unusual about a method."""
    said = {"merges": "merges", "adaptive_count": "adaptive count", "uses_text": "reads text", "trained": "trained"}
    return [word for flag, word in said.items() if row[flag]]


def stages_in_words(row: dict[str, Any]) -> str:
    """The stages, in brackets those on request."""
    other = f" ({', '.join(row['other_stages'])})" if row["other_stages"] else ""
    return ", ".join(row["stages"]) + other


def listing(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """The table for the screen; of few methods with all their parameters and families below it."""
    table = Table(show_lines=False)
    for column in ("method", "stage", "needs", "remarks", "paper"):
        table.add_column(column, no_wrap=column == "method")
    for row in rows:
        name = row["spec"].removesuffix("()")
        needs, said = ", ".join(row["needs"]) or "-", ", ".join(remarks(row)) or "-"
        table.add_row(Text(name), stages_in_words(row), needs, said, row["paper"] or "-")
    if len(rows) > DETAILED:
        return Group(table, Text("vtc pruners NAME tells more about one of them, --json everything about all."))
    return Group(table, *(Text(line) for row in rows for line in _details(row)))


def _details(row: dict[str, Any]) -> Iterable[str]:
    yield f"{row['name']}: {row['summary']}"
    parameters = ", ".join(f"{name}={value!r}" for name, value in row["parameters"].items())
    yield f"  parameters: {', '.join(filter(None, ['keep', parameters]))}"
    yield f"  families: {row['families_in_words']}"
    yield from (f"  not on {name}: {reason}" for name, reason in row["not_on"].items())


def methods_table(rows: Sequence[dict[str, Any]]) -> str:
    """The table of docs/methods.md."""
    return "\n".join([TABLE_HEAD, *map(_table_row, rows)])


def _table_row(row: dict[str, Any]) -> str:
    paper = re.sub(r"arXiv (\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", row["paper"])
    columns = (
        f"`{row['name']}`",
        row["summary"].rstrip(".").replace("``", "`").replace("|", "\\|"),
        paper,
        stages_in_words(row),
        ", ".join(row["needs"]) or "-",
        ", ".join(remarks(row)) or "-",
        row["families_in_words"],
    )
    return f"| {' | '.join(columns)} |"
