"""``vtc pruners``: what there is, and what each method needs."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from rich.table import Table

FLAGS = ("uses_text", "uses_attention", "merges", "adaptive_count")


def describe(pattern: str = "*") -> list[dict[str, Any]]:
    """Name, stage, signals, paper, flags, parameters and a one-line summary of the methods that match `pattern`.

    Raises
    ------
    ValueError
        If none does.
    """
    from vtc.pruners import list_pruners, make_pruner, pruner_class

    names = list_pruners(pattern)
    if not names:
        raise ValueError(f"no pruner matches {pattern!r}. There is: {', '.join(list_pruners())}.")
    rows = []
    for name in names:
        cls = pruner_class(name)
        plain = make_pruner(name)
        defaults = {f.name: f.default for f in fields(cls) if f.name != "keep" and f.default is not MISSING}
        rows.append({
            "name": name,
            "stage": plain.stage,
            "signals": [str(signal) for signal in plain.signals],
            "paper": cls.paper,
            "flags": [flag for flag in FLAGS if getattr(cls, flag)],
            "parameters": defaults,
            "summary": (cls.__doc__ or "").strip().splitlines()[0],
        })  # fmt: skip
    return rows


def listing_table(rows: list[dict[str, Any]]) -> Table:
    """The same as a table."""
    table = Table(show_lines=False)
    for column in ("method", "stage", "reads", "flags", "parameters", "paper"):
        table.add_column(column, no_wrap=column == "method")
    for row in rows:
        parameters = ", ".join(f"{name}={value}" for name, value in row["parameters"].items())
        signals = ", ".join(row["signals"]) or "-"
        table.add_row(
            row["name"], row["stage"], signals, ", ".join(row["flags"]) or "-", parameters or "-", row["paper"] or "-"
        )
    return table
