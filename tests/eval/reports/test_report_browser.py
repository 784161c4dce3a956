"""The report in a real browser: wide and narrow, light and dark, by mouse and by keyboard, with and without scripts."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page, browser, find_browser
from made_up_sweeps import MadeUp, make_sweep
from PIL import Image
from places import TESTS

from vtc.eval.reports.html import write_report

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium here (Debian: apt-get install chromium)")

EVIL = "<script>hit = 1</script><img src=x onerror='hit = 1'>"
WIDTHS = (1280, 390)
SWEEPS: dict[str, dict[str, Any]] = {
    "plain": {
        "methods": {"random": 0.0, "uniform": 0.0, "dart": 0.1, "fastv": 0.12, "pool": -0.1},
        "tasks": ("pope", "gqa", "textvqa", "docvqa"), "graded": ("textvqa",), "layers": {"fastv": 4},
    },
    "markup": {"methods": {"random": 0.0, EVIL: 0.1, "a" * 70: -0.1}, "tasks": (EVIL, "t" * 40), "images": 30},
    "many": {
        "methods": {"random": 0.0, **{f"prumerge(alpha=0.{i})+fastv(layer=2)": (i - 12) / 100 for i in range(30)}},
        "tasks": tuple(f"ScienceQA-{i}" for i in range(12)), "images": 10, "keeps": (0.5, 0.2, 0.1),
    },
    "official": {
        "methods": {"random": 0.0, "good": 0.2}, "tasks": ("mme", "docvqa"), "kind": "video", "images": 40,
        "metrics": {"mme": "mme", "docvqa": "anls"},
    },
    "bare": {"methods": {"good": 0.1}, "tasks": ("pope",), "flops": False, "timing": False, "images": 12},
}  # fmt: skip

CHECKS = (TESTS / "page_checks.js").read_text()  # contrast(), outside(), charts()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, MadeUp]]:
    root, found = tmp_path_factory.mktemp("reports"), {}
    for name, given in SWEEPS.items():
        sweep = make_sweep(root / name, **{"images": 60, **given})
        about = {"command": "vtc bench " + "--pruners dart " * 12, "model": EVIL if name == "markup" else "llava",
                 "configuration": {"k" * 60: "v" * 200}, "versions": {"vtc": "1"}}  # fmt: skip
        rows = [row | {"prediction": EVIL} for row in sweep.rows] if name == "markup" else sweep.rows
        write_report(root / name, sweep.summarise(reps=100), about, sweep.tasks, rows, _top(sweep))
        found[name] = (root / name / "report.html", sweep)
    return found


def _top(sweep: MadeUp) -> Any:
    mask = np.zeros((24, 24), dtype=bool)
    mask[:6] = True
    return lambda spec, question: ([mask], [sweep.tasks.image(question.image_id)])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", sorted(SWEEPS))
def test_it_looks_right(name: str, width: int, dark: bool, page: Page, reports: Any, tmp_path: Path):
    file, _ = reports[name]
    page.open(file, width, dark)
    assert page.problems == []
    assert page.requests == [file.resolve().as_uri()]
    assert page.run("typeof hit") == "undefined"  # no text became a script
    assert page.run("document.documentElement.scrollWidth") == width
    assert page.run(CHECKS + "outside()") == []
    assert page.run(CHECKS + "charts()") == []
    contrast = page.run(CHECKS + "contrast()")
    assert contrast["seen"] > 60
    assert contrast["bad"] == []
    with Image.open(page.screenshot(tmp_path / "page.png")) as shot:
        pixels = np.asarray(shot.convert("L"))
    assert pixels.shape[1] == width
    assert pixels.shape[0] > 1500
    assert (np.median(pixels) < 60) == dark
    assert len(np.unique(pixels)) > 100  # text, lines and pictures
    # no part of it is empty: every 600 px hold some ink
    for top in range(0, pixels.shape[0] - 600, 600):
        assert np.ptp(pixels[top : top + 600]) > 60


def order(page: Page, column: int) -> list[str]:
    return page.run(f"[...document.querySelectorAll('.results tbody tr')].map(r => r.cells[{column}].dataset.v)")


def test_sorting_by_click_and_by_keyboard(page: Page, reports: Any):
    page.open(reports["plain"][0], 1280)
    first = order(page, 2)
    button = "document.querySelectorAll('.results thead button')[2]"
    state = f"{button}.closest('th').getAttribute('aria-sort')"
    page.run(f"{button}.click()")
    values = [float(v) for v in order(page, 2)]
    assert values[0] == float(first[0])  # the unpruned model stays on top
    assert values[1:] == sorted(values[1:], reverse=True)
    assert page.run(state) == "descending"
    page.run(f"{button}.focus()")
    page.press("Enter", 13)
    values = [float(v) for v in order(page, 2)]
    assert values[1:] == sorted(values[1:])
    assert page.run(state) == "ascending"
    page.press("Enter", 13)
    assert order(page, 2) == first
    assert page.run(state) is None
    # empty fields come last whichever way, and text sorts as text
    page.run("document.querySelectorAll('.results thead button')[6].click()")
    p_values = order(page, 6)[1:]
    assert p_values[-3:] == ["", "", ""]
    page.run("document.querySelectorAll('.results thead button')[0].click()")
    names = order(page, 0)[1:]
    assert names == sorted(names)
    assert page.problems == []


def test_the_filter_and_the_legend(page: Page, reports: Any):
    page.open(reports["plain"][0], 1280)
    page.run("filter.value = 'dart 25%'; filter.dispatchEvent(new Event('input'))")  # a const of the page's script
    shown = page.run("[...document.querySelectorAll('.results tbody tr:not([hidden]) th')].map(t => t.textContent)")
    assert len(shown) == 1
    assert "dart" in shown[0]
    assert page.run("document.querySelector('.filter [role=status]').textContent") == "1 of 16 lines"
    series = "[...document.querySelectorAll('.wide .series')]"
    visible = f"{series}.filter(s => getComputedStyle(s).display !== 'none').length"
    before = page.run(visible)
    page.run("document.querySelectorAll('.legend button')[1].click()")
    assert page.run(visible) == before - 2  # in both charts
    assert page.run("document.querySelectorAll('.legend button')[1].getAttribute('aria-pressed')") == "false"
    assert page.problems == []


def test_one_drawing_per_width_is_shown(page: Page, reports: Any):
    shown = "[...document.querySelectorAll('svg.chart')].filter(s => s.checkVisibility()).map(s => s.classList[1])"
    page.open(reports["plain"][0], 1280)
    assert page.run(shown) == ["wide", "wide"]
    size = "parseFloat(getComputedStyle(document.querySelector('svg.narrow text')).fontSize) *" \
           "document.querySelector('svg.narrow').getBoundingClientRect().width / 344"  # fmt: skip
    page.open(reports["plain"][0], 390)
    assert page.run(shown) == ["narrow", "narrow"]
    assert page.run(size) >= 10.5


@pytest.mark.parametrize("name", ["plain", "markup", "many"])
def test_verdicts_are_seen_at_390_px(name: str, page: Page, reports: Any):
    page.open(reports[name][0], 390)
    rows = page.run("""[...document.querySelectorAll('.results tbody tr.method')].map(r => {
        const said = r.querySelector('.said'), box = said?.getBoundingClientRect(), row = r.getBoundingClientRect();
        const clear = document.createRange(); if (said) clear.selectNodeContents(said);
        return [said?.innerText ?? '', r.cells[7].dataset.v, box?.left ?? -1,
                said ? clear.getBoundingClientRect().right : 999, box?.bottom <= row.bottom + 1]; })""")
    assert rows
    for said, verdict, left, right, inside in rows:
        assert verdict in " ".join(said.split())
        assert 0 <= left < right <= 390
        assert inside
    page.open(reports[name][0], 1280)  # where the column is seen, it is said once
    assert page.run("[...document.querySelectorAll('.said')].every(e => !e.checkVisibility())")


def test_everything_has_a_name_for_a_screen_reader(page: Page, reports: Any):
    page.open(reports["many"][0], 1280)
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    asked = {"button", "link", "image", "img", "table", "searchbox", "heading", "navigation"}
    asked |= {"columnheader", "rowheader"}
    found = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n.get("ignored")]
    assert {role for role, _ in found} >= {"button", "table", "columnheader", "rowheader", "heading"}
    assert [role for role, name in found if role in asked and not name.strip()] == []


def test_it_reads_without_scripts(page: Page, reports: Any):
    page.open(reports["plain"][0], 1280, scripts=False)
    page.call("Emulation.setScriptExecutionDisabled", value=False)
    assert page.run("document.querySelectorAll('.results tbody tr').length") == 16
    assert page.run("document.querySelector('.filter').hidden && document.querySelector('.copy').hidden")
    assert page.run("document.querySelectorAll('svg.wide .mark').length") == 2 * 15


def test_the_keyboard_reaches_everything_and_focus_is_seen(page: Page, reports: Any):
    page.open(reports["plain"][0], 1280)
    reached = []
    while True:
        page.press("Tab", 9)
        if page.run("document.activeElement === document.body"):
            break
        reached.append(page.run("document.activeElement.tagName + ' ' + document.activeElement.textContent.trim()"))
        seen = page.run("""(() => { const e = document.activeElement, style = getComputedStyle(e);
            return [style.outlineStyle, parseFloat(style.outlineWidth), e.getBoundingClientRect().left]; })()""")
        assert seen[0] == "solid", reached[-1]
        assert seen[1] >= 3
        assert seen[2] >= 0
    assert reached[0] == "A Skip to the results table"
    for wanted in ("A Charts", "BUTTON random", "INPUT ", "BUTTON Method"):
        assert wanted in reached


def test_motion_is_optional(page: Page, reports: Any):
    page.open(reports["plain"][0], 1280)
    style = "getComputedStyle(document.documentElement).scrollBehavior"
    assert page.run(style) == "smooth"
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    assert page.run(style) == "auto"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_prints(dark: bool, page: Page, reports: Any):
    page.open(reports["many"][0], 1280, dark)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.call("Emulation.setEmulatedMedia", media="print", features=[scheme])
    assert page.run(CHECKS + "contrast()")["bad"] == []
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    # nothing is hidden in a box that scrolls
    hidden = "[...document.querySelectorAll('.scroll')].filter(e => getComputedStyle(e).overflowY !== 'visible').length"
    assert page.run(hidden) == 0
    pdf = base64.b64decode(page.call("Page.printToPDF", landscape=True, printBackground=True)["data"])
    assert pdf.startswith(b"%PDF")
    page.call("Emulation.setEmulatedMedia", media="")
