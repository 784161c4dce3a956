"""The page: it holds the numbers, is one file, reads without eyes, and every kind of sweep renders."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from html_page import Checked
from made_up_sweeps import ABOUT, METHODS, MadeUp, make_sweep

from vtc.eval.reports.html import render_markdown, render_report
from vtc.eval.reports.wording import numbers_in_words as words
from vtc.eval.statistics.cell_summary import CellSummary

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def test_the_page_holds_the_numbers(sweep: MadeUp, cells: list[CellSummary]):
    page = Checked(render_report(cells, ABOUT, sweep.tasks, sweep.rows))
    text = page.words
    for c in cells:
        assert words.percent(c.mean.value) in text
        if c.against_random:
            assert f"{words.points(c.against_random)} {words.ends(c.against_random)}" in text
    for needed in ("vtc bench --pruners 'random,good'", "0123456789abcdef", "torch 2.9", "a cpu",
                   "1 of 2 methods beats",
                   "(same) are not judged"):  # fmt: skip
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
    assert all(b - a <= 1 for a, b in pairwise(levels))


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
        ("videos", {"kind": "video"}),
        ("official figures", {"tasks": ("mme", "docvqa"), "metrics": {"mme": "mme", "docvqa": "anls"}, "images": 30}),
        ("31 methods", {"methods": {"random": 0.0, **{f"m{i}": i / 400 for i in range(30)}}, "keeps": (0.5, 0.2, 0.1)}),
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
    tables = 1 + any(c.cost for c in cells) + sum(a.get("class", "").startswith("official") for a in page.all("table"))
    heat = len(sweep.tasks.tasks) > 1 and any(c.difference_by_task for c in cells)
    assert rows == tables * len(cells) + heat
    markdown = render_markdown(cells, {}, sweep.tasks)
    assert markdown.count("\n| ") > len(cells)
    assert not re.search(r"\b(nan|None|Undefined)\b", markdown)


def test_videos_are_told_in_words(tmp_path: Path):
    sweep = make_sweep(tmp_path, METHODS, kind="video", images=40)
    cells = sweep.summarise(reps=50)

    def find(spec: str, question: Any) -> Any:
        raise AssertionError("there is no picture to draw on")

    page = Checked(render_report(cells, {}, sweep.tasks, sweep.rows, find))
    assert "right → wrong" in page.words
    assert page.all("img") == []


@pytest.mark.parametrize("tasks", [("mme",), ("mme", "pope")])
def test_official_figures_have_their_names(tasks: tuple[str, ...], tmp_path: Path):
    sweep = make_sweep(tmp_path, METHODS, tasks=tasks, metrics={"mme": "mme"}, images=40)
    cells = sweep.summarise(reps=50)
    page, markdown = render_report(cells, {}, sweep.tasks, sweep.rows), render_markdown(cells, {}, sweep.tasks)
    for c in cells:
        assert f"{c.official['mme']['mme_score']:.4g}" in Checked(page).words
        assert f"{c.official['mme']['mme_score']:.4g}" in markdown
    assert "Official figures" in Checked(page).words
    assert "mme_acc_plus" in Checked(page).words
    assert ("Where it is lost" in page) == (len(tasks) > 1)


def test_an_empty_sweep_says_so(sweep: MadeUp):
    page = Checked(render_report([], {}, sweep.tasks, []))
    assert "Nothing was pruned in this sweep" in " ".join(page.text)
    assert "Nothing was pruned" in render_markdown([], {}, sweep.tasks)
