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
        line = f"{outcome.stage}: {outcome.why}" if outcome.status in (WRONG, FAILED) else outcome.why
        if line not in self.lines:
            self.lines.append(line)
        return self.lines.index(line) + 1


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
    """All stages in one word where they agree, else a line for each status and reason; of wrong ones the worst."""
    alike: dict[tuple[str, str], list[Outcome]] = {}
    for o in outcomes:
        alike.setdefault((o.status, "" if o.status in (EXACT, WRONG) else o.why), []).append(o)
    words = []
    for (status, _), group in alike.items():
        worst = max(group, key=lambda o: o.difference or 0.0)
        note = "" if status == EXACT else f" ({notes.number(worst)})"
        stages = "" if len(alike) == 1 else f": {', '.join(o.stage for o in group)}"
        words.append(f"[{STYLES[status]}]{status}[/]{note}{stages}")
    return "\n".join(words) or "-"
