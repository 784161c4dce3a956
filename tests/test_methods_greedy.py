"""The greedy primitives and the methods on them against their formulas written out, and what all of them promise."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from golden_support import Served, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import Spans, check_selection, chosen, peak_bytes
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cosine_similarity, normalize
from torch.utils.flop_counter import FlopCounterMode
from vision_tools import ready
from zoo import FAMILIES, prompt, tiny

import vtc
from vtc.eval.bundled import bundled_clip_path
from vtc.models.locate import locate
from vtc.models.project import project
from vtc.models.select import select_tokens
from vtc.pruners.clip_text import ClipText, segments
from vtc.pruners.frames import equal_shares
from vtc.pruners.greedy import dpp_map, farthest_point, finite_range, max_sum, mmr
from vtc.pruners.idpruner import SCORER_KEYS
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.sensitivity import read_projector, sensitivity
from vtc.pruners.signals import DecoderAttention, EncoderAttention, PreProjector, TextEmbeddings
from vtc.pruners.todre import PIVOT

pytestmark = pytest.mark.usefixtures("no_grad")
BUNDLED_CLIP = bundled_clip_path()


# ---------------------------------------------------------------------- plain-python references, in float64


def cosines(x):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


def best_of(score, taken):
    return max((i for i in range(len(score)) if i not in taken), key=lambda i: (score[i], -i))


def slow_farthest(x, k, weight=None, start=None):
    c = cosines(x)
    if start is None and weight is None:
        start = [-max([c[i][j] for j in range(len(x)) if j != i], default=-2) for i in range(len(x))]
    order = [best_of(weight if start is None else start, ())]
    while len(order) < k:
        score = [(1 if weight is None else weight[i]) * min(1 - c[i][j] for j in order) for i in range(len(x))]
        order.append(best_of(score, order))
    return order


def slow_max_sum(x, k, start):
    c, order = cosines(x), [best_of(start, ())]
    while len(order) < k:
        order.append(best_of([-sum(c[i][j] for j in order) for i in range(len(x))], order))
    return order


def slow_mmr(x, importance, k, lam, parallel):
    c, order = cosines(x), []
    while len(order) < k:
        near = [max(c[i][j] for j in order) if order else 0 for i in range(len(x))]
        score = [lam * w - (1 - lam) * m if order else w for w, m in zip(importance, near, strict=True)]
        for _ in range(min(parallel, k - len(order))):
            order.append(best_of(score, order))
    return order


def slow_dpp(x, k, weight):
    kernel, order = weight[:, None] * cosines(x) * weight, []
    while len(order) < k:
        gain = np.array([np.linalg.det(kernel[np.ix_([*order, i], [*order, i])]) for i in range(len(x))])
        order.append(best_of((gain / gain.max()).round(9), order))  # equal ones are equal up to rounding
    return order


sizes = st.tuples(st.integers(1, 24), st.integers(3, 40), st.integers(0, 10_000), st.data())


def drawn(n, d, seed):
    g = np.random.default_rng(seed)
    return g.standard_normal((n, d)), g.uniform(0.1, 1, n)


def batch(*arrays):
    return [torch.from_numpy(a).float()[None] for a in arrays]


@given(sizes)
@settings(max_examples=60)
def test_the_primitives_are_their_formulas(case):
    n, d, seed, data = case
    x, w = drawn(n, d, seed)
    k = data.draw(st.integers(1, n))
    parallel = data.draw(st.integers(1, 4))
    a, b = batch(x, w)
    assert farthest_point(a, k)[0].tolist() == slow_farthest(x, k)
    assert farthest_point(a, k, weight=b)[0].tolist() == slow_farthest(x, k, w)
    assert farthest_point(a, k, start=b)[0].tolist() == slow_farthest(x, k, start=w)
    assert max_sum(a, k, b)[0].tolist() == slow_max_sum(x, k, w)
    assert mmr(a, b, k, 0.7, None, parallel)[0].tolist() == slow_mmr(x, w, k, 0.7, parallel)
    k = min(k, d - 1)  # beyond the rank only rounding decides
    assert dpp_map(a, k, None, b)[0].tolist() == slow_dpp(x, k, w)


PRIMITIVES = {
    "farthest_point": lambda x, w, k, valid: farthest_point(x, k, valid),
    "weighted": lambda x, w, k, valid: farthest_point(x, k, valid, weight=w),
    "kcenter": lambda x, w, k, valid: farthest_point(x, k, valid, start=w),
    "max_sum": lambda x, w, k, valid: max_sum(x, k, w, valid),
    "mmr": lambda x, w, k, valid: mmr(x, w, k, 0.5, valid),
    "mmr3": lambda x, w, k, valid: mmr(x, w, k, 0.5, valid, 3),
    "dpp_map": lambda x, w, k, valid: dpp_map(x, k, valid, w),
}
primitives = pytest.mark.parametrize("choose", PRIMITIVES.values(), ids=list(PRIMITIVES))


@primitives
@pytest.mark.parametrize("d", [4, 64])  # below N a column a step, above it the whole matrix
def test_a_smaller_k_is_a_prefix_and_padding_is_never_chosen(choose, d):
    x, w = torch.randn(3, 20, d), torch.rand(3, 20)
    valid = torch.arange(20) < torch.tensor([20, 13, 1])[:, None]
    all_of_them = choose(x, w, 20, valid)
    for row, n in enumerate((20, 13, 1)):
        assert sorted(all_of_them[row, :n].tolist()) == list(range(n))
        for k in (1, n // 2, n):
            if k:
                alone = choose(x[row : row + 1, :n], w[row : row + 1, :n], k, None)
                assert alone[0].tolist() == all_of_them[row, :k].tolist()


@primitives
@given(st.integers(1, 12), st.integers(0, 999), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
@settings(max_examples=30)
def test_duplicates_are_never_chosen_twice(choose, n, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-1, 2, (2, n, 2), generator=generator).to(dtype)  # many equal, some zero
    w = torch.randint(0, 2, (2, n), generator=generator).float()
    for row in choose(x, w, n, None).tolist():
        assert sorted(row) == list(range(n))


@primitives
def test_equal_tokens_are_taken_by_index(choose):
    x, w = torch.ones(1, 9, 4), torch.ones(1, 9)
    assert choose(x, w, 9, None)[0].tolist() == list(range(9))


@primitives
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_comes_last_and_moves_nobody(choose, bad):
    x, w = torch.randn(1, 12, 5), torch.rand(1, 12)
    x[0, 3, 2] = x[0, 7, 0] = bad
    good = [i for i in range(12) if i not in (3, 7)]
    order = choose(x, w, 12, None)[0].tolist()
    assert order[10:] == [3, 7]
    clean = choose(x[:, good], w[:, good], 10, None)[0].tolist()
    if choose is not PRIMITIVES["mmr3"]:  # the last of its rounds of three is filled up
        assert order[:10] == [good[i] for i in clean]
    worse = w.clone()
    worse[0, 5] = bad
    if choose is not PRIMITIVES["farthest_point"]:
        assert choose(torch.randn(1, 12, 5), worse, 12, None)[0].tolist()[0] != 5


@primitives
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "d", "k"), [(2880, 4096, 370), (288, 410, 280)], ids=["full size", "nearly all"])
def test_k_steps_hold_at_most_four_times_the_features(choose, dtype, n, d, k):
    held = peak_bytes(
        lambda: (torch.empty(1, n, d, dtype=dtype), torch.empty(1, n)), lambda given: choose(*given, k, None)
    )
    assert n * d * 4 <= held <= 4 * n * d * dtype.itemsize


def test_determinants_know_no_scale_of_the_weights():
    x, w = torch.randn(2, 20, 8), torch.rand(2, 20) + 0.1
    order = dpp_map(x, 7, None, w)
    for scale in (1e-25, 1e30):
        assert torch.equal(dpp_map(x, 7, None, w * scale), order)


def test_a_vector_of_zeros_adds_nothing_to_a_determinant():
    x = torch.randn(1, 9, 12)
    x[0, 4] = 0
    assert dpp_map(x, 9)[0].tolist()[-1] == 4


def test_finite_range_leaves_out_what_is_not_finite():
    score = torch.tensor([[3.0, float("nan"), 1.0, float("inf"), 9.0]])
    valid = torch.tensor([[True, True, True, True, False]])
    found = finite_range(score, valid, 0)
    assert found[0, [0, 2]].tolist() == [1, 0]
    assert found[0, [1, 3, 4]].isnan().all()


# ---------------------------------------------------------------------- the methods, on made-up spans


def spans_of(reads, lengths, dims=6, keep=0.4, seed=0, dtype=torch.float32, texts=()):
    torch.manual_seed(seed)
    features = [torch.randn(n, dims, dtype=dtype) for n in lengths]
    budgets = [vtc.pruners.base.resolve_keep(keep, n) for n in lengths]

    def read(signal, n):
        if isinstance(signal, EncoderAttention):
            return torch.rand(3, n, dtype=dtype)
        if isinstance(signal, DecoderAttention):
            return torch.rand(3, 4, n, dtype=dtype)
        return torch.randn(n, 1, 5, dtype=dtype)

    found = {s: [read(s, n) for n in lengths] for s in reads if not isinstance(s, TextEmbeddings)}
    words = {s: [torch.randn(4, dims, dtype=dtype) for _ in lengths] for s in (*texts, TextEmbeddings())}
    projector = mlp(5, 7, dims, dtype)
    return Spans(features, budgets, found, words, projector=projector, questions=["what ?"] * len(lengths))


def mlp(width, hidden, out, dtype):
    return nn.Sequential(nn.Linear(width, hidden, dtype=dtype), nn.GELU(), nn.Linear(hidden, out, dtype=dtype))


SPECS = [
    "divprune",
    "idpruner",
    "idpruner(importance=zoo)",
    "idpruner(importance=flowcut, parallel=2)",
    "idpruner(importance=norm, lam=0.3)",
    "idpruner(importance=uniform, parallel=3)",
    "zoo_prune",
    "zoo_prune(per_frame=False, rank=2)",
    "todre_diversity",
    "todre_diversity(objective=kcenter, pivot=random)",
    "todre",
    "cdpruner",
    "cdpruner(relevance=none)",
    "cdpruner(theta=0.5)",
    "cdpruner(official=True, theta=0.9)",
    "norm",
    "norm(shortest=True)",
    "cls",
]
methods = pytest.mark.parametrize("spec", SPECS)


# true ties, which the index decides: two tokens nearest to each other, equal importance, equal relevance; and a place


@methods
def test_features_that_are_not_finite_are_kept_last(spec):
    pruner = vtc.parse(spec)[0]
    spans = spans_of(pruner.signals, [12], keep=10)
    spans.features[0][2] = spans.features[0][9, 1] = float("nan")
    [kept] = check_selection(pruner, spans)
    if spec != "cls":
        assert sorted(kept) == [i for i in range(12) if i not in (2, 9)]


@methods
def test_autocast_changes_nothing(spec):
    pruner = vtc.parse(spec)[0]
    spans = spans_of(pruner.signals, [30], 32)
    plain, _, _ = select_tokens(pruner, spans.tokens())
    with torch.autocast("cpu", torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        found, _, _ = select_tokens(pruner, spans.tokens())
    assert torch.equal(found[0], plain[0])


def test_divprune_begins_with_the_most_isolated():
    x = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1.0], [0.1, 0.9], [-1, -1]])
    assert vtc.parse("divprune")[0].select(tokens_of(x, 3), 3)[0].tolist()[0] == 4


# ---------------------------------------------------------------------- IDPruner's importance


def scorer_file(folder, d, h=4, prefix="", extra=None):
    torch.manual_seed(1)
    q, k = nn.Linear(d, h), nn.Linear(d, h)
    weights = {"q_proj.weight": q.weight, "q_proj.bias": q.bias, "k_proj.weight": k.weight, "k_proj.bias": k.bias}
    weights = {prefix + name: w.detach().clone() for name, w in weights.items()}
    save_file({**weights, **(extra or {})}, folder / "a.safetensors")
    return q, k


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "visual.importance_scorer."])
def test_the_trained_scorer_is_the_mean_of_its_logits(tmp_path, prefix):
    other = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}
    q, k = scorer_file(tmp_path, 6, prefix=prefix, extra=other)
    for path in (tmp_path, tmp_path / "a.safetensors"):
        pruner = vtc.parse("idpruner", importance="scorer", scorer=str(path))[0]
        spans = spans_of((), [11, 5])
        found = pruner.weigh(spans.tokens())
        for row, x in enumerate(spans.features):
            assert torch.allclose(found[row, : len(x)], (q(x) @ k(x).T / 2).mean(1), atol=1e-6)
        check_selection(pruner, spans)


def scored(path, spans):
    return vtc.parse("idpruner", importance="scorer", scorer=str(path))[0].weigh(spans.tokens())


def test_scorers_that_are_none_are_named(tmp_path):
    spans = spans_of((), [4])
    with pytest.raises(FileNotFoundError, match="fetch the scorer first"):
        scored(tmp_path / "none", spans)
    with pytest.raises(ValueError, match=r"holds no VisionSelector scorer .* it has \[\]"):
        scored(tmp_path, spans)
    save_file({"k_proj.weight": torch.zeros(2, 2)}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"it has \['k_proj.weight'\]"):
        scored(tmp_path / "part.safetensors", spans)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.safetensors' is no safetensors file"):
        scored(tmp_path / "text.safetensors", spans)


@pytest.mark.parametrize(
    "shapes",
    [([4, 6], [5], [4, 6], [4]), ([4, 6], [4], [5, 6], [5]), ([4, 6], [4], [4, 7], [4]), ([6], [4], [6], [4])],
    ids=["bias", "hidden", "width", "vector"],
)
def test_scorers_of_wrong_shapes_are_named(tmp_path, shapes):
    save_file({k: torch.zeros(s) for k, s in zip(SCORER_KEYS, shapes, strict=True)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"expected \[h, D\], \[h\], \[h, D\], \[h\]"):
        scored(tmp_path, spans_of((), [4]))


def test_a_scorer_of_another_model_is_named(tmp_path):
    scorer_file(tmp_path, 8)
    with pytest.raises(ValueError, match="features of width 8, this model's have 6"):
        scored(tmp_path, spans_of((), [4]))


def test_a_token_that_is_not_finite_leaves_the_others_their_scores(tmp_path):
    scorer_file(tmp_path, 6)
    spans = spans_of((), [9])
    for bad in (float("nan"), float("inf")):
        whole = dataclasses.replace(spans, features=[torch.cat([spans.features[0], torch.full((1, 6), bad)])])
        found = scored(tmp_path, whole)[0]
        assert torch.allclose(found[:9], scored(tmp_path, spans)[0], atol=1e-6)
        assert found[9].isnan()


def test_the_scorer_holds_at_most_four_times_the_features(tmp_path):
    scorer_file(tmp_path, 4096, 2048)
    pruner = vtc.parse("idpruner", importance="scorer", scorer=str(tmp_path))[0]
    pruner.weigh(Spans([torch.zeros(2, 4096)], [1]).tokens())  # read before: the weights are not the features' matter
    for dtype in (torch.float32, torch.bfloat16):
        make = lambda: Spans([torch.empty(2880, 4096, dtype=dtype)], [144]).tokens()  # noqa: B023, E731
        held = peak_bytes(make, lambda tokens: pruner.select(tokens, 144))
        assert 0 < held <= 4 * 2880 * 4096 * dtype.itemsize


def test_idpruner_at_the_ends_of_lam():
    spans = spans_of((EncoderAttention(),), [15], keep=6)
    w = spans.reads[EncoderAttention()][0].mean(0)
    [by_importance] = check_selection(vtc.parse("idpruner(lam=1.0)")[0], spans)
    assert by_importance == w.argsort(descending=True)[:6].tolist()
    [by_diversity] = check_selection(vtc.parse("idpruner(lam=0.0)")[0], spans)
    assert by_diversity == slow_farthest(spans.features[0].double().numpy(), 6, start=w.numpy())


# ---------------------------------------------------------------------- ZOO-Prune


@dataclasses.dataclass(kw_only=True)
class Reader(vtc.Pruner):
    """Looks at what the projector reads instead of choosing."""

    read: object = PreProjector()
    seen: list = dataclasses.field(default_factory=list)
    ragged = True

    @property
    def signals(self):
        return (self.read,)

    def select(self, tokens, k):
        found = tokens.read(self.read)
        self.seen.append((found[tokens.valid] if self.read == PreProjector() else found, tokens.projector))
        return torch.arange(k).expand(len(tokens.counts), -1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_algebra_is_the_difference_of_the_models_own_projector(family, dtype):
    model, reader = ready(family), Reader(keep=1)
    with vtc.compressed(model, reader):
        model(**prompt(family, "ragged").inputs)
    [(x, projector)] = reader.seen
    projector.to(dtype)  # bfloat16 weights, in which these differences would be rounding
    x = x[:20].to(dtype)
    u = torch.randn(5, x.shape[-2] * x.shape[-1], generator=torch.Generator().manual_seed(3))
    found = sensitivity(x, read_projector(projector, *x.shape[1:]), u, 0.01)
    projector.double()
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
    """Crops, too: each is cut out of the features."""
    layout = Layout((Grid(24, 24, "base"), Grid(48, 48, "mosaic", cuts=((24,), (24,)))))
    patches, width = (1, 1024) if kind == "llava" else (4, 1280)
    pruner = vtc.parse("zoo_prune(directions=4)")[0]  # of more there are more chunks, of the same size

    def make():
        projector = mlp(1024, 4096, 4096, dtype) if kind == "llava" else Merger(1280, 4, 4096, dtype)
        reads = {PreProjector(): [torch.empty(2880, patches, width, dtype=dtype)]}
        features = [torch.empty(2880, 4096, dtype=dtype)]
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


# ---------------------------------------------------------------------- ToDRE


def test_todre_looks_for_its_pivot_in_the_whole_image():
    layout = Layout((Grid(2, 2, "base"), Grid(2, 2, "mosaic", "row")))
    attention = torch.tensor([[0.1, 0.3, 0.2, 0.0, 0.9, 0.8, 0.7, 0.9]])
    place = torch.tensor([0, 1, 2, 3, 4, 5, 7, 8])
    tokens = tokens_of(torch.randn(8, 3), 2, Served({PIVOT: attention[None]}), layouts=[layout])
    tokens = dataclasses.replace(tokens, ids=place[None])
    assert vtc.parse("todre_diversity")[0].select(tokens, 2)[0, 0] == 1


def test_random_pivots_follow_the_seed():
    spans = spans_of((), [40, 40], keep=1)
    pivots = [check_selection(vtc.parse("todre_diversity", pivot="random", pivot_seed=s)[0], spans) for s in range(5)]
    assert len({str(p) for p in pivots}) > 2
    assert all(a == b for a, b in pivots), "the place in the batch plays no part"


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_the_pivot_is_the_class_tokens_or_where_there_is_none_a_random_one(family):
    model, reader, given_ = ready(family), Reader(keep=1, read=PIVOT), prompt(family, "ragged").inputs

    def pivots(spec):
        with vtc.compressed(model, spec):
            model(**given_)
            return [kept.tolist() for kept in model.vtc.report.steps[-1].kept]

    with vtc.compressed(model, reader):
        model(**given_)
    [(attention, _)] = reader.seen
    auto = pivots("todre_diversity(keep=1)")
    if family == "llava":
        tower = locate(model).tower
        tower.set_attn_implementation("eager")
        seen = tower(given_["pixel_values"], output_attentions=True).attentions[-1][:, :, 0, 1:]
        tower.set_attn_implementation("sdpa")
        assert torch.allclose(attention, seen, atol=1e-6)
        assert auto == seen.mean(1).argmax(-1)[:, None].tolist()
    else:
        assert attention.shape[1] == 1
        assert not attention.any()
        assert auto == pivots("todre_diversity(keep=1, pivot=random)")
        assert auto != pivots("todre_diversity(keep=1, pivot_seed=1)")


ROWS = DecoderAttention(queries="text")


@pytest.mark.parametrize("share", [0.05, 0.2])
@pytest.mark.parametrize("keep", [None, 2])
def test_removal_asks_the_text_behind_the_last_picture_of_each_sample(share, keep):
    """Two spans of sample 0, one of sample 1; the text between sample 0's pictures looks hard, and doesn't count."""
    looks = torch.zeros(3, 2, 4, 6)  # [B, H, T, N]
    looks[:2, :, 0] = 0.08  # before the second picture: 0.96 on sample 0's twelve tokens
    looks[:2, :, 1:3, :] = share / 12
    looks[2, :, :, 1] = 0.3
    source = Served({ROWS: looks}, {ROWS: torch.zeros(2, 4, 1)})
    behind = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0], [1, 1, 1, 1]]).bool()
    everything = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    source.text_valid = lambda tokens: everything if tokens is None else behind
    tokens = dataclasses.replace(
        tokens_of(torch.randn(3, 6, 2), keep or 1, source, stage="decoder", layer=5), sample=torch.tensor([0, 0, 1])
    )
    kept = chosen(vtc.parse("todre_removal", keep=keep)[0], tokens)
    left = [0, 1][: keep or 0] if share < 0.1 else [0, 1, 2, 3, 4, 5]
    assert [sorted(row) for row in kept] == [left, left, [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize("spec", ["todre(keep=0.5, tau={})", "todre_removal(tau={})"])
def test_todre_on_a_model_removes_everything_or_nothing(spec, tau):
    model, given_ = tiny("llava"), prompt("llava", "ragged").inputs
    with vtc.compressed(model, spec.format(tau)):
        model(**given_)
        report = model.vtc.report
    assert (report.steps[-1].stage, report.steps[-1].layer) == ("decoder", 5)  # seven eighths of six
    first = 8 if spec.startswith("todre(") else 16
    assert [len(k) for k in report.steps[-1].kept] == [first * (tau == 0)] * len(report.spans)
    if len(report.steps) == 2:
        assert [len(k) for k in report.steps[0].kept] == [8] * len(report.spans)


# ---------------------------------------------------------------------- CDPruner


def test_relevance_by_embeddings_is_the_mean_cosine_with_the_question():
    spans = spans_of((), [10, 6])
    found = vtc.parse("cdpruner")[0].score(spans.tokens())
    for row, (x, words) in enumerate(zip(spans.features, spans.texts[TextEmbeddings()], strict=True)):
        rho = cosine_similarity(x[:, None], words[None], dim=-1).mean(1)
        expected = (rho - rho.min() + 1e-6) / (rho.max() - rho.min())
        assert torch.allclose(found[row, : len(x)], expected, atol=1e-5)


def test_relevance_is_scaled_by_span_or_as_the_authors_do_over_a_sample():
    tokens = spans_of((), [10, 10, 10]).tokens()
    mine, official = vtc.parse("cdpruner")[0], vtc.parse("cdpruner(official=True)")[0]
    alone = mine.score(tokens)
    assert torch.allclose(alone.amin(1), torch.full((3,), 1e-6), atol=1e-5)
    assert torch.equal(official.score(tokens), alone)
    tokens.sample = torch.tensor([0, 0, 1])
    together = official.score(tokens)
    assert together[:2].amin(1).max() > 1e-3
    assert torch.allclose(together[2:], mine.score(tokens)[2:])


@pytest.mark.parametrize("theta", [0.5, 0.99])
def test_theta_sharpens_the_relevance(theta):
    spans = spans_of((), [12], dims=16, keep=5)
    rho = vtc.parse("cdpruner")[0].score(spans.tokens())[0].double().numpy()
    [found] = check_selection(vtc.parse("cdpruner", theta=theta)[0], spans)
    assert found == slow_dpp(spans.features[0].double().numpy(), 5, np.exp(theta / (2 * (1 - theta)) * (rho - 1)))


def test_without_relevance_it_is_a_plain_determinantal_process():
    spans = spans_of((), [14], dims=8, keep=6)
    [found] = check_selection(vtc.parse("cdpruner(relevance=none)")[0], spans)
    assert found == slow_dpp(spans.features[0].double().numpy(), 6, np.ones(14))


@pytest.fixture(scope="module")
def encoder():
    return ClipText(str(BUNDLED_CLIP), torch.device("cpu"))


def test_text_embeddings_are_those_of_the_whole_model(encoder):
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(BUNDLED_CLIP, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_CLIP)
    texts = ["red circle", "how many blue squares are there?"]
    rows = [torch.tensor([[1, *tokenizer(t, add_special_tokens=False)["input_ids"], 3]]) for t in texts]
    expected = [normalize(model.get_text_features(input_ids=row).pooler_output, dim=-1)[0] for row in rows]
    assert torch.allclose(encoder.text(texts), torch.stack(expected), atol=1e-5)
    x = torch.randn(2, 5, 192)
    patches = normalize(model.visual_projection(model.vision_model.post_layernorm(x)), dim=-1)
    assert torch.allclose(encoder.patches(x), patches, atol=1e-5)
    with pytest.raises(ValueError, match="width 192, this model's tower gives 7"):
        encoder.patches(torch.randn(1, 7))


def test_long_questions_are_cut_and_averaged(encoder):
    words = encoder._ids("red circle blue square green star " * 10)
    pieces = segments(words, encoder.length - 2)
    assert [len(p) for p in pieces] == [46] * (len(words) // 46) + [len(words) % 46] * (len(words) % 46 > 0)
    assert len(pieces) > 1
    alone = torch.stack([normalize(encoder._encode(torch.tensor([[1, *p, 3]])), dim=-1)[0] for p in pieces])
    encoder_text = encoder.text(["red circle blue square green star " * 10, "a star"])
    assert torch.allclose(encoder_text[0], alone.mean(0), atol=1e-5)
    assert segments([], 5) == [[]]
    assert encoder.text([""]).isfinite().all()


def test_open_clip_embeds_like_open_clip():
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 8, "patch_size": 4, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 10, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    made = open_clip.CLIP(**config).eval()
    tools = SimpleNamespace(
        create_model=lambda name, **_: made, get_tokenizer=lambda name: open_clip.SimpleTokenizer(context_length=10)
    )
    patches = normalize(made.visual.ln_post(torch.ones(1, 3, 16)) @ made.visual.proj, dim=-1)
    expected = normalize(made.encode_text(open_clip.SimpleTokenizer(context_length=10)(["a red star"])), dim=-1)
    with mock.patch.dict("sys.modules", open_clip=tools):
        encoder = ClipText("open_clip:tiny/none", torch.device("cpu"))
    assert torch.allclose(encoder.text(["a red star"]), expected, atol=1e-5)
    assert torch.allclose(encoder.patches(torch.ones(1, 3, 16)), patches, atol=1e-5)
    assert encoder.text(["a red star " * 9]).shape == (1, 12)


@pytest.mark.parametrize("name", ["open_clip:ViT-S-32-alt", "open_clip:ViT-S-32-alt/none", "{}/none"])
def test_a_text_encoder_whose_weights_are_not_there_is_named(name, tmp_path):
    """Without its weights open_clip alone would go on with random ones."""
    pytest.importorskip("open_clip")
    name = name.format(tmp_path)
    with pytest.raises(OSError, match=r"can't be loaded; without a network .* needs no CLIP") as error:
        ClipText(name, torch.device("cpu"))
    assert repr(name) in str(error.value)


def test_a_download_that_fails_says_what_to_do():
    def fail(name, **options):
        asked.append((name, options["pretrained"]))
        raise RuntimeError("Failed to download")

    asked, tools = [], SimpleNamespace(create_model=fail)
    names = {"ViT-L-14-336/openai": ("ViT-L-14-336", "openai"), "hf-hub:a/b": ("hf-hub:a/b", None)}
    with mock.patch.dict("sys.modules", open_clip=tools):
        for name in names:
            with pytest.raises(OSError, match=r"without a network .* Failed to download"):
                ClipText(f"open_clip:{name}", torch.device("cpu"))
    assert asked == list(names.values())
    with mock.patch.dict("sys.modules", open_clip=None), pytest.raises(ImportError, match="pip install open_clip"):
        ClipText("open_clip:ViT-L-14-336/openai", torch.device("cpu"))


def test_relevance_by_clip_on_the_bundled_model():
    """The question's words reach CLIP, the patches go through its projection, and low similarity is relevant."""
    from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPModel

    folder = BUNDLED_CLIP.parent / "model"
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    clip = CLIPModel.from_pretrained(BUNDLED_CLIP, dtype=torch.float32)
    content = [{"type": "image"}, {"type": "text", "text": "what color is the circle?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    pixels = np.random.default_rng(0).integers(0, 255, (336, 336, 3), dtype=np.uint8)
    inputs = processor(images=[pixels], text=[text], return_tensors="pt")
    spec, asked, embed = f"cdpruner(text_encoder={str(BUNDLED_CLIP)!r}, keep=4)", [], ClipText.text

    def listen(self, texts):
        asked.append(list(texts))
        return embed(self, texts)

    with mock.patch.object(ClipText, "text", listen), vtc.compressed(model, spec):
        model(**inputs)
        [kept] = model.vtc.report.steps[-1].kept
    [[question]] = asked
    assert "what color is the circle" in question
    states = clip.vision_model(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][0, 1:]
    patches = clip.visual_projection(clip.vision_model.post_layernorm(states))
    words = processor.tokenizer(question, add_special_tokens=False)["input_ids"]
    assert len(words) <= 46
    words = clip.get_text_features(input_ids=torch.tensor([[1, *words, 3]])).pooler_output
    rho = -cosine_similarity(patches, words)
    rho = (rho - rho.min() + 1e-6) / (rho.max() - rho.min())
    [features] = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    expected = slow_dpp(features.double().numpy(), 4, rho.double().numpy())
    assert kept.tolist() == sorted(expected)


# ---------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("idpruner(importance=none, keep=2)", "importance='none'"),
        ("idpruner(importance=scorer, keep=2)", "scorer"),
        ("idpruner(scorer=x, keep=2)", "goes with importance='scorer'"),
        ("idpruner(lam=1.5, keep=2)", "lam=1.5"),
        ("idpruner(parallel=0, keep=2)", "parallel=0"),
        ("zoo_prune(directions=0, keep=2)", "directions=0"),
        ("zoo_prune(rank=0, keep=2)", "rank=0"),
        ("zoo_prune(step=0.0, keep=2)", "step=0.0"),
        ("todre_diversity(objective=min, keep=2)", "objective='min'"),
        ("todre(pivot=cls, keep=2)", "pivot='cls'"),
        ("cdpruner(relevance=clip, keep=2)", "needs text_encoder"),
        ("cdpruner(relevance=some, keep=2)", "relevance='some'"),
        ("cdpruner(theta=1, keep=2)", "theta=1"),
        ("todre(tau=-0.1, keep=2)", "todre.tau=-0.1"),
        ("todre_removal(tau=2)", "todre_removal.tau=2"),
    ],
)
def test_bad_parameters_are_named(spec, match):
    with pytest.raises(ValueError, match=match):
        vtc.parse(spec)
