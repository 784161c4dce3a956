"""The page in Chromium: by keyboard, light and dark, wide and narrow, and what it says when something is wrong."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from browser import find_browser
from PIL import Image
from places import TESTS
from serving import PATIENCE, Running, data_url, running

import vtc

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium here (Debian: apt-get install chromium)")

CHECKS = (TESTS / "page_checks.js").read_text()  # contrast(), outside()
IMAGE, QUESTION = vtc.example()


@pytest.fixture(scope="module")
def site() -> Iterator[Running]:
    with running() as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(params=[("light", 1280), ("dark", 1280), ("light", 390)], ids=lambda p: f"{p[0]}-{p[1]}")
def look(request: pytest.FixtureRequest, chromium: Any) -> Iterator[Any]:
    yield from opened(chromium, *request.param)


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    yield from opened(chromium, "light", 1280)


def opened(chromium: Any, scheme: str, width: int) -> Iterator[Any]:
    """A tab; nothing but the server may have been asked, and no script may have failed."""
    # the checks below are scripts too, which the page's own policy would not run
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    tab = context.new_page()
    tab.set_default_timeout(PATIENCE * 1000)
    tab.problems, tab.asked = [], []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("console", lambda message: tab.problems.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: tab.asked.append(request.url))
    yield tab
    context.close()


def fill(page: Any, site: Running) -> None:
    page.goto(site.url)
    page.get_by_role("button", name="Take an example").click()
    page.wait_for_function("document.getElementById('question').value")


def compare(page: Any) -> None:
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("heading", name="What was kept").wait_for()


def test_it_looks_right(look: Any, site: Running, tmp_path: Path) -> None:
    fill(look, site)
    compare(look)
    assert look.problems == []
    assert [url for url in look.asked if not url.startswith((site.url, "data:"))] == []
    assert look.evaluate("document.documentElement.scrollWidth") == look.viewport_size["width"]
    assert look.evaluate(CHECKS + "outside()") == []
    contrast = look.evaluate(CHECKS + "contrast()")
    assert contrast["seen"] > 40
    assert contrast["bad"] == []
    look.screenshot(path=tmp_path / "page.png", full_page=True)
    with Image.open(tmp_path / "page.png") as shot:
        pixels = np.asarray(shot.convert("L"))
    assert (np.median(pixels) < 60) == look.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    for name in ("answers-head", "kept-head", "cost-head"):
        assert look.locator(f"#{name}").is_visible()


def test_what_is_shown_is_what_the_server_found(page: Any, site: Running) -> None:
    body = {"image": data_url(IMAGE), "question": QUESTION, "vtc": {"pruner": "dart", "keep": 64}}
    found = httpx.post(f"{site.url}/v1/vtc/compare", json=body, timeout=PATIENCE).json()
    fill(page, site)
    assert page.get_by_label("Method").input_value() == "dart"
    assert page.get_by_label("Keep", exact=True).input_value() == "64"
    compare(page)
    assert page.locator("#plain-text").inner_text() == found["unpruned"]["text"]
    assert page.locator("#pruned-text").inner_text() == found["pruned"]["text"]
    assert "64 of 576 visual tokens from decoder layer 2 on" in page.locator("#kept-note").inner_text()
    rows = page.locator("#costs tr")
    assert rows.nth(0).inner_text().split()[-3:] == ["576", "64", "0.11×"]
    assert rows.nth(1).inner_text().split()[-3:] == ["576", "192", "0.33×"]
    assert rows.nth(4).inner_text().split()[-1] == f"{found['flops_ratio']:.2f}×"
    assert page.locator("#pictures img").get_attribute("src") == found["pictures"][0]
    assert page.evaluate("document.querySelector('#pictures img').naturalWidth") > 0


def test_the_comparison_s_figures(site: Running) -> None:
    body = {"image": data_url(IMAGE), "question": QUESTION, "vtc": {"pruner": "uniform", "keep": 0.25}}
    found = httpx.post(f"{site.url}/v1/vtc/compare", json=body, timeout=PATIENCE).json()
    plain, pruned = found["unpruned"], found["pruned"]
    assert (plain["visual_tokens_kept"], pruned["visual_tokens_kept"], pruned["visual_tokens_seen"]) == (
        576,
        144,
        576,
    )
    assert (pruned["pruner"], pruned["keep"], pruned["where"]) == ("uniform", 0.25, "before the language model")
    assert 0 < pruned["first_token_seconds"] <= pruned["seconds"]
    assert pruned["merges"] is False
    for side, given in (("unpruned", {"pruner": None}), ("pruned", {"pruner": "uniform", "keep": 0.25})):
        content = [{"type": "image_url", "image_url": {"url": data_url(IMAGE)}}, {"type": "text", "text": QUESTION}]
        answer = site.client().chat.completions.create(
            model="bundled", messages=[{"role": "user", "content": content}], temperature=0,
            extra_body={"vtc": given},
        )  # fmt: skip
        assert answer.choices[0].message.content == found[side]["text"]
    # the picture is clear where tokens were kept, and grey elsewhere
    with Image.open(io.BytesIO(base64.b64decode(found["pictures"][0].partition(",")[2]))) as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    patch = pixels.shape[0] // 24
    spread = np.ptp(pixels, axis=2)[: 24 * patch, : 24 * patch].reshape(24, patch, 24, patch).max((1, 3))
    assert (spread > 2).sum() <= 144
    assert (spread > 2).sum() > 72
    assert 0.3 < found["flops_ratio"] < 0.8
    for change, words in (
        ({"question": " "}, "question is empty"),
        ({"image": "x"}, "image must be a data URL"),
        ({"vtc": {"pruner": None}}, "must name a method"),
        ({"extra": 1}, "no field 'extra'"),
    ):
        refused = httpx.post(f"{site.url}/v1/vtc/compare", json={**body, **change})
        assert refused.status_code == 400
        assert words in refused.json()["error"]["message"]


def test_it_is_used_by_keyboard_alone(page: Any, site: Running, tmp_path: Path) -> None:
    page.goto(site.url)
    page.locator("option", has_text="uniform").wait_for(state="attached")
    reached = {}
    for _ in range(20):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.className")
        if name in reached or not name:
            break
        reached[name] = page.evaluate("""(() => { const e = document.activeElement;
            const style = getComputedStyle(e.id === 'file' ? e.parentElement : e);
            return [style.outlineStyle, parseFloat(style.outlineWidth)]; })()""")
    assert list(reached) == ["skip", "file", "example", "question", "pruner", "params", "keep", "unit", "most", "go"]
    assert {tuple(outline) for outline in reached.values()} == {("solid", 3)}
    page.locator("#example").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.getElementById('question').value")
    page.locator("#go").focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="What was kept").wait_for()
    assert page.evaluate("document.activeElement.id") == "results"  # who can't see it is told


def test_every_field_has_a_name(page: Any, site: Running) -> None:
    fill(page, site)
    compare(page)
    fields = "input, select, textarea, button, img:not([hidden]), meter"
    nameless = (
        f"[...document.querySelectorAll('{fields}')]"
        """.filter(e =>
        !(e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim() || e.alt || e.id === 'preview'))
        .map(e => e.outerHTML)"""
    )
    assert page.evaluate(nameless) == []
    assert page.get_by_role("status").inner_text() == "Done."


def test_a_picture_is_chosen_and_errors_are_said_in_words(page: Any, site: Running, tmp_path: Path) -> None:
    error = page.get_by_role("alert")
    page.goto(site.url)
    page.locator("option", has_text="uniform").wait_for(state="attached")
    page.get_by_role("button", name="Compare").click()
    assert error.inner_text() == "Choose a picture first."
    (tmp_path / "notes.txt").write_text("hello")
    page.locator("#file").set_input_files(tmp_path / "notes.txt")
    assert error.inner_text() == "notes.txt is no PNG, JPEG, WebP or GIF."
    IMAGE.save(tmp_path / "mine.png")
    page.locator("#file").set_input_files(tmp_path / "mine.png")
    page.get_by_text("mine.png", exact=True).wait_for()
    page.get_by_role("button", name="Compare").click()
    assert error.inner_text() == "Type a question first."
    page.get_by_role("textbox", name="Question").fill("what is <image>?")
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("stands for a picture").wait_for()  # the server's words
    page.get_by_role("textbox", name="Question").fill(QUESTION)
    page.get_by_label("Parameters").fill("layer=99")
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("can't be set up on this model").wait_for()
    page.get_by_label("Parameters").fill("layer=1")
    page.get_by_label("Keep", exact=True).fill("100")
    page.get_by_label("of", exact=True).select_option("percent")
    compare(page)
    assert error.is_hidden()
    assert "576 of 576 visual tokens" in page.locator("#kept-note").inner_text()  # and not one token
    assert page.get_by_role("heading", name=re.compile(r"dart\(layer=1\), 100%|dart\(layer=1\), 1 tokens")).is_visible()
    assert page.get_by_text("Same answer").is_visible()


def test_a_method_that_says_itself_what_it_keeps(chromium: Any) -> None:
    with running(allow=["random(keep=0.5) + random(layer=2, keep=0.2)", "dart(...)", "unpruned"]) as site:
        for tab in opened(chromium, "light", 1280):
            fill(tab, site)
            keep = tab.get_by_label("Keep", exact=True)
            assert keep.is_enabled()
            tab.get_by_label("Parameters").fill("keep=32")
            assert keep.is_disabled()
            tab.get_by_label("Method").select_option(index=1)
            assert keep.is_disabled()
            compare(tab)
            assert "115 of 576 visual tokens" in tab.locator("#kept-note").inner_text()
            tab.get_by_label("Method").select_option("dart")
            assert keep.is_enabled()


def test_a_key_is_asked_for_and_what_comes_from_outside_is_text(chromium: Any) -> None:
    evil = "<img src=x onerror='hit = 1'>"
    with running(key="s3cret-key") as site:
        for tab in opened(chromium, "light", 1280):
            tab.goto(site.url)
            tab.get_by_label("API key").fill("s3cret-key")
            tab.get_by_label("API key").press("Tab")
            tab.locator("option", has_text="uniform").wait_for(state="attached")
            tab.get_by_role("button", name="Take an example").click()
            tab.wait_for_function("document.getElementById('preview').src")
            tab.get_by_role("textbox", name="Question").fill(evil)
            compare(tab)
            assert tab.evaluate("typeof hit") == "undefined"


def test_the_policy_lets_nothing_else_run(site: Running) -> None:
    found = httpx.get(site.url)
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"\son\w+=|style=|https?://", re.sub(r"(?s)<(script|style)>.*?</\1>", "", found.text))
