"""ZOO-Prune: the exact algebra of the sensitivity, its precision, its memory, and budgets over crops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from golden_support import tokens_of
from greedy_tools import Reader, mlp, slow_farthest, spans_of
from hypothesis import given
from hypothesis import strategies as st
from properties import Spans, check_selection, peak_bytes
from torch import nn
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode
from vision_tools import ready
from zoo import FAMILIES, prompt

import vtc
from vtc.models.layout.model_parts import locate
from vtc.models.layout.run_projector import project
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.primitives.crops_and_frames import equal_shares
from vtc.pruners.primitives.projector import read_projector
from vtc.pruners.primitives.projector_sensitivity import sensitivity
from vtc.pruners.signals import PreProjector

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_algebra_is_the_difference_of_the_models_own_projector(family, dtype, monkeypatch):
    model, reader = ready(family), Reader(keep=1)
    with vtc.compressed(model, reader):
        model(**prompt(family, "ragged").inputs)
    [(x, projector)] = reader.seen
    projector.to(dtype)  # bfloat16 weights, in which these differences would be rounding
    x = x[:20].to(dtype)
    u = torch.randn(5, x.shape[-2] * x.shape[-1], generator=torch.Generator().manual_seed(3))
    found = sensitivity(x, read_projector(projector, *x.shape[1:]), u, 0.01)
    projector.double()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # Gemma3's norm would round to float32
    unit = (u / u.norm(dim=1, keepdim=True)).unflatten(1, x.shape[1:]).double()
    ends = [own_projection(model, x.double()[:, None] + sign * 0.01 * unit) for sign in (1, -1)]
    expected = (ends[0] - ends[1]).norm(dim=-1).mean(-1) / 0.02
    assert found.std() > 1e-3 * found.mean() or family in ("idefics3", "smolvlm"), "tokens differ"
    rounded = family in ("qwen2_5_vl", "mistral3")  # transformers computes their RMSNorm in float32
    assert torch.allclose(found.double(), expected, rtol=2e-3 if rounded else 1e-5)


def own_projection(model, x):
    parts = locate(model)
    if parts.family.project is None:  # LLaVA-OneVision, which resamples afterwards
        return parts.core.multi_modal_projector(x.flatten(-2))
    return project(parts, x)


@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU()], ids=["kink", "smooth"])
@pytest.mark.parametrize("step", [0.01, 0.5])
def test_kinks_and_large_steps_are_seen(act, step):
    module = nn.Sequential(nn.Linear(6, 12), act, nn.Linear(12, 10))
    x, u = torch.randn(40, 1, 6), torch.randn(8, 6)
    found = sensitivity(x, read_projector(module, 1, 6), u, step)
    module.double()
    ends = [module(x.double() + sign * step * normalize(u.double(), dim=-1)) for sign in (1, -1)]
    assert torch.allclose(found.double(), (ends[0] - ends[1]).norm(dim=-1).mean(-1) / (2 * step), rtol=1e-5)


def test_the_first_layer_costs_a_row_per_token_and_one_per_direction():
    with FlopCounterMode(display=False) as counted:
        sensitivity(torch.randn(20, 1, 6), read_projector(mlp(6, 12, 10, torch.float32), 1, 6), torch.randn(8, 6), 0.01)
    assert counted.get_total_flops() == 2 * ((20 + 8) * 6 * 12 + 20 * 8 * 12 * 10)


def test_bfloat16_decides_as_the_same_numbers_in_float32():
    """The step is below bfloat16's rounding: the definition written out in it would measure noise."""
    torch.manual_seed(0)
    x, u = (3 * torch.randn(60, 1, 32)).bfloat16(), torch.randn(64, 32)
    module = mlp(32, 48, 24, torch.bfloat16)
    z = module(x[:, 0])
    unit = normalize(u, dim=-1)[:, None]
    plain = [module(x[:, 0] + sign * (0.01 * unit).bfloat16()) for sign in (1, -1)]
    rounded = (plain[0] - plain[1]).float().norm(dim=-1).mean(0) / 0.02
    chosen_in, found = [], []
    for dtype in (torch.bfloat16, torch.float32):
        reads = {PreProjector(): [x.to(dtype)]}
        spans = Spans([z.to(dtype)], [15], reads, projector=module.to(dtype), layouts=[Layout.line(60)])
        pruner = vtc.parse("zoo_prune")[0]
        pruner.draw = lambda width: u
        found.append(pruner.sensitivity(spans.tokens())[0])
        chosen_in += check_selection(pruner, spans)
    assert torch.allclose(*found, rtol=1e-5)
    assert chosen_in[0] == chosen_in[1]
    module.double()
    ends = [module(x.double()[:, 0] + sign * 0.01 * unit.double()) for sign in (1, -1)]
    exact = (ends[0] - ends[1]).norm(dim=-1).mean(0) / 0.02
    assert torch.allclose(found[0].double(), exact, rtol=1e-4)
    assert ((rounded - exact) / exact).abs().median() > 0.1


class Merger(nn.Module):
    """As Qwen's: a norm of each patch, and two layers of all of a unit's patches."""

    def __init__(self, width, patches, out, dtype):
        super().__init__()
        self.norm = nn.LayerNorm(width, dtype=dtype)
        self.layers = mlp(width * patches, width * patches, out, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llava", "merger"])
def test_zoo_prune_with_real_weights_holds_at_most_four_times_the_features(kind, dtype):
    """Crops, too: each is cut out of the features. The triangle is the model's, made once before."""
    layout = Layout((Grid(24, 24, "base"), Grid(48, 48, "mosaic", cuts=((24,), (24,)))))
    patches, width = (1, 1024) if kind == "llava" else (4, 1280)
    pruner = vtc.parse("zoo_prune(directions=4)")[0]  # of more there are more chunks, of the same size

    def make():
        projector = mlp(1024, 4096, 4096, dtype) if kind == "llava" else Merger(1280, 4, 4096, dtype)
        reads = {PreProjector(): [torch.empty(2880, patches, width, dtype=dtype)]}
        features = [torch.empty(2880, 4096, dtype=dtype)]
        read_projector(projector, patches, width)
        return Spans(features, [320], reads, projector=projector, layouts=[layout]).tokens()

    assert 0 < peak_bytes(make, lambda tokens: pruner.select(tokens, 320)) <= 4 * 2880 * 4096 * dtype.itemsize


def test_a_full_rank_changes_nothing_and_a_low_one_is_the_best_approximation():
    first, second = nn.Linear(6, 12), nn.Linear(12, 10)
    module = nn.Sequential(first, nn.GELU(), second)
    x, u = torch.randn(9, 1, 6), torch.randn(7, 6)
    whole = sensitivity(x, read_projector(module, 1, 6), u, 0.01)
    assert torch.equal(sensitivity(x, read_projector(module, 1, 6, rank=10), u, 0.01), whole)
    low = sensitivity(x, read_projector(module, 1, 6, rank=3), u, 0.01)
    left, values, right = torch.linalg.svd(second.weight)
    second.weight.data = left[:, :3] @ torch.diag(values[:3]) @ right[:3]  # the loaded weights change: no stale factors
    assert torch.allclose(low, sensitivity(x, read_projector(module, 1, 6), u, 0.01), rtol=1e-4)
    assert torch.allclose(low, sensitivity(x, read_projector(module, 1, 6, rank=3), u, 0.01), rtol=1e-4)
    assert (low < whole).all()


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)),
        nn.Linear(4, 4, device="meta"),
        nn.Sequential(nn.Conv1d(4, 4, 1)),
    ],
    ids=["three layers", "offloaded", "convolution"],
)
def test_projectors_of_another_make_are_refused(module):
    with pytest.raises(NotImplementedError, match="sensitivity of"):
        read_projector(module, 1, 4)


def test_zoo_prune_shares_its_budget_over_crops():
    """One frame of 2 x 2 and a mosaic of 1 x 2 crops: each is its own max-min choice with its own scale."""
    layout = Layout((Grid(2, 2, "base"), Grid(2, 4, "mosaic", "row", ((), (2,)))))
    place = np.flatnonzero(layout.array[:, 2] >= 0)
    x, score = torch.randn(12, 5), torch.rand(12)
    pruner = vtc.parse("zoo_prune")[0]
    pruner.sensitivity = lambda tokens: score[None]
    tokens = dataclasses.replace(tokens_of(x, 7, layouts=[layout]), ids=torch.from_numpy(place)[None])
    expected = []
    for columns, share in (([0, 1, 2, 3], 3), ([4, 5, 8, 9], 2), ([6, 7, 10, 11], 2)):
        mine = score[columns].double()
        weight = ((mine - mine.min()) / (mine.max() - mine.min() + 1e-8)).numpy()
        expected += [columns[i] for i in slow_farthest(x[columns].double().numpy(), share, weight)]
    assert pruner.select(tokens, 7)[0].tolist() == expected
    pruner.per_frame = False
    weight = ((score - score.min()) / (score.max() - score.min() + 1e-8)).double().numpy()
    assert pruner.select(tokens, 7)[0].tolist() == slow_farthest(x.double().numpy(), 7, weight)


@given(st.integers(0, 60), st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_equal_shares_are_equal_where_there_is_room(total, room):
    shares = equal_shares(total, room)
    assert sum(shares) == min(total, sum(room))
    assert all(s <= n for s, n in zip(shares, room, strict=True))
    top = max(shares)
    assert all(s >= top - 1 or s == n for s, n in zip(shares, room, strict=True))


def test_frames_of_ragged_batches_are_those_of_each_span_alone():
    crops = Layout((Grid(2, 2, "base"), Grid(4, 2, "mosaic", "none", ((2,), ()))))
    video = Layout((Grid(2, 3, "frame"),) * 3)
    spans = spans_of((PreProjector(),), [12, 18, 7], keep=0.5)
    spans.layouts = [crops, video, Layout.line(7)]
    found = check_selection(vtc.parse("zoo_prune")[0], spans)
    assert [sum(c // 6 == frame for c in found[1]) for frame in range(3)] == [3, 3, 3]
