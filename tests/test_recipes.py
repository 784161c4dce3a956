"""Every recipe can be read: its method parses with each keep, and its table speaks of its own cells."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import vtc

RECIPES = sorted((Path(vtc.__file__).parent / "recipes").glob("*.yaml"))


def test_there_are_recipes():
    assert len(RECIPES) >= 25


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_parses(path):
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(recipe) == {"method", "model", "pruner", "cells", "published", "source", "notes"}
    assert recipe["method"] in vtc.list_pruners()
    assert path.stem.startswith(f"{recipe['method']}-")
    assert recipe["model"].count("/") == 1
    labels = [cell["label"] for cell in recipe["cells"]]
    assert len(set(labels)) == len(labels)
    for cell in recipe["cells"]:
        pipeline = vtc.parse(recipe["pruner"], keep=cell["keep"])
        assert recipe["method"] in [pruner.name for pruner in pipeline]
        assert all(stop.keep is not None for pruner in pipeline for stop in pruner.stops(32))
    assert recipe["published"]
    for row in recipe["published"].values():
        assert set(row) <= {"unpruned", *labels}
        assert set(row) & set(labels)
        assert all(isinstance(value, (int, float)) for value in row.values())
    assert isinstance(recipe["source"], str)
    assert all(isinstance(note, str) for note in recipe["notes"])
