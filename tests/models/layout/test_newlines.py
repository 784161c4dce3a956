"""Newline tokens of LLaVA-NeXT and LLaVA-OneVision: gone when their image is pruned, but for what a budget leaves."""

from __future__ import annotations

import pytest
import torch
from vision_tools import Norm, features, ready, record, rows_of
from zoo import prompt

import vtc
from vtc.models.layout.model_parts import locate
from vtc.models.layout.newlines import fill_with_newlines
from vtc.pruners.layout import Grid, Layout

ROWS = Layout((Grid(2, 2), Grid(2, 3, "mosaic", newline="row"), Grid(1, 1, newline="end")))  # newlines 7, 11, 13


@pytest.mark.parametrize("spare", range(4))
def test_content_first_then_newlines_in_order(spare: int) -> None:
    content = [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 12]
    filled = fill_with_newlines(torch.tensor(content), ROWS, len(content) + spare)
    assert filled.tolist() == sorted(content + [7, 11, 13][:spare])
    assert filled.dtype == torch.int64


@torch.no_grad()
def test_newlines_fill_up_a_large_budget() -> None:
    parts, inputs = locate(ready("llava_next")), prompt("llava_next", "one").inputs
    plain = rows_of(features(parts.core, inputs))
    output, found = record(parts, inputs, pruners=[Norm(layer=1, keep=67), Norm(layer=2, keep=64)])
    newline = found.layouts()[0].newline
    assert int(newline.sum()) == 6
    first, second = (s.kept[0] for s in found.steps)
    assert int(newline[first].sum()) == 3
    assert torch.equal(first[newline[first]], newline.nonzero()[:3, 0])
    assert torch.equal(second, (~newline).nonzero()[:, 0])
    assert torch.equal(rows_of(output)[0], plain[0])  # all of the picture is still there


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
@torch.no_grad()
def test_the_same_newlines_fill_up_at_every_stage(name: str) -> None:
    model, inputs = ready(name), prompt(name, "one").inputs
    vtc.compress(model, "random(keep=67) + random(layer=2, keep=65) + random(layer=4, keep=60)")
    model(**inputs)
    newline = model.vtc.report.layouts[0].newline
    steps = [s.kept[0] for s in model.vtc.report.steps]
    assert [len(s) for s in steps] == [67, 65, 60]
    content = int((~newline).sum())
    for kept in steps:
        spare = max(0, len(kept) - content)
        assert torch.equal(kept[newline[kept]], newline.nonzero()[:spare, 0])
