"""What the report must not say or show: rough times in a headline, points beside their place, two kinds of FLOPs, zeros
without a word, a verdict that is out of sight."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.axes
import pytest
from html_page import Checked
from made_up_sweeps import METHODS, MadeUp, make_sweep, one_cell
from places import ROOT
from rich.console import Console

from vtc.eval.cost.prefill_cost import Spread
from vtc.eval.reports.html import render_markdown, render_report
from vtc.eval.reports.html.charts import focus, make_chart
from vtc.eval.reports.html.headline import spends
from vtc.eval.reports.pareto_plot import draw_pareto
from vtc.eval.reports.screen_tables import verdict_table
from vtc.eval.reports.summary_files import write_json
from vtc.eval.reports.wording import numbers_in_words as words
from vtc.eval.reports.wording.notices import notices, times_shown
from vtc.eval.statistics.cell_summary import CellSummary
from vtc.eval.statistics.intervals import Interval
from vtc.eval.statistics.which_flops import LANGUAGE, WHOLE, flops_ratio, flops_shown, flops_words

ZERO = Interval(0.0, 0.0, 0.0)
BARE = re.compile(r"[+−-]?0\.0+\s*\[[+−-]?0\.0+, [+−-]?0\.0+\]")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    return make_sweep(tmp_path_factory.mktemp("sweep"), METHODS, images=60, layers={"same": 8})


@pytest.fixture(scope="module")
def cells(sweep: MadeUp) -> list[CellSummary]:
    return sweep.summarise(reps=100)


def rough(cells: list[CellSummary]) -> list[CellSummary]:
    """The same sweep on a busy machine: the turns of one line lie far apart."""
    odd = cells[-1]
    whole = odd.cost.whole
    cost = replace(odd.cost, prefill=Spread(whole.median, 0.4 * whole.median, 3 * whole.median))
    return [*cells[:-1], replace(odd, cost=cost)]


def test_rough_times_leave_headline_and_chart(sweep: MadeUp, cells: list[CellSummary]):
    for found, shown in ((cells, True), (rough(cells), False)):
        assert times_shown(found) == shown
        assert any("rough" in n for n in notices(found, 60)) != shown  # the note and what it means, always together
        page = Checked(render_report(found, {}, sweep.tasks, sweep.rows))
        lede = page.words.split("What accuracy costs")[0]
        assert ("measured prefill time" in lede) == shown
        assert ("Accuracy against measured time" in page.words) == shown
        assert ("range of repeated timings" in page.words) == shown
        assert len([a for a in page.all("svg") if "chart" in a.get("class", "").split()]) == (4 if shown else 2)
        assert "Accuracy against FLOPs" in page.words
        assert ("measured prefill time" in render_markdown(found, {}, sweep.tasks)) == shown
        times = [a for a in page.all("td") if a.get("data-v") == str(cells[1].time.ratio)]
        assert times  # the table has them, with the note above it


@pytest.mark.parametrize("many", [3, 12])
def test_every_point_of_the_page_stands_at_its_cost(many: int, tmp_path: Path):
    methods = {"random": 0.0, **{f"m{i}": i / 50 for i in range(many)}}
    cells = make_sweep(tmp_path, methods, images=20, keeps=(0.5, 0.01)).summarise(reps=30)
    for low in (1.0, 0.02):  # near the axis too
        for width in (586, 344):
            chart = make_chart(cells, lambda c, low=low: (low * c.flops_ratio, 0.0, 9.0), "x", focus(cells), width, 300)
            assert chart is not None
            unit = chart.x_ticks[-1][0] - chart.x_ticks[0][0]
            first, last = (float(label.rstrip("%")) / 100 for label in (chart.x_ticks[0][1], chart.x_ticks[-1][1]))
            places: dict[str, set[float]] = {}
            for s in chart.series:
                of = {c.mean.value: c for c in cells if c.method == s.name}
                for p in s.points:
                    cost = first + (p.x - chart.x_ticks[0][0]) / unit * (last - first)
                    cell = next(c for c in of.values() if f"{c.label}:" in p.title)
                    assert cost == pytest.approx(low * cell.flops_ratio, abs=0.006)  # ticks are rounded to a percent
                    assert chart.left <= p.left <= p.x <= p.right <= chart.right
                    places.setdefault(p.keep, set()).add(round(p.x, 6))
            assert all(len(found) == 1 for found in places.values())  # methods of equal cost at one x


def drawn(cells: list[CellSummary], path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], str]:
    """What ``pareto.png`` shows: x of each method's points in data units, and the name of that axis."""
    places: dict[str, Any] = {}
    real, label = matplotlib.axes.Axes.errorbar, []

    def errorbar(self: Any, x: Any, y: Any, **given: Any) -> Any:
        made = real(self, x, y, **given)
        line = made.lines[0]
        to_data = (line.get_transform() - self.transData).transform
        places[given["label"]] = to_data(line.get_xydata())[:, 0].tolist()
        return made

    def set_xlabel(self: Any, text: str, **_: Any) -> None:
        label.append(text)

    monkeypatch.setattr(matplotlib.axes.Axes, "errorbar", errorbar)
    monkeypatch.setattr(matplotlib.axes.Axes, "set_xlabel", set_xlabel)
    draw_pareto(cells, path / "pareto.png", "made up")
    return places, label[0]


@pytest.mark.parametrize("whole", [True, False])
def test_table_charts_and_pictures_show_the_same_flops(
    whole: bool, sweep: MadeUp, cells: list[CellSummary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if not whole:
        cells = [replace(c, flops_ratio=None) for c in cells]
    shown = flops_shown(cells)
    assert shown == (WHOLE if whole else LANGUAGE)
    expected = {}
    for c in cells:
        expected.setdefault(c.method, []).append(c.flops_ratio if whole else c.lm_flops_ratio)
    places, label = drawn(cells, tmp_path, monkeypatch)
    for method, found in places.items():
        assert found == pytest.approx(sorted(expected[method]))
    page = render_report(cells, {}, sweep.tasks, sweep.rows)
    for text in (label, page):
        assert flops_words(shown) in text.replace("&#39;", "'")
    for c in cells:
        assert f'data-v="{c.flops_ratio if whole else c.lm_flops_ratio}"' in page
        assert spends(c, cells).startswith(words.ratio(c.flops_ratio if whole else c.lm_flops_ratio))
        assert ("language model" in spends(c, cells)) != whole


def test_one_line_without_the_towers_flops_mixes_nothing(cells: list[CellSummary]):
    mixed = [*cells[:-1], replace(cells[-1], flops_ratio=None)]
    assert flops_shown(mixed) == LANGUAGE
    assert [flops_ratio(c, LANGUAGE) for c in mixed] == [c.lm_flops_ratio for c in mixed]
    assert flops_shown([]) == WHOLE


def test_the_readme_gets_table_and_picture_of_one_sweep(
    cells: list[CellSummary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import readme_table

    same = [replace(c, difference=ZERO, flips=0.0) if c.difference else c for c in cells]
    write_json(tmp_path / "summary.json", same, {})
    draw_pareto(same, tmp_path / "pareto.png", "made up")
    readme, page, picture = tmp_path / "README.md", tmp_path / "page.md", tmp_path / "docs.png"
    for name, copy in (("README", readme), ("PAGE", page)):
        shutil.copy(getattr(readme_table, name), copy)
        monkeypatch.setattr(readme_table, name, copy)
    monkeypatch.setattr(readme_table, "PICTURE", picture)
    monkeypatch.setattr(sys, "argv", ["readme_table.py", str(tmp_path)])
    readme_table.main()
    table = page.read_text().split("<!-- table -->")[1].split("<!-- /table -->")[0]
    assert picture.read_bytes() == (tmp_path / "pareto.png").read_bytes()
    assert table.count("+0.0 no question differed") == sum(c.difference is not None for c in cells)
    assert not BARE.search(table)
    for c in json.loads((tmp_path / "summary.json").read_text())["cells"][1:]:
        assert f"| {c['flops_ratio']:.2f} | " in table


INTERVALS = [
    (ZERO, True, True, "no question differed"),
    (ZERO, False, True, "no image differed"),
    (Interval(-0.1, -0.1, -0.1), False, True, "the same on every image"),
    (Interval(1.0, 1.0, 1.0), False, False, "all are right"),
    (Interval(0.0, 0.0, 0.0), False, False, "none is right"),
    (Interval(0.5, 0.5, 0.5), False, False, "the same on every image"),
    (Interval(0.0, -0.0004, 0.0003), False, True, "[−0.04, +0.03]"),
    (Interval(0.0, -0.000004, 0.0), False, True, "[−0.0004, 0.0000]"),
    (Interval(0.01, -0.003, 0.027), False, True, "[−0.3, +2.7]"),
    (Interval(0.0, 0.0, 0.01), False, True, "[0.0, +1.0]"),
    (Interval(0.926, 0.91, 0.94), False, False, "[91.0, 94.0]"),
    (None, False, True, ""),
    (Interval(float("nan"), 0, 0), False, True, ""),
]


@pytest.mark.parametrize(("interval", "same", "sign", "text"), INTERVALS)
def test_intervals_in_words(interval: Interval | None, same: bool, sign: bool, text: str):
    assert words.ends(interval, same, sign=sign) == text


def test_no_report_shows_a_bare_zero(sweep: MadeUp):
    plain = one_cell("unpruned", mean=Interval(1.0, 1.0, 1.0), difference=None)
    plain = replace(plain, spec="unpruned", keep=None)
    made = [one_cell(m, difference=ZERO, mean=ZERO, against_random=ZERO) for m in ("random", "a", "b")]
    cells = [plain, *(replace(c, flips=flips) for c, flips in zip(made, (0.0, 0.0, 0.1), strict=True))]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(verdict_table(cells, 10, 200))
    for text in (
        Checked(render_report(cells, {}, sweep.tasks, [])).words, render_markdown(cells, {}, sweep.tasks),
        console.export_text(),
    ):  # fmt: skip
        assert not BARE.search(text)
        assert "no question differed" in " ".join(text.split())
        assert "no image differed" in " ".join(text.split())


def test_no_page_of_the_documentation_shows_one():
    root = ROOT
    for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        assert not BARE.search(page.read_text()), page.name


def test_the_verdict_stands_beside_the_method_on_a_phone(sweep: MadeUp, cells: list[CellSummary]):
    page = render_report(cells, {}, sweep.tasks, sweep.rows)
    heads = re.findall(r'<th scope="row" class="text first" data-v="(\w+)">(.*?)</th>', page)
    judged = [c for c in cells if c.verdict and not c.is_random and not c.is_unpruned]
    said = [body for _, body in heads if 'class="phone said"' in body]
    assert len(said) == len(judged)
    for c, body in zip(judged, said, strict=True):
        first = c.verdict.partition(", ")[0].removesuffix(" after correction")
        assert first in Checked(f"<p>{body}</p>").words
