"""The report's parts: bars, heat map, charts, costs, budgets, and the samples that flipped."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from html_page import Checked
from made_up_sweeps import METHODS, MadeUp, make_sweep
from made_up_sweeps import one_cell as cell

from vtc.eval.cost.prefill_cost import Cost
from vtc.eval.reports.html import render, render_report
from vtc.eval.reports.html.charts import COLOURS, focus, make_chart
from vtc.eval.reports.html.cost_table import cost_columns
from vtc.eval.reports.html.flipped_samples import choose, make_examples, showcase
from vtc.eval.reports.html.main_table import budgets_of, span_of, table_rows
from vtc.eval.reports.html.render import MARKERS
from vtc.eval.reports.html.results_by_task import heat_of
from vtc.eval.statistics.cell_summary import CellSummary
from vtc.eval.statistics.intervals import Interval


def test_bars_and_heat():
    cells = [cell("a", against_random=Interval(0.03, -0.01, 0.07)), cell("b", against_random=Interval(0.01, 0.0, 0.02))]
    assert span_of(cells) == 8
    bar = table_rows(cells, 10)[0].bar
    assert bar.low < 48 < bar.value < bar.high <= 92
    assert bar.kind == "zero"
    hot = cell("c", difference_by_task={"t": Interval(-0.06, -0.1, -0.02), "u": Interval(0.004, -0.1, 0.2)})
    assert (heat_of(hot, "t").step, heat_of(hot, "t").text, heat_of(hot, "t").sure) == (-3, "−6.0", True)
    assert (heat_of(hot, "u").step, heat_of(hot, "u").sure) == (0, False)
    assert heat_of(hot, "missing").text == "–"


def test_charts_place_cells_by_cost_and_accuracy(cells: list[CellSummary]):
    kinds = focus(cells)
    assert kinds["random"] == ("random", None, 0)
    assert sorted(look.kind for look in kinds.values()) == ["focus"] * 3 + ["random"]
    chart = make_chart(cells, lambda c: (c.flops_ratio,) * 3, "FLOPs", kinds, 600, 400)
    by_name = {s.name: s.points for s in chart.series}
    for name, points in by_name.items():
        mine = sorted((c for c in cells if c.method == name), key=lambda c: c.flops_ratio)
        assert [p.keep for p in points] == [f"{100 * c.keep:g}%" for c in mine]
        assert [p.x for p in points] == sorted(p.x for p in points)
        for p in points:
            assert p.low > p.y > p.high  # pixels grow downwards
            assert chart.top <= p.high
            assert p.low <= chart.bottom
    assert by_name["good"][0].y < by_name["bad"][0].y
    assert make_chart(cells, lambda c: None, "nothing", kinds, 600, 400) is None
    timed = make_chart(cells, lambda c: (c.flops_ratio, 0.1, 9.0), "time", kinds, 600, 400)
    ranges = [(p.left, p.x, p.right) for s in timed.series for p in s.points]
    assert all(timed.left <= left < x < right <= timed.right for left, x, right in ranges)  # cut at the edges


def test_the_colours_and_markers_tell_methods_apart():
    assert len(set(MARKERS)) == COLOURS
    css = (Path(render.__file__).parent / "templates" / "style.css").read_text()
    for scheme, card in zip(css.split("@media screen")[:2], ("#ffffff", "#171e26"), strict=True):
        found = [re.search(rf"--c{i}: (#[0-9a-f]{{6}})", scheme)[1] for i in range(COLOURS)]
        assert len(set(found)) == COLOURS
        assert min(contrast(colour, card) for colour in found) >= 3  # WCAG 2 on graphics


def contrast(a: str, b: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_of_many_methods_the_best_are_coloured():
    cells = [cell("random")] + [cell(f"m{i}", against_random=Interval(i / 100, 0, 1)) for i in range(20)]
    kinds = focus(cells)
    assert {m for m, look in kinds.items() if look.kind == "focus"} == {f"m{i}" for i in range(13, 20)}
    assert kinds["m0"] == ("rest", None, 0)


def test_every_random_baseline_is_grey_with_a_marker_of_its_own():
    kinds = focus([cell("random"), cell("dart"), cell("random(layer=2)")])
    assert kinds == {"random": ("random", None, 0), "dart": ("focus", 0, 0), "random(layer=2)": ("random", None, 1)}


def test_examples_serve_every_method_with_few_questions(sweep: MadeUp, cells: list[CellSummary]):
    shown = showcase(cells)
    assert {c.method: c.keep for c in shown} == dict.fromkeys(METHODS, 0.25)
    chosen = choose([*shown, cells[0]], sweep.rows)
    score = {(r["cell"], r["question_id"]): r["score"] for r in sweep.rows}
    served = {c.spec: {"down": 0, "up": 0} for c in shown}
    for q, flips in chosen:
        for spec, direction in flips:
            change = score[spec, q] - score["unpruned", q]
            assert change == (-1 if direction == "down" else 1)
            served[spec][direction] += 1
    for c in shown:
        possible = sum(score[c.spec, q] > score["unpruned", q] for (s, q) in score if s == c.spec)
        assert served[c.spec]["down"] >= 2
        assert served[c.spec]["up"] >= min(1, possible)
    assert len(chosen) <= 6


def test_kept_tokens_come_from_the_model(sweep: MadeUp, cells: list[CellSummary]):
    plain = Checked(render_report(cells, {}, sweep.tasks, sweep.rows))
    asked: list[tuple[str, str]] = []

    def find(spec: str, question: Any) -> Any:
        asked.append((spec, question.question_id))
        mask = np.zeros((24, 24), dtype=bool)
        mask[:12] = True
        return [mask], [sweep.tasks.image(question.image_id)]

    drawn = Checked(render_report(cells, {}, sweep.tasks, sweep.rows, find))
    assert asked
    assert len(drawn.all("img")) == len(plain.all("img")) + len(asked)
    assert "288 of 576 patches" in " ".join(drawn.text)


def test_a_model_that_cannot_be_asked_again_spoils_no_report(sweep: MadeUp, cells: list[CellSummary]):
    def find(spec: str, question: Any) -> Any:
        raise RuntimeError("CUDA out of memory")

    page = Checked(render_report(cells, {}, sweep.tasks, sweep.rows, find))
    assert "kept tokens not drawn: RuntimeError" in page.words
    assert page.all("img")  # the samples themselves


def test_flips_say_what_happened(sweep: MadeUp, cells: list[CellSummary]):
    examples = make_examples(cells, sweep.tasks, sweep.rows)
    assert {e.change for e in examples} == {"right → wrong", "wrong → right"}
    for e in examples:
        assert e.picture.startswith("data:image/jpeg;base64,")
        assert e.was_right == (e.change == "right → wrong")
        assert e.before == ("yes" if e.was_right else "no")
        assert {p.prediction for p in e.panels} == {"no" if e.was_right else "yes"}


def test_graded_scores_fall_and_rise(tmp_path: Path):
    sweep = make_sweep(tmp_path, METHODS, tasks=("vqa",), graded=("vqa",), images=60)
    examples = make_examples(sweep.summarise(reps=50), sweep.tasks, sweep.rows)
    assert {e.change for e in examples} & {"score fell", "score rose"}
    assert any(re.search(r"score 0\.\d", p.note) for e in examples for p in e.panels)


def test_costs_leave_out_what_nobody_measured(sweep: MadeUp, cells: list[CellSummary]):
    assert [c.label for c in cost_columns(cells)][-3:] == ["First token", "Next tokens", "Memory"]
    page = Checked(render_report(cells, {}, sweep.tasks, sweep.rows))
    assert "[19.0–24.0]" in page.words  # the range of the vision tower's time
    assert "Memory is the peak during the prefill (made up)." in page.words
    bare = [replace(c, cost=Cost(lm_flops=10)) for c in cells]
    assert [c.label for c in cost_columns(bare)] == ["Asked", "Left", "KV cache", "LM"]
    assert cost_columns([replace(c, cost=None) for c in cells]) == []


def test_budgets_list_the_best_first_and_say_where_tokens_differ(sweep: MadeUp, cells: list[CellSummary]):
    budgets = budgets_of(cells, "keep")
    assert budgets.methods[0] == "good"
    assert budgets.methods[-1] == "bad"
    assert all(budgets.uneven(m) for m in budgets.matches)  # "same" prunes at layer 8
    even = budgets_of([c for c in cells if c.method != "same"], "keep")
    assert not any(even.uneven(m) for m in even.matches)
    assert budgets_of([c for c in cells if c.method in ("unpruned", "good")], "keep") is None
