"""Pruning inside the tower equals hiding the dropped patches from every later layer of the full tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from vision_reference import NAMES, assert_equal_where_kept, masked
from vision_tools import Norm, features, pad_segments, ready, record, rows_of
from zoo import FAMILIES, prompt, shapes_of

from vtc.models.layout.model_parts import locate
from vtc.models.layout.vision_call_record import VisionRecord
from vtc.pruners.base import resolve_keep
from vtc.pruners.visual_tokens import VisualTokens

PLANS = ([(1, 0.4)], [(0, 5)], [(1, 0.7), (2, 0.3)], [(0, 0.9), (2, 1)])
CELLS = [
    (name, shape, "video" if shape == "video" else "image")
    for name in NAMES
    for shape in shapes_of(FAMILIES[name], ("sizes", "ragged", "video"))
]


def check_counts(found: VisionRecord, plan: list[tuple[int, Any]]) -> None:
    assert [s.layer for s in found.steps] == [layer for layer, _ in plan]
    before = [torch.arange(n) for n in found.lengths]
    for step, (_, keep) in zip(found.steps, plan, strict=True):
        for i, (ids, n) in enumerate(zip(step.kept, found.lengths, strict=True)):
            assert ids.dtype == torch.int64
            assert len(ids) == min(len(before[i]), resolve_keep(keep, n))
            assert torch.equal(ids, ids.unique())
            assert torch.isin(ids, before[i]).all()
            if len(ids) <= int((~found.layouts()[i].newline).sum()):
                assert not found.layouts()[i].newline[ids].any()
        before = step.kept


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize(("name", "shape", "modality"), CELLS)
@torch.no_grad()
def test_pruned_is_masked(name: str, shape: str, modality: str, plan: list[tuple[int, Any]]) -> None:
    parts, inputs = locate(ready(name)), prompt(name, shape).inputs
    plain = features(parts.core, inputs, modality)
    output, found = record(parts, inputs, modality, [Norm(layer=layer, keep=keep) for layer, keep in plan])
    check_counts(found, plan)
    assert_equal_where_kept(output, masked(parts, inputs, modality, found), found)
    kept = found.steps[-1].kept
    assert output.last_hidden_state.shape == plain.last_hidden_state.shape
    assert any((a[k] - b[k]).abs().max() > 1e-2 for a, b, k in zip(rows_of(output), rows_of(plain), kept, strict=True))


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
@torch.no_grad()
def test_eager_attention(name: str) -> None:
    parts, inputs = locate(ready(name, "eager")), prompt(name, "ragged").inputs
    pruners = [Norm(layer=1, keep=0.6), Norm(layer=2, keep=0.3)]
    output, found = record(parts, inputs, pruners=pruners)
    want, same = record(locate(ready(name)), inputs, pruners=pruners)
    assert all(torch.equal(a, b) for a, b in zip(found.steps[-1].kept, same.steps[-1].kept, strict=True))
    assert_equal_where_kept(output, want, found)


@pytest.mark.parametrize(("name", "shape", "modality"), CELLS)
@torch.no_grad()
def test_keeping_all_is_the_plain_tower_bit_for_bit(name: str, shape: str, modality: str) -> None:
    parts, inputs = locate(ready(name)), prompt(name, shape).inputs
    output, found = record(parts, inputs, modality, [Norm(layer=1, keep=1.0), Norm(layer=2, keep=10**6)])
    for a, b in zip(rows_of(features(parts.core, inputs, modality)), rows_of(output), strict=True):
        assert torch.equal(a, b)
    assert [len(k) for s in found.steps for k in s.kept] == found.lengths * 2


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_batch_is_one_by_one(name: str) -> None:
    shape = "sizes" if "sizes" in shapes_of(FAMILIES[name]) else "ragged"
    parts, whole = locate(ready(name)), prompt(name, shape)
    pruners = [Norm(layer=1, keep=20), Norm(layer=2, keep=6)]  # a count that leaves small pictures alone
    output, found = record(parts, whole.inputs, pruners=pruners)
    together, item = rows_of(output), 0
    for sample in range(len(whole.rows)):
        alone, own = record(parts, whole.alone(sample).inputs, pruners=pruners)
        for i, x in enumerate(rows_of(alone)):
            for one, all_ in zip(own.steps, found.steps, strict=True):
                assert torch.equal(one.kept[i], all_.kept[item])
            kept = own.steps[-1].kept[i]
            assert torch.allclose(x[kept], together[item][kept], atol=1e-4)
            item += 1
    assert item == len(found.lengths)


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_windows_without_tokens_vanish(padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if padded:
        pad_segments(monkeypatch)
    parts, inputs = locate(ready("qwen2_5_vl")), prompt("qwen2_5_vl", "sizes").inputs
    output, found = record(parts, inputs, pruners=[Norm(layer=0, keep=1)])  # layers 0 and 2 have windows of 4 units
    assert [len(k) for k in found.steps[0].kept] == [1] * len(found.lengths)
    assert_equal_where_kept(output, masked(parts, inputs, "image", found), found)


@pytest.mark.parametrize("plan", PLANS[::2], ids=str)
@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_padded_as_on_a_device(name: str, plan: list[tuple[int, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    parts, inputs = locate(ready(name)), prompt(name, "ragged").inputs
    pruners = [Norm(layer=layer, keep=keep) for layer, keep in plan]
    want, found = record(parts, inputs, pruners=pruners)
    pad_segments(monkeypatch)
    output, same = record(parts, inputs, pruners=pruners)
    assert all(torch.equal(a, b) for a, b in zip(found.steps[-1].kept, same.steps[-1].kept, strict=True))
    assert_equal_where_kept(output, want, found)


@dataclass(kw_only=True)
class LongerThan(Norm):
    """Keeps all tokens whose features are longer than `least`, and one at least."""

    least: float = 0.0
    adaptive_count: ClassVar[bool] = True

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        score = self.score(tokens).masked_fill(~tokens.valid, -1)
        columns = torch.arange(score.shape[1]).expand_as(score)
        return columns.masked_fill((score <= self.least) & (score < score.amax(1, keepdim=True)) | ~tokens.valid, -1)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@torch.no_grad()
def test_a_step_that_drops_nothing_leaves_the_tower_alone(name: str) -> None:
    parts, inputs = locate(ready(name)), prompt(name, "ragged").inputs
    all_kept, fewer = LongerThan(layer=1, keep=1), LongerThan(layer=2, keep=1, least=1e9)
    output, found = record(parts, inputs, pruners=[all_kept])
    for a, b in zip(rows_of(features(parts.core, inputs)), rows_of(output), strict=True):
        assert torch.equal(a, b)
    output, found = record(parts, inputs, pruners=[all_kept, fewer])
    assert [len(k) for k in found.steps[1].kept] == [1] * len(found.lengths)
    assert_equal_where_kept(output, masked(parts, inputs, "image", found), found)
