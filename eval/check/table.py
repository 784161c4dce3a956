"""The table of a check: contracts down, attention implementations across, the words below."""

from __future__ import annotations

from rich.table import Table

from .results import EXACT, FAILED, NOT_RUN, REFUSED, WRONG, Outcome, Result

STYLES = {EXACT: "green", REFUSED: "yellow", NOT_RUN: "dim", WRONG: "bold red", FAILED: "bold red"}


class Notes:
    """Numbers the reasons, each once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def number(self, outcome: Outcome) -> int:
        """Number of an outcome's reason."""
        if outcome.why not in self.lines:
            self.lines.append(outcome.why)
        return self.lines.index(outcome.why) + 1


def table_of(result: Result) -> tuple[Table, list[str]]:
    """The table, and the numbered reasons below it."""
    notes, table = Notes(), Table(box=None, pad_edge=False, show_edge=False)
    attentions = list(dict.fromkeys(o.attention for o in result.outcomes))
    table.add_column("")
    for attention in attentions:
        table.add_column(attention)
    for contract in dict.fromkeys(o.contract for o in result.outcomes):
        of = [o for o in result.outcomes if o.contract == contract]
        table.add_row(contract, *(_cell([o for o in of if o.attention == a], notes) for a in attentions))
    return table, [f"({i}) {line}" for i, line in enumerate(notes.lines, 1)]


def _cell(outcomes: list[Outcome], notes: Notes) -> str:
    """All stages in one word where they agree, else a line for each status."""
    words: dict[str, list[str]] = {}
    for o in outcomes:
        text = f"[{STYLES[o.status]}]{o.status}[/]" + (f" ({notes.number(o)})" if o.status != EXACT else "")
        words.setdefault(text, []).append(o.stage)
    if len(words) == 1:
        return next(iter(words))
    return "\n".join(f"{text}: {', '.join(stages)}" for text, stages in words.items())
