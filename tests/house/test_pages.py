"""README, CONTRIBUTING, docs: a short front page, an index, links that lead somewhere, commands that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main
from places import ROOT
from readme import README

from vtc.commands.main import app

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"(?s)```.*?```", "", text), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_readme_is_a_front_page() -> None:
    assert len(README.splitlines()) <= 150


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    listed = re.findall(r"^- \[(\S+\.md)\]\(\1\): \S", index, re.M)
    assert sorted(listed) == [page.name for page in PAGES[2:] if page.name != "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            lost.append(link)
    assert lost == []


def test_no_page_names_a_file_that_is_not_there() -> None:
    lost = []
    for page in PAGES:
        for name in re.findall(
            r"`((?:eval|models|pruners|vtc|tests|benchmarks|docs|integrations|\.ci)/[\w./*-]+)`", page.read_text()
        ):
            if not list(ROOT.glob(name.rstrip("/"))):
                lost.append((page.name, name))
    assert lost == []


def test_the_few_rows_are_rows_of_the_whole_table() -> None:
    whole, few = (
        re.search(rf"(?s)<!-- {mark} -->\n(.*?)\n\n<!-- /{mark} -->", text)[1].splitlines()  # type: ignore[index]
        for mark, text in (("table", (ROOT / "docs" / "bundled-results.md").read_text()), ("few", README))
    )
    assert len(few) == 2 + 6  # the head, and six rows
    assert [row for row in whole if row in few] == few


def said(text: str) -> list[list[str]]:
    """The calls of ``vtc`` in a page's shell code and between its backticks, in words."""
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S)).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`(vtc [a-z][^`]*)`", re.sub(r"(?s)```.*?```", "", text))
    calls = [shlex.split(line.replace("\n", " "), comments=True) for line in (*shell, *inline)]
    return [words[words.index("vtc") + 1 :] for words in calls if words[:1] == ["vtc"] or "-m vtc" in " ".join(words)]


def options(command: str, *rest: str) -> set[str]:
    """What a command of ``vtc`` takes; `rest` begins with the name of one of a group."""
    found = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    found = found.commands[rest[0]] if hasattr(found, "commands") and rest else found
    return {name for option in found.params for name in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_that_a_page_says_are_there(page: Path) -> None:
    unknown = []
    for command, *rest in said(page.read_text(encoding="utf-8")):
        given = {word.partition("=")[0] for word in rest if word.startswith("--")}
        unknown += [f"{command} {option}" for option in given - options(command, *rest)]
    assert unknown == []


def test_the_page_of_the_command_line_has_every_command() -> None:
    listed = {command for command, *_ in said((ROOT / "docs" / "command-line.md").read_text())}
    assert listed == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
