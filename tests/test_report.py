"""The report: what its words say, that every kind of sweep renders, that nothing in a name becomes markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_sweeps import MadeUp, make_sweep

from vtc.eval.report_html import render_markdown, render_report, words, write_report
from vtc.eval.report_html.charts import focus, make_chart
from vtc.eval.report_html.examples import choose, recorded, showcase
from vtc.eval.report_html.headline import cheapest, headline, notices
from vtc.eval.report_html.view import heat_of, span_of, table_rows
from vtc.eval.stats import Interval
from vtc.eval.summary import CellSummary

METHODS = {"random": 0.0, "good": 0.12, "same": 0.0, "bad": -0.15}
VOID = {"meta", "link", "img", "input", "br", "wbr"}
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Checked(HTMLParser):
    """Reads a page, checks that tags close in order, and keeps what tests ask for."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing at {self.getpos()}"
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    return make_sweep(tmp_path_factory.mktemp("sweep"), METHODS, images=120, layers={"same": 8})


@pytest.fixture(scope="module")
def cells(sweep: MadeUp) -> list[CellSummary]:
    return sweep.summarise()


ABOUT = {
    "command": "vtc bench --pruners 'random,good'", "model": "llava", "match": "keep", "seed": 0, "seconds": 12.5,
    "versions": {"vtc": "0.1.0", "torch": "2.9"}, "hardware": {"device": "cpu", "cpu": "a cpu", "cpus": 2},
    "data": {"name": "made-up", "version": "1.0", "fingerprint": "0123456789abcdef", "images": 120},
    "config_hash": "abc", "configuration": {"dtype": "float32"},
    "interval": {"level": 0.95, "method": "percentile bootstrap over images", "reps": 300},
}  # fmt: skip


def test_the_page_holds_the_numbers(sweep: MadeUp, cells: list[CellSummary]):
    page = Checked(render_report(cells, ABOUT, sweep.tasks, sweep.rows))
    text = " ".join(" ".join(page.text).split())
    for c in cells:
        assert words.percent(c.mean.value) in text
        if c.against_random:
            assert f"{words.points(c.against_random)} {words.ends(c.against_random)}" in text
    for needed in ("vtc bench --pruners 'random,good'", "0123456789abcdef", "torch 2.9", "a cpu", "1 of 3 methods beats"):
        assert needed in text
    assert text.count("better than random") >= 3
    # a row per line, with the values that it is sorted by
    values = [a.get("data-v") for a in page.all("td")]
    assert {str(c.mean.value) for c in cells} <= set(values)


def test_it_is_one_file(sweep: MadeUp, cells: list[CellSummary]):
    text = render_report(cells, ABOUT, sweep.tasks, sweep.rows)
    page = Checked(text)
    for _, attrs in page.tags:
        for name in ("src", "href", "action", "xlink:href", "srcset"):
            assert (attrs.get(name) or "#").startswith(("#", "data:")), attrs
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_it_can_be_read_without_seeing_it(sweep: MadeUp, cells: list[CellSummary]):
    page = Checked(render_report(cells, ABOUT, sweep.tasks, sweep.rows))
    assert page.all("html")[0]["lang"] == "en"
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert page.all("img")
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a.get("aria-hidden") == "true" or a.get("aria-label") for a in page.all("svg"))
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a") if a["href"]} <= set(ids)
    levels = [int(t[1]) for t, _ in page.tags if re.fullmatch("h[1-6]", t)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))


@pytest.mark.parametrize("where", ["methods", "tasks", "about"])
def test_markup_in_names_stays_text(where: str, tmp_path: Path):
    methods = {"random": 0.0, EVIL if where == "methods" else "good": 0.1}
    tasks = (EVIL, "t") if where == "tasks" else ("s", "t")
    sweep = make_sweep(tmp_path, methods, tasks=tasks, images=30, keeps=(0.25,))
    about = {"model": EVIL, "command": EVIL, "versions": {EVIL: EVIL}, "configuration": {"a": EVIL}} | (
        {"data": {"name": EVIL, "questions": {EVIL: 1}}} if where == "about" else {}
    )
    cells = sweep.summarise()
    text = render_report(cells, about if where == "about" else {}, sweep.tasks, sweep.rows)
    page = Checked(text)
    assert len(page.all("script")) == 1
    assert EVIL in "".join(page.text)
    assert all((a.get("src") or "").startswith("data:image/jpeg") for a in page.all("img"))
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    markdown = render_markdown(cells, about if where == "about" else {}, sweep.tasks)
    assert not re.search(r"(?<!\\)<(script|img)", markdown.split("## Reproduce")[0])
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("| ")]
    assert len(set(widths[: len(cells) + 2])) == 1  # a pipe in a name makes no column


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("nothing but unpruned", {"methods": {}}),
        ("only random", {"methods": {"random": 0.0}, "keeps": (64, 16)}),
        ("no random", {"methods": {"good": 0.1}}),
        ("one task, no FLOPs, no times", {"tasks": ("pope",), "flops": False, "timing": False}),
        ("unfinished", {"unfinished": ("good", "random"), "seeds": 1}),
        ("graded", {"graded": ("pope", "gqa")}),
        ("forty methods", {"methods": {"random": 0.0, **{f"m{i}": i / 400 for i in range(39)}}, "images": 12}),
    ],
)
def test_every_kind_of_sweep_renders(name: str, more: dict[str, Any], tmp_path: Path):
    sweep = make_sweep(tmp_path, **{"methods": METHODS, "images": 20, "keeps": (0.5, 0.1), **more})
    cells = sweep.summarise(reps=50)
    page = Checked(render_report(cells, {}, sweep.tasks, sweep.rows))
    text = " ".join(page.text)
    assert not re.search(r"\b(nan|None|inf|Undefined)\b", text), name
    rows = sum(a.get("class") is not None and a["class"].split()[0] in ("unpruned", "random", "method")
               for a in page.all("tr"))  # fmt: skip
    heat = len(sweep.tasks.tasks) > 1 and any(c.is_unpruned for c in cells)
    assert rows == len(cells) + heat
    markdown = render_markdown(cells, {}, sweep.tasks)
    assert markdown.count("\n| ") > len(cells)
    assert not re.search(r"\b(nan|None|Undefined)\b", markdown)


def test_an_empty_sweep_says_so(sweep: MadeUp):
    page = Checked(render_report([], {}, sweep.tasks, []))
    assert "Nothing was pruned in this sweep" in " ".join(page.text)
    assert "Nothing was pruned" in render_markdown([], {}, sweep.tasks)


def cell(method: str, verdict: str = "", keep: float = 0.5, low: float = -0.05, **more: Any) -> CellSummary:
    gap = Interval(low + 0.03, low, low + 0.06)
    given = {"n": 1000, "complete": True, "accuracy": {}, "mean": Interval(0.5, 0.4, 0.6), "difference": gap} | more
    return CellSummary(method=method, keep=keep, spec=f"{method} {keep}", flips=None, tokens_total=100.0,
                       tokens_asked=keep * 100, tokens_kept=keep * 100, tokens_per_layer=keep * 100, verdict=verdict,
                       **given)  # fmt: skip


BETTER, WORSE, NONE = "better than random", "worse than random", "no evidence, needs n >= 900 for 2 points"


@pytest.mark.parametrize(
    ("verdicts", "words_of"),
    [
        ({"a": [BETTER], "b": [BETTER], "c": [BETTER]}, "All 3 methods beat random pruning"),
        ({"a": [BETTER, BETTER], "b": [NONE, WORSE]}, "1 of 2 methods beats random pruning at every budget"),
        ({"a": [BETTER, NONE], "b": [BETTER, BETTER]}, "Both methods beat random pruning at some budgets"),
        ({"a": [NONE], "b": [WORSE]}, "No method is shown to beat random pruning"),
        ({"a": [WORSE], "b": [WORSE]}, "Every method is worse than random pruning"),
        ({"a": [NONE]}, "a is not shown to beat random"),
        ({"a": [""]}, "No method can be judged: this sweep has no random baseline"),
        ({}, "Nothing was pruned in this sweep"),
    ],
)
def test_headlines(verdicts: dict[str, list[str]], words_of: str):
    cells = [cell(m, v, 0.5 / (i + 1)) for m, found in verdicts.items() for i, v in enumerate(found)]
    assert headline(cells) == words_of


def test_the_cheapest_safe_setting():
    cells = [cell("a", keep=0.5, low=-0.01), cell("b", keep=0.25, low=-0.019), cell("c", keep=0.1, low=-0.03)]
    assert cheapest(cells).method == "b"
    assert cheapest(cells, margin=0.05).method == "c"
    assert cheapest(cells[2:]) is None
    cells[1].complete = False
    assert cheapest(cells).method == "a"
    # nothing differed: of 100 questions that leaves room for 3 points, of 200 for 1.5
    same = {"difference": Interval(0.0, 0.0, 0.0)}
    assert cheapest([cell("d", n=100, **same)]) is None
    assert cheapest([cell("d", n=200, **same)]).method == "d"


def test_notices_name_what_limits_the_numbers():
    apart = cell("fastv", against_ratio=1.8)
    one_seed = cell("random", specs=("random 0.5",))
    found = " ".join(notices([apart, one_seed, cell("late", complete=False)], {}, 12))
    for part in ("1 of 3 lines are unfinished", "1 seed", "fastv spend other visual tokens", "only 12 images",
                 "unpruned model was not run", "FLOPs were not counted and times were not measured."):  # fmt: skip
        assert part in found
    three = cell("random", specs=("a", "b", "c"), lm_flops_ratio=0.5)
    assert "seed" not in " ".join(notices([three], {}, 500))


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
    assert kinds["random"] == ("random", None)
    assert sorted(kind for kind, _ in kinds.values()) == ["focus"] * 3 + ["random"]
    chart = make_chart(cells, lambda c: c.flops_ratio, "FLOPs", kinds, 600, 400)
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


def test_of_many_methods_the_best_are_coloured():
    cells = [cell("random")] + [cell(f"m{i}", against_random=Interval(i / 100, 0, 1)) for i in range(20)]
    kinds = focus(cells)
    assert {m for m, (kind, _) in kinds.items() if kind == "focus"} == {f"m{i}" for i in range(13, 20)}
    assert kinds["m0"] == ("rest", None)


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


def test_kept_tokens_come_from_the_rows_or_from_the_model(sweep: MadeUp, cells: list[CellSummary]):
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
    rows = [{**row, "kept": [[2, 2, [0, 3]]]} for row in sweep.rows]
    asked.clear()
    own = Checked(render_report(cells, {}, sweep.tasks, rows, find))
    assert asked == []
    assert "2 of 4 patches" in " ".join(own.text)
    masks, _ = recorded(rows[0], sweep.tasks.image("i0"))
    assert masks[0].tolist() == [[True, False], [False, True]]


def test_the_files(sweep: MadeUp, cells: list[CellSummary], tmp_path: Path):
    write_report(tmp_path, cells, ABOUT, sweep.tasks, sweep.rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.md"]
    assert (tmp_path / "report.html").stat().st_size < 2**20
    markdown = (tmp_path / "report.md").read_text()
    good = next(c for c in cells if c.method == "good")
    assert f"{words.percent(good.mean.value)} {words.ends(good.mean, sign=False)}" in markdown
    assert "    vtc bench --pruners 'random,good'" in markdown
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (words.signed(-0.04), "0.0"), (words.signed(-0.06), "−0.1"), (words.p_value(0.00001), "<0.001"),
        (words.p_value(0.0123), "0.012"), (words.p_value(0.4321), "0.43"), (words.p_value(None), "–"),
        (words.rank(Interval(2, 1, 3.5)), "2 [1–3.5]"), (words.rank(Interval(1, 1, 1)), "1"),
        (words.listed(["a"]), "a"), (words.listed(["a", "b", "c"]), "a, b and c"),
        (words.listed(list("abcdef")), "a, b, c, d and 2 more"), (words.count(14815.2), "14,815"),
        (words.short("prumerge(alpha=0.1)", 12), "prumerge(al…"), (words.percent(float("nan")), "–"),
    ],
)  # fmt: skip
def test_numbers_in_words(text: str, wanted: str):
    assert text == wanted
