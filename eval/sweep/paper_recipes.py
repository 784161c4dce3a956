"""Paper recipes: a method as its paper sets it up on a model, with the numbers that the paper gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from vtc.eval.files.yaml_file import read_yaml
from vtc.eval.vlm.pruning_settings import Cell, make_cell, needs_keep
from vtc.pipeline_text import parse
from vtc.pruners.registry import nearest

KEYS = ("method", "model", "pruner", "cells", "published", "source", "notes")
UNPRUNED_COLUMN = "unpruned"


@dataclass(frozen=True)
class Recipe:
    """One file of ``vtc/recipes``.

    Attributes
    ----------
    name : str
        The file's name without its ending.
    method : str
        The method it is about.
    model : str
        Hub id.
    pruner : str
        The pipeline, without what the cells keep.
    cells : dict
        What is kept, by the label that the published columns have; None where the pipeline says it.
    published : dict
        For each benchmark the published number by label, and ``"unpruned"``.
    source : str
        Table and paper.
    notes : tuple of str
        Where we differ from the paper, and where a number comes from.
    """

    name: str
    method: str
    model: str
    pruner: str
    cells: dict[str, int | float | None]
    published: dict[str, dict[str, float]]
    source: str
    notes: tuple[str, ...]

    def bench_cells(self, seed: int | None = None) -> dict[str, Cell]:
        """The cells of a sweep, by label."""
        return {label: make_cell(self.pruner, keep, seed) for label, keep in self.cells.items()}


@cache
def recipe_folder() -> Path:
    """Where the recipes lie."""
    return Path(str(files("vtc"))) / "recipes"


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    name : str
        A name from ``list_recipes``, or the path of a YAML file of the same form.

    Raises
    ------
    ValueError
        For an unknown name (the nearest ones are named) or a file that is no recipe; the message is one line.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = recipe_folder() / f"{name}.yaml"
        if name not in list_recipes():
            raise ValueError(f"unknown recipe {name!r}. {nearest(name, list_recipes())}")
    if not path.is_file():
        raise ValueError(f"--recipe: no such file: {path}")
    found = read_yaml(path)
    try:
        return _read(path.stem, found)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is no recipe: {said} (a recipe has {', '.join(KEYS)})") from None


def _read(name: str, found: Any) -> Recipe:
    if not isinstance(found, Mapping):
        raise TypeError("it holds no mapping")
    strange = [key for key in found if key not in KEYS]
    if strange:
        raise ValueError(f"it has an entry {strange[0]!r}")
    recipe = Recipe(
        name=name,
        method=str(found["method"]),
        model=str(found["model"]),
        pruner=str(found["pruner"]),
        cells={str(cell["label"]): cell["keep"] for cell in found["cells"]},
        published={str(b): {str(c): float(x) for c, x in row.items()} for b, row in found["published"].items()},
        source=str(found["source"]),
        notes=tuple(map(str, found["notes"] or ())),
    )
    for benchmark, row in recipe.published.items():
        for label in row:
            if label not in (UNPRUNED_COLUMN, *recipe.cells):
                raise ValueError(f"{benchmark} has a number for {label!r}, which is no cell")
    for label, keep in recipe.cells.items():
        if any(map(needs_keep, parse(recipe.pruner, keep=keep))):
            raise ValueError(f"the cell {label!r} does not say what to keep, and {recipe.pruner} doesn't either")
    return recipe


def recipe_table(recipes: Iterable[Recipe]) -> Table:
    """What there is, for the screen."""
    table = Table(show_lines=False)
    for column in ("recipe", "model", "pruner", "cells", "benchmarks"):
        table.add_column(column, no_wrap=column == "recipe")
    for recipe in recipes:
        count = sum(not is_average(name) for name in recipe.published)
        table.add_row(
            recipe.name, recipe.model, Text(recipe.pruner), ", ".join(recipe.cells), str(count) if count else "averages"
        )
    return table


def is_average(benchmark: str) -> bool:
    """Whether a published row is an average over benchmarks."""
    return benchmark.casefold().startswith("average")
