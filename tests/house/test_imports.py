"""The plan of the house: no import circles, arrows only where CONTRIBUTING's table has them, folders of few modules.

Imports inside functions and under ``TYPE_CHECKING`` count. Libraries that do this (grimp, import-linter) look for a
package in one folder, and ours are mapped from several.
"""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from places import ROOT

FOLDERS = ("vtc", "eval", "models", "pruners", "integrations", "serve")
MOST = 16
APART = {"methods"}  # one file each
METHOD = "\n@register_pruner("


def module_of(path: Path) -> str:
    """``eval/cost/flops.py`` is ``vtc.eval.cost.flops``."""
    parts = [p for p in path.relative_to(ROOT).with_suffix("").parts if p != "__init__"]
    return ".".join(parts if parts[0] == "vtc" else ["vtc", *parts])


FILES = {module_of(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}


def imported(module: str) -> set[str]:
    """The modules of vtc that a module imports, wherever in it."""
    path, found = FILES[module], set()
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            base = (above + (node.module or "")).rstrip(".")
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in FILES:
                name = name.rpartition(".")[0]
            found.add(name)
    return found - {"", module}


ARROWS = {module: imported(module) for module in FILES}


def folder_of(module: str) -> str:
    """The room of a module, as the table calls it: its folder, but for the front door and the methods."""
    if module in ("vtc", "vtc.__main__"):
        return "front door"
    if module == "vtc.pruners" or (module.startswith("vtc.pruners.") and METHOD in FILES[module].read_text("utf-8")):
        return "methods"
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    return package.removeprefix("vtc.") or "vtc"


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """One circle of `arrows`; empty if there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def plan() -> dict[str, set[str]]:
    """The table in CONTRIBUTING: what each folder may use."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- plan -->\n(.*?)<!-- /plan -->", text, re.S)
    assert table is not None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].strip().splitlines()[2:]]
    return {row[0].strip("`"): set(re.findall(r"`([^`]+)`", row[2])) for row in rows}


def test_no_module_is_in_a_circle() -> None:
    assert circle(ARROWS) == []


def test_circles_are_found() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}
    assert circle({"a": {"b"}, "b": {"c"}}) == []


def test_every_folder_is_in_the_plan_and_the_plan_has_no_circle() -> None:
    assert set(plan()) == {folder_of(module) for module in FILES}
    assert circle(plan()) == []


@pytest.mark.parametrize("folder", sorted({folder_of(module) for module in FILES}))
def test_a_folder_uses_what_the_plan_allows(folder: str) -> None:
    allowed = plan()[folder] | {folder}
    used = {(a, b) for a, found in ARROWS.items() if folder_of(a) == folder for b in found}
    assert [(a, b) for a, b in sorted(used) if folder_of(b) not in allowed] == []


@pytest.mark.parametrize(
    "folder", sorted({folder_of(m) for m in FILES if m.startswith(("vtc.eval.", "vtc.models.", "vtc.serve"))})
)
def test_a_folder_says_what_goes_in_and_out_and_what_it_uses(folder: str) -> None:
    if folder in ("eval", "models"):
        return
    text = ast.get_docstring(ast.parse(FILES[f"vtc.{folder}"].read_text(encoding="utf-8"))) or ""
    said = re.search(r"^In: .+?\bOut: .+?^Uses: (.+)\.$", text, re.S | re.M)
    assert said is not None
    names = set() if said[1] == "nothing of vtc" else set(re.split(r",\s+", said[1]))
    assert names == plan()[folder]


def test_no_folder_has_more_modules_than_a_reader_can_hold() -> None:
    counts: dict[str, int] = {}
    for module, path in FILES.items():
        if path.name != "__init__.py" and folder_of(module) not in APART:
            counts[folder_of(module)] = counts.get(folder_of(module), 0) + 1
    assert {folder: n for folder, n in counts.items() if n > MOST} == {}
