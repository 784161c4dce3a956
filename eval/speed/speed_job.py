"""The whole of ``vtc speed``: load, look, measure in rounds, compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vtc.eval.cost.clocks import work_clock
from vtc.eval.cost.timed_prompt import TimedPrompt
from vtc.eval.sweep.plan import plan_cells
from vtc.eval.terminal.console import say
from vtc.eval.terminal.progress_bars_and_eta import plain_progress
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell

from .cell_facts import Facts, FlopRatios, facts_of
from .compare_runs import FASTER, SLOWER, Change, compare_runs, not_compared
from .figures import figures
from .measure import Measurement
from .older_run import older_run
from .options import SpeedOptions
from .result_file import about, as_json, refuse_other, write
from .subject import load_subject
from .tables import change_table, remarks, speed_table, tower_table


@dataclass(frozen=True)
class SpeedResult:
    """What a run gave.

    Attributes
    ----------
    content : dict
        Of the file.
    changes : list of Change
        Since the older run; empty without one.
    """

    content: dict[str, Any]
    changes: list[Change]

    @property
    def regressed(self) -> bool:
        """Whether anything became slower, or takes more memory, beyond noise."""
        return any(change.regression for change in self.changes)


def run_speed(
    options: SpeedOptions,
    console: Console,
    output: Path | None = None,
    compare: Path | None = None,
    quiet: bool = False,
) -> SpeedResult:
    """Measure, tell, write.

    Parameters
    ----------
    options : SpeedOptions
        What is asked.
    console : Console
        Gets progress, tables and remarks, unless `quiet`.
    output : Path, optional
        File to write, whole or not at all.
    compare : Path, optional
        File of an older run.

    Raises
    ------
    OSError, ValueError, NotImplementedError
        In one line; before anything is measured where that can be known.
    """
    old = None if compare is None else older_run(compare)
    cells = plan_cells(options.pruners, options.keeps, (options.seed,)).cells
    subject = load_subject(options)
    clock = work_clock(next(subject.model.parameters()).device)
    told = about(options, subject, clock.words)
    if old is not None:
        refuse_other(old["about"], told)
    prompt = TimedPrompt(subject.model, subject.row, options.batch, clock)
    facts = {cell.spec: facts_of(subject, prompt, cell) for cell in cells}
    measurement = Measurement(subject, prompt, facts)
    lengths = measurement.lengths()
    with plain_progress(console, disable=quiet) as progress:
        steps = (len(cells) + len(lengths)) * (options.rounds + 1) + len(cells)
        task = progress.add_task("rounds", total=steps)
        rounds = measurement.run(cells, lengths, options.rounds, options.seed, lambda: progress.advance(task))
    flops = _flops(subject, prompt, cells, facts)
    found = figures(cells, facts, rounds, flops, options.seed)
    content = as_json(told, found, subject.cut)
    if output is not None:
        write(output, content)
    changes = [] if old is None else compare_runs(old, content)
    if not quiet:
        console.print(speed_table(found, subject, clock.words))
        inside = tower_table(found)
        if inside is not None:
            console.print(inside)
        say(console, *remarks(found, subject))
        if old is not None:
            _tell_changes(console, old, content, changes)
        if output is not None:
            say(console, f"written: {output}")
    return SpeedResult(content, changes)


def _flops(subject: Any, prompt: TimedPrompt, cells: list[Cell], facts: dict[str, Facts]) -> dict[str, Any]:
    """f and t by spec; empty where FLOPs aren't counted."""
    try:
        ratios = FlopRatios(subject, prompt, facts[UNPRUNED.spec])
        return {c.spec: (ratios.decoder(facts[c.spec]), ratios.tower(c, facts[c.spec])) for c in cells}
    except NotImplementedError:
        return {}


def _tell_changes(console: Console, old: dict[str, Any], new: dict[str, Any], changes: list[Change]) -> None:
    shown = (SLOWER, FASTER, "more", "less")
    told = [change for change in changes if change.verdict in shown]
    if told:
        console.print(change_table(changes, shown))
    count = sum(change.regression for change in changes)
    versions = [
        f"{name} {old['about']['software'].get(name)} then, {version} now"
        for name, version in new["about"]["software"].items()
        if old["about"]["software"].get(name) != version
    ]
    left = not_compared(old, new)
    say(
        console,
        f"{len(changes)} figures compared: {count or 'no'} regression{'' if count == 1 else 's'}",
        *([f"other versions: {'; '.join(versions)}"] if versions else []),
        *([f"in one of the runs only, so not compared: {', '.join(left)}"] if left else []),
    )
