"""The tables on the screen, and what a reader must know of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from vtc.eval.statistics.intervals import Interval
from vtc.eval.vlm.pruning_settings import UNPRUNED

from .compare_runs import Change
from .figures import Figures
from .subject import Subject

MIB = 2**20


def speed_table(found: Sequence[Figures], subject: Subject, clock: str) -> Table:
    """One row a setting."""
    table = Table(title=f"{subject.words}\nmilliseconds: {clock}", title_justify="left")
    columns = (
        "method",
        "layers",
        "visual tokens",
        "tower",
        "selection",
        "prefill",
        "per token",
        "KV, MiB",
        "peak, MiB",
    )
    for i, column in enumerate((*columns, "speed-up", "limit (of it)", "attainable (of it)")):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0 or column == "speed-up")
    layers = f"{len(subject.text.picked)} of {subject.text.depth}" if subject.text.cut else f"{subject.text.depth}"
    if subject.cut:
        layers += " *"
    for one in found:
        table.add_row(
            one.cell.spec,
            layers,
            f"{one.facts.mean_visual:,.0f}",
            *(_milliseconds(one.seconds.get(part)) for part in ("tower", "selection", "prefill", "decode")),
            f"{one.facts.kv_bytes / MIB:,.1f}",
            f"{one.rounds.peak / MIB:,.0f}",
            *(_speed(one) if one.cell != UNPRUNED else ("1", "", "")),
        )
    return table


def _speed(one: Figures) -> tuple[str, ...]:
    return (
        _times(one.attained),
        "-" if one.limit is None else f"{one.limit.speed_up:.2f}x ({_plain(one.of_limit)})",
        "-" if one.attainable is None else f"{one.attainable.value:.2f}x ({_plain(one.of_attainable)})",
    )


def tower_table(found: Sequence[Figures]) -> Table | None:
    """The tower's own speed-up, of the methods that prune inside it."""
    inside = [one for one in found if one.tower is not None]
    if not inside:
        return None
    table = Table(title="Inside the tower", title_justify="left")
    for i, column in enumerate(("method", "tower, speed-up", "its FLOPs, unpruned over pruned", "of it")):
        table.add_column(column, justify="left" if i == 0 else "right")
    for one in inside:
        limit = one.tower_limit
        table.add_row(
            one.cell.spec,
            "-" if one.tower is None else _times(one.tower),
            "-" if limit is None else f"{limit:.2f}x",
            _plain(one.of_tower_limit),
        )
    return table


def change_table(changes: Sequence[Change], shown: Sequence[str]) -> Table:
    """What changed since the older run; only rows with a verdict in `shown`."""
    table = Table(title="Now over then: methods over the unpruned model of their own run", title_justify="left")
    for i, column in enumerate(("method", "figure", "now / then", "")):
        table.add_column(column, justify="right" if i == 2 else "left")
    for one in changes:
        if one.verdict in shown:
            table.add_row(one.spec, one.what, _times(one.ratio), "REGRESSION" if one.regression else one.verdict)
    return table


def remarks(found: Sequence[Figures], subject: Subject) -> Iterator[str]:
    """One line each."""
    if subject.cut:
        tower = ""
        if subject.tower is not None:
            tower = f", {len(subject.tower.picked)} of the {subject.tower.depth} tower layers"
        yield (
            f"* extrapolated: {len(subject.text.picked)} of the {subject.text.depth} decoder layers{tower} were "
            "measured; each layer that is missing counts as the measured ones of its kind between the same stops"
        )
    if any(one.limit is None for one in found):
        yield "no limit: FLOPs of this language model are not counted, or its tower is not found"
    if any(one.attainable is None for one in found):
        yield "no attainable: this language model does not run without the model around it"
    for one in found:
        if one.cell == UNPRUNED:
            continue
        if one.attained.high < 1:
            yield f"{one.cell.spec} is SLOWER than the unpruned model: {_times(one.attained)}"
        elif one.attained.low <= 1:
            yield f"{one.cell.spec}: {_times(one.attained)}, no speed-up is shown; more --rounds tell smaller ones"


def _times(ratio: Interval) -> str:
    if ratio.low == ratio.high:
        return f"{ratio.value:.2f}x"
    return f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
