"""PixelPrune: what neighbours tell goes before the tower, token by token as a plain loop says."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from golden_support import Served, tokens_of
from torch import Tensor
from vision_reference import NAMES
from vision_tools import Norm, ready, record, visual_layers
from zoo import prompt

import vtc
from vtc.models.layout.model_parts import locate
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.pixelprune import FIRST, PixelPrune
from vtc.pruners.signals import Pixels
from vtc.pruners.visual_tokens import VisualTokens

pytestmark = pytest.mark.usefixtures("no_grad")


def grid_of(pixels: np.ndarray, *grids: Grid, gone: tuple[int, ...] = ()) -> VisualTokens:
    """Tokens of `pixels [N, C]` on `grids`, without those that are `gone`."""
    left = [i for i in range(len(pixels)) if i not in gone]
    x = torch.from_numpy(pixels[left])[None, :, None]
    tokens = tokens_of(np.zeros((len(left), 4), np.float32), 1, Served({Pixels(): x}), [Layout(grids)])
    tokens.ids = torch.tensor([left])
    return tokens


def plain_loop(pixels: np.ndarray, rows: int, cols: int, limit: float) -> list[int]:
    """The paper's rule by largest difference, cell by cell."""
    x = pixels.reshape(rows, cols, -1)
    shown, kept = x.copy(), [0]
    for r in range(rows):
        for c in range(cols):
            if r == c == 0:
                continue
            near = shown[r, c - 1] if c else shown[r - 1, 0]
            if r and c:
                corner, above = shown[r - 1, c - 1], shown[r - 1, c]
                alike = [np.abs(corner - n).max() / 2 <= limit for n in (near, above)]
                near = above if alike[0] and not alike[1] else near
            if np.abs(x[r, c] - near).max() / 2 > limit:
                kept.append(r * cols + c)
            else:
                shown[r, c] = near
    return kept


def levels(seed: int, *shape: int) -> np.ndarray:
    return (np.random.default_rng(seed).integers(0, 4, shape) / 4).astype(np.float32)


@pytest.mark.parametrize("limit", [0.0, 0.2])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 9), (9, 1), (5, 7), (8, 8)])
def test_diagonals_say_what_a_loop_says(rows: int, cols: int, limit: float) -> None:
    pixels = levels(rows + cols, rows * cols, 2)
    found = PixelPrune(threshold=limit).select(grid_of(pixels, Grid(rows, cols)), 1)[0]
    assert sorted(found[found >= 0].tolist()) == plain_loop(pixels, rows, cols, limit)


def test_the_worst_told_are_kept_and_the_first() -> None:
    pixels = np.zeros((12, 3), np.float32)
    pixels[5], pixels[10] = 0.5, 1.0
    tokens = grid_of(pixels, Grid(3, 4))
    assert PixelPrune(keep=3).select(tokens, 3)[0].tolist()[:2] == [0, 10]
    assert PixelPrune(keep=1).errors(tokens)[0, 0] == FIRST


def test_grids_do_not_tell_each_other() -> None:
    pixels = np.zeros((10, 3), np.float32)
    found = PixelPrune(threshold=0.0).select(grid_of(pixels, Grid(2, 2), Grid(2, 3)), 1)[0]
    assert found[found >= 0].tolist() == [0, 4]


def test_what_is_gone_tells_nothing() -> None:
    pixels = np.zeros((4, 3), np.float32)
    found = PixelPrune(threshold=0.0).select(grid_of(pixels, Grid(1, 4), gone=(1,)), 1)[0]
    assert found[found >= 0].tolist() == [0, 1]  # the second left one, behind the gap


def test_at_most_keep_of_them() -> None:
    pixels = levels(3, 30, 2)
    tokens = grid_of(pixels, Grid(5, 6))
    tokens.budgets = [4]
    every = PixelPrune(threshold=0.0).select(tokens, 4)[0]
    few = PixelPrune(threshold=0.0, keep=4).select(tokens, 4)[0]
    assert few[few >= 0].tolist() == every[:4].tolist()
    assert int((every >= 0).sum()) > 4


@pytest.mark.parametrize(
    ("given", "words"),
    [({"metric": "l2"}, "metric must be one of"), ({"threshold": 2.0}, "threshold must be in"), ({"std": 0.0}, "std")],
)
def test_wrong_values(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        vtc.parse("pixelprune", **given)


@dataclass(kw_only=True)
class Looker(Norm):
    """Keeps what it saw at the tower's first layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.signals = (Pixels(),)  # type: ignore[misc]
        self.seen: list[tuple[Tensor, Tensor]] = []

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        pixels = tokens.read(Pixels())
        self.seen += [(pixels[i, :n], tokens.features[i, :n]) for i, n in enumerate(tokens.counts)]
        return super().select(tokens, k)


def embedded(tower: Any, pixels: Tensor) -> Tensor:
    """Patches `[..., C]` as a tower embeds them, without positions."""
    places = (tower, getattr(tower, "embeddings", None))
    names = ("patch_embed", "patch_embedding", "patch_embeddings")
    embed = next(m for place in places for name in names if (m := getattr(place, name, None)) is not None)
    conv = getattr(embed, "proj", None) or getattr(embed, "projection", embed)
    x = pixels @ conv.weight.flatten(1).T + (0 if conv.bias is None else conv.bias)
    return tower.pre_layrnorm(x) if hasattr(tower, "pre_layrnorm") else x


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_the_token(name: str) -> None:
    """What the tower's first layer gets of each token is what its own embedding makes of these pixels."""
    model = copy.deepcopy(ready(name))
    parts = locate(model)
    for place, weight in parts.tower.named_parameters():
        if "pos" in place:
            weight.zero_()
    looker = Looker(layer=0, keep=0.5)
    record(parts, prompt(name, "ragged").inputs, pruners=[looker])
    assert looker.seen
    for pixels, features in looker.seen:
        assert torch.allclose(embedded(parts.tower, pixels).mean(1), features, atol=1e-4)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_the_whole_tower_runs_on_what_is_left(name: str) -> None:
    parts, inputs = locate(ready(name)), prompt(name, "ragged").inputs
    counts: list[int] = []
    hooks = [
        layer.register_forward_hook(
            lambda m, a, out: counts.append((out[0] if isinstance(out, tuple) else out).numel())
        )
        for layer in visual_layers(parts)
    ]
    record(parts, inputs)
    whole = counts[: len(counts)]
    counts.clear()
    record(parts, inputs, pruners=[vtc.parse("pixelprune", keep=0.5)[0]])
    for hook in hooks:
        hook.remove()
    assert all(few < 0.7 * all_ for few, all_ in zip(counts, whole, strict=True))
