"""Zero-TPrune against its formula written out for one graph in float64: in towers of VLMs and in bare ViTs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from contract_checks import batch_equals_one_by_one, pruned_equals_masked
from methods import NO_VISION_STAGE, Setting
from torch import Tensor, nn
from vision_tools import Norm, features, own_attention, ready, record, token_patches
from zoo import FAMILIES, prompt, tiny

import vtc
from vtc.models.layout.model_parts import locate
from vtc.models.tower.bare_vit import VitAdapter
from vtc.models.tower.tower_hooks import VisionSide
from vtc.pruners.base import Stop
from vtc.pruners.primitives.page_rank import over_heads, page_rank
from vtc.pruners.signals import EncoderKeys, EncoderSegments, EncoderSpecial
from vtc.pruners.visual_tokens import VisualTokens
from vtc.pruners.zero_tprune import Graph

pytestmark = pytest.mark.usefixtures("no_grad")


# ---------------------------------------------------------------------- the formula, one graph at a time


def importance(logits: np.ndarray, segment: np.ndarray, left: np.ndarray, classes: set[int], votes: int) -> np.ndarray:
    """`[M]` of the graph of nodes `left`, in which the nodes `classes` count more at first; 0 elsewhere."""
    nodes = [int(i) for i in left]
    start = {i: sum(segment[i] == segment[j] for j in nodes) ** 0.5 if i in classes else 1.0 for i in nodes}
    total, found, variances = sum(start.values()), [], []
    for head in logits:
        weights = {}
        for i in nodes:
            seen = [j for j in nodes if segment[j] == segment[i]]
            e = np.exp(head[i, seen] - head[i, seen].max())
            weights[i] = dict(zip(seen, e / e.sum(), strict=True))
        s = {i: start[i] / total for i in nodes}
        for _ in range(votes):
            s = {j: sum(weights[i].get(j, 0.0) * s[i] for i in nodes) for j in nodes}
        x = np.array([s[i] for i in nodes])
        found.append(x)
        variances.append(np.var(x / x.mean(), ddof=1))
    heard = [x for x, v in zip(found, variances, strict=True) if 0.01 <= v <= 0.7] or found
    out = np.zeros(len(segment))
    out[nodes] = np.sqrt(np.mean(np.square(heard), 0))
    return out


def expected(
    q: np.ndarray, k: np.ndarray, segment: np.ndarray, special: Sequence[int], tokens: np.ndarray, keep: int,
    votes: int, similar: float = 0.3, classes: Sequence[int] | None = None,
) -> list[int]:  # fmt: skip
    """Kept tokens, ascending.

    Parameters
    ----------
    q, k : ndarray
        `[H, M, d]`.
    segment : ndarray
        `[M]`.
    special, classes : sequence of int
        Special nodes, and which of them are class tokens (all by default).
    tokens : ndarray
        `[n, U]`, each token's nodes.
    """
    logits = q @ k.swapaxes(1, 2) * q.shape[-1] ** -0.5
    special, first = list(special), set(special if classes is None else classes)
    n = len(tokens)
    score = importance(logits, segment, np.array([*special, *tokens.flat]), first, 1)[tokens].mean(1)
    order = sorted(range(n), key=lambda i: (-score[i], i))
    strong, weak = order[: n - n // 2], order[n - n // 2 :]
    metric = k.mean(0)[tokens].mean(1)
    metric = metric / np.linalg.norm(metric, axis=1, keepdims=True)
    likeness = {a: max(metric[a] @ metric[b] for b in strong) for a in weak}
    r = min(int(similar * (n - keep) + 0.5), len(weak))
    gone = sorted(weak, key=lambda a: (-likeness[a], a))[:r]
    left = [i for i in range(n) if i not in gone]
    score = importance(logits, segment, np.array([*special, *tokens[left].flat]), first, votes)[tokens].mean(1)
    return sorted(sorted(left, key=lambda i: (-score[i], i))[:keep])


# ---------------------------------------------------------------------- in the towers of VLMs


class Spy:
    """Queries and keys of an unpruned tower's layers as `[H, T, d]` of all rows, and each one's segment."""

    def __init__(self, parts: Any, inputs: dict[str, Any], modality: str):
        self.calls: dict[int, list[tuple[Tensor, Tensor]]] = {}
        with own_attention(parts, self.attend):
            features(parts.core, inputs, modality)

    def attend(self, i: int, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float) -> Tensor:
        assert mask is None
        assert scaling == pytest.approx(q.shape[-1] ** -0.5)
        self.calls.setdefault(i, []).append((q, k))
        return ((q @ k.transpose(2, 3) * scaling).softmax(-1) @ v).transpose(1, 2)

    def layer(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        q, k = (
            torch.cat([call[j].transpose(0, 1).flatten(1, 2) for call in self.calls[i]], 1).double().numpy()
            for j in (0, 1)
        )
        lengths = [call[0].shape[2] for call in self.calls[i] for _ in range(len(call[0]))]
        return q, k, np.repeat(np.arange(len(lengths)), lengths)


TOWERS = [
    ("llava", "ragged", "image"),
    ("llava_siglip", "one", "image"),
    ("llava_next", "sizes", "image"),
    ("gemma3", "one", "image"),
    ("qwen2_vl", "sizes", "image"),
    ("qwen2_5_vl", "sizes", "image"),
    ("qwen3_vl", "video", "video"),
]


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize(("name", "shape", "modality"), TOWERS)
def test_the_choice_in_a_tower_is_the_formula(name: str, shape: str, modality: str, layer: int) -> None:
    parts, inputs = locate(ready(name)), prompt(name, shape).inputs
    if layer > 2 and name.startswith("llava"):
        layer = 2  # CLIP's last layer that the projector reads
    pruner = vtc.parse("zero_tprune", keep=0.4, layer=layer, votes=4)[0]
    _, found = record(parts, inputs, modality, [pruner])
    q, k, segment = Spy(parts, inputs, modality).layer(layer - 1)
    prefix = int(name in ("llava", "llava_next"))
    begins = np.flatnonzero(np.diff(segment, prepend=-1))
    for i, places in enumerate(token_patches(parts, inputs, modality, found.layouts())):
        content = np.flatnonzero((places >= 0).all(1))
        tokens = places.numpy()[content]
        rows = sorted(set(segment[tokens.flat]))
        special = [int(begins[row]) for row in rows] if prefix else []
        keep = int(0.4 * len(places) + 0.5)
        want = expected(q, k, segment, special, tokens, keep, votes=4)
        kept = found.steps[0].kept[i].tolist()
        assert kept == content[want].tolist(), f"item {i} of {len(places)} tokens"
        assert len(rows) > 1 or name != "llava_next", "several crops"


class Reader(Norm):
    """Reads segments, special tokens and keys at a vision stop."""

    signals = (EncoderSegments(), EncoderSpecial(of="queries"), EncoderSpecial(), EncoderKeys())
    seen: dict[Any, Tensor]

    def score(self, tokens: VisualTokens) -> Tensor:
        self.seen = {s: tokens.read(s) for s in self.signals} | {"ids": tokens.ids}
        return super().score(tokens)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("llava", "ragged"), ("llava_next", "sizes"), ("qwen2_5_vl", "sizes"), ("qwen3_vl", "ragged"), ("gemma3", "one")],
)
def test_segments_and_special_tokens_of_a_pruned_tower(name: str, shape: str) -> None:
    """Those of the unpruned tower at the tokens left: what enters layer 1 is the same, but for what is gone."""
    parts, inputs = locate(ready(name)), prompt(name, shape).inputs
    second = Reader(layer=2, keep=0.3)
    record(parts, inputs, pruners=[Norm(layer=1, keep=0.6), second])
    plain = Reader(layer=2, keep=0.3)
    record(parts, inputs, pruners=[plain])
    segments = EncoderSegments()
    for row, ids in enumerate(second.seen["ids"]):
        ids = ids[ids >= 0]
        column = torch.searchsorted(plain.seen["ids"][row][plain.seen["ids"][row] >= 0], ids)
        have, want = second.seen[segments][row, : len(ids), :, 0], plain.seen[segments][row, column, :, 0]
        assert torch.equal(have[:, :, None, None] == have, want[:, :, None, None] == want)
        if name in ("llava", "llava_next"):
            assert torch.equal(have, want), "the row of the class token"
    for signal in (EncoderSpecial(of="queries"), EncoderSpecial()):
        have, want = second.seen[signal], plain.seen[signal]
        assert have.shape[2] == int(name in ("llava", "llava_next"))
        assert torch.allclose(have, want, atol=1e-5)
        assert not have.numel() or bool((have.flatten(2).norm(dim=-1) > 0).any(0).all())


def test_crops_have_their_own_class_token() -> None:
    """Row r of the special tokens is the row of tower that the tokens of segment r stand in."""
    parts, inputs = locate(ready("llava_next")), prompt("llava_next", "sizes").inputs
    reader = Reader(layer=1, keep=0.3)
    _, found = record(parts, inputs, pruners=[reader])
    _, keys, segment = Spy(parts, inputs, "image").layer(0)
    begins = np.flatnonzero(np.diff(segment, prepend=-1))
    have = reader.seen[EncoderSpecial()]
    assert (reader.seen[EncoderSpecial(of="queries")] - have).abs().max() > 1e-3
    for i, places in enumerate(token_patches(parts, inputs, "image", found.layouts())):
        real = places[places[:, 0] >= 0, 0]
        rows = torch.from_numpy(segment)[real]
        assert torch.equal(reader.seen[EncoderSegments()][i, : len(real), 0, 0], rows - rows.min())
        for row in rows.unique().tolist():
            want = torch.from_numpy(keys[:, begins[row]].reshape(-1)).float()
            assert torch.allclose(have[i, row - int(rows.min()), 0], want, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("llava", "ragged"), ("llava_next", "sizes"), ("internvl", "ragged"), ("qwen2_5_vl", "sizes"), ("gemma3", "one")],
)
def test_the_choice_behind_a_tower_is_the_formula(name: str, shape: str) -> None:
    """By the layer whose output the projector reads, also in a tower that can't be pruned inside."""
    model, inputs = ready(name), prompt(name, shape).inputs
    parts = locate(model)
    last = 2 if name in ("llava", "llava_next") else 3
    q, k, segment = Spy(parts, inputs, "image").layer(last)
    prefix = int(name in ("llava", "llava_next", "internvl"))
    begins = np.flatnonzero(np.diff(segment, prepend=-1))
    with vtc.compressed(model, "zero_tprune(at=input, keep=0.4)"):
        model(**inputs)
        report = model.vtc.report
    assert report.steps[0].stage == "input"
    for i, places in enumerate(token_patches(parts, inputs, "image", report.layouts)):
        content = np.flatnonzero((places >= 0).all(1))
        tokens = places.numpy()[content]
        special = [int(begins[row]) for row in sorted(set(segment[tokens.flat]))] if prefix else []
        want = expected(q, k, segment, special, tokens, int(0.4 * len(places) + 0.5), votes=1)
        assert report.steps[0].kept[i].tolist() == content[want].tolist(), f"item {i} of {len(places)} tokens"


BEHIND = Setting("zero_tprune(at=input)", 0.4)


@pytest.mark.parametrize("family", FAMILIES)
def test_behind_the_encoder_it_runs_on_every_family(family: str) -> None:
    pruned_equals_masked(BEHIND, family, "ragged")
    batch_equals_one_by_one(BEHIND, family, "ragged")


# ---------------------------------------------------------------------- in bare ViTs

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 6, "num_heads": 4, "num_classes": 7}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
# extra arguments, special tokens, whether one is a class token
VITS: dict[str, tuple[dict[str, Any], int, bool]] = {
    "class": ({}, 1, True),
    "registers": ({"reg_tokens": 3, "qk_norm": True}, 4, True),
    "average": ({"global_pool": "avg"}, 1, True),
    "average_of_patches": ({"global_pool": "avg", "class_token": False}, 0, False),
    "registers_only": ({"global_pool": "avg", "class_token": False, "reg_tokens": 2}, 2, False),
    "distilled": ({}, 2, True),
    "open_clip": ({}, 1, True),
}


def vit(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "open_clip":
        pytest.importorskip("open_clip")
        from open_clip.transformer import VisionTransformer

        model = VisionTransformer(image_size=32, patch_size=8, width=48, layers=6, heads=4, mlp_ratio=2.0, output_dim=7)
    else:
        timm = pytest.importorskip("timm")
        made = timm.models.deit.VisionTransformerDistilled if kind == "distilled" else timm.models.VisionTransformer
        model = made(**SMALL, **VITS[kind][0])
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=1.2 / p.shape[-1] ** 0.5)
    return model.eval()


def heads_of(block: nn.Module, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys `[B, H, T, d]` of a block's attention on its input."""
    attention: Any = block.attn
    if isinstance(attention, nn.MultiheadAttention):
        q, k, _ = nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
    else:
        q, k, _ = attention.qkv(x).chunk(3, -1)
    q, k = (t.view(*t.shape[:2], 4, 12).transpose(1, 2) for t in (q, k))
    if not isinstance(attention, nn.MultiheadAttention):
        q, k = attention.q_norm(q), attention.k_norm(k)
    return q.double().numpy(), k.double().numpy()


@pytest.mark.parametrize("spec", ["zero_tprune(keep=0.3)", "zero_tprune(keep=5, steps=2, votes=2, uniform=True)"])
@pytest.mark.parametrize("kind", VITS)
def test_every_step_in_a_vit_is_the_formula(kind: str, spec: str) -> None:
    model, (_, prefix, has_class) = vit(kind), VITS[kind]
    plain = model(IMAGES)
    blocks = model.transformer.resblocks if kind == "open_clip" else model.blocks
    entered: dict[int, Tensor] = {}
    spies = [
        b.attn.register_forward_pre_hook(lambda m, a, i=i: entered.update({i: a[0].clone()}))
        for i, b in enumerate(blocks)
    ]
    with vtc.compressed(model, spec):
        out = model(IMAGES)
        steps = model.vtc.report.steps
    for spy in spies:
        spy.remove()
    assert out.shape == plain.shape == (3, 7)
    assert not torch.equal(out, plain)
    assert torch.equal(model(IMAGES), plain)
    uniform = "uniform" in spec
    # layers 2, 3, 5 of 6: 16 tokens by 0.3 ** (1/3) a step; or 2, 4 with 10 and 5
    assert [(s.layer, len(s.kept[0])) for s in steps] == ([(2, 10), (4, 5)] if uniform else [(2, 11), (3, 7), (5, 5)])
    votes = {2: 2, 4: 2} if uniform else {2: 30, 3: 30, 5: 1}
    for image in range(len(IMAGES)):
        ids = np.arange(16)
        for step in steps:
            q, k = heads_of(blocks[step.layer - 1], entered[step.layer - 1])
            count = len(ids) + prefix
            assert q.shape[2] == count
            special = list(range(prefix)) if has_class else []
            want = expected(
                q[image], k[image], np.zeros(count, int), special, np.arange(prefix, count)[:, None],
                len(step.kept[image]), votes[step.layer], classes=[] if uniform else special[:1],
            )  # fmt: skip
            assert step.kept[image].tolist() == ids[want].tolist(), (image, step.layer)
            ids = ids[want]


def test_what_was_read_is_freed() -> None:
    model = vit("class")
    adapter = VitAdapter(model, vtc.parse("zero_tprune", keep=0.3)).attach()
    model(IMAGES)
    adapter.detach()
    assert adapter._last is not None
    assert adapter._last.captured == {}
    assert len(adapter.steps) == 3


@torch.enable_grad()
def test_gradients_flow_through_what_is_left() -> None:
    model = vit("registers")
    with vtc.compressed(model, "zero_tprune", keep=0.3):
        model(IMAGES).sum().backward()
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    assert len(norms) > 50
    assert torch.stack(norms).isfinite().all()
    assert (torch.stack(norms) > 0).any()


def test_zero_shot_classification_with_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 4, "head_width": 16}
    text = {"context_length": 7, "vocab_size": 20, "width": 32, "heads": 2, "layers": 2}
    clip = open_clip.model.CLIP(16, vision, text).eval()
    names = torch.randint(1, 20, (5, 7))

    def logits() -> Tensor:
        image, words, scale = clip(IMAGES, names)
        assert torch.allclose(image.norm(dim=-1), torch.ones(3), atol=1e-5)
        seen.append(words)
        return scale * image @ words.T

    seen: list[Tensor] = []
    plain = logits()
    with vtc.compressed(clip, "zero_tprune", keep=1.0):
        assert torch.equal(logits(), plain)
    with vtc.compressed(clip, "zero_tprune", keep=0.25):
        pruned = logits()
        assert [len(k) for k in clip.vtc.report.steps[-1].kept] == [4] * 3
    assert pruned.shape == plain.shape == (3, 5)
    assert pruned.isfinite().all()
    assert (pruned - plain).abs().max() > 1e-4
    assert all(torch.equal(words, seen[0]) for words in seen), "the text side is not touched"
    assert torch.equal(logits(), plain)


# ---------------------------------------------------------------------- the graph


def test_votes_go_where_one_looks_and_not_to_who_looks() -> None:
    """Attention received; the other direction ends in a constant vector, whatever the graph."""
    g = torch.Generator().manual_seed(0)
    attention = torch.rand(2, 6, 6, generator=g, dtype=torch.float64)
    attention[:, :, 4] += 3  # everybody looks at token 4
    attention /= attention.sum(-1, keepdim=True)
    start = torch.full((2, 6), 1 / 6, dtype=torch.float64)
    for votes in (1, 50):
        rank = page_rank([attention], start, votes)
        assert rank.argmax(-1).tolist() == [4, 4]
        assert torch.allclose(rank.sum(-1), torch.ones(2, dtype=torch.float64))
        assert (rank.std(-1) > 0.05).all()
    wrong = page_rank([attention.mT], torch.rand(2, 6, generator=g, dtype=torch.float64), 50)
    assert (wrong.std(-1) < 1e-9).all()
    values, vectors = np.linalg.eig(attention[0].numpy().T)  # page rank's fixed point
    steady = np.real(vectors[:, np.argmax(np.real(values))])
    np.testing.assert_allclose(page_rank([attention], start, 200)[0], steady / steady.sum(), atol=1e-9)


def test_the_choice_is_not_the_index_order() -> None:
    """With A and A^T confused all tokens would be worth the same, and the first ones stay."""
    model = vit("average_of_patches")
    with vtc.compressed(model, "zero_tprune(keep=6, layer=3, votes=50, similar=0)"):
        model(IMAGES)
        kept = [k.tolist() for k in model.vtc.report.steps[0].kept]
    assert all(k != list(range(6)) for k in kept)
    assert len(set(map(tuple, kept))) > 1


def test_merged_tokens_weigh_what_they_stand_for() -> None:
    """As in the layer itself, which adds the logarithm of the size to the logits (ToMe)."""
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 3, 7, 8, generator=g)
    size = torch.tensor([[1.0, 1, 4, 1, 2, 1, 1]])
    queries, keys = (x.transpose(1, 2).flatten(2) for x in (q, k))
    sides = [(x[:, :1], x[:, 1:]) for x in (queries, keys)]
    graph = Graph(*sides, 8, torch.zeros(1, 7, dtype=torch.long), size, stride=1, unit=1, room=1 << 20)
    found = graph.importance(torch.ones(1, 6, dtype=torch.bool), 3, uniform=False)[0]
    logits = (q @ k.transpose(2, 3) * 8**-0.5 + size.log())[0].double().numpy()
    want = importance(logits, np.zeros(7, int), np.arange(7), {0}, 3)[1:]
    np.testing.assert_allclose(found, want, rtol=1e-4)
    plain = importance((q @ k.transpose(2, 3) * 8**-0.5)[0].numpy(), np.zeros(7, int), np.arange(7), {0}, 3)[1:]
    assert abs(want - plain).max() > 0.01
    model = vit("class")
    with vtc.compressed(model, "tome(at=vision, layer=1, keep=0.7) + zero_tprune(layer=3, keep=0.4)"):
        model(IMAGES)
        assert [(s.layer, len(s.kept[0])) for s in model.vtc.report.steps] == [(1, 11), (3, 6)]


def test_heads_that_say_nothing_or_only_one_thing_are_not_heard() -> None:
    flat, sharp = torch.full((8,), 1 / 8), torch.tensor([0.93] + [0.01] * 7)
    some = torch.tensor([0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    everyone = torch.ones(1, 8, dtype=torch.bool)
    assert torch.allclose(over_heads(torch.stack([flat, sharp, some])[None], everyone)[0], some)
    alone = over_heads(torch.stack([flat, sharp])[None], everyone)[0]
    assert torch.allclose(alone, ((flat**2 + sharp**2) / 2).sqrt()), "none is fit: all are heard"


# ---------------------------------------------------------------------- what it says


def test_stops() -> None:
    def stops(spec: str, last: int) -> list[tuple[int | None, int | float | None]]:
        pruner = vtc.parse(spec)[0]
        return [(s.layer, s.keep) for s in pruner.tower_stops(pruner.stops(32)[0], last)]

    assert stops("zero_tprune(keep=0.125)", 11) == [(3, 0.5), (6, 0.25), (9, 0.125)]
    assert stops("zero_tprune(keep=64)", 22) == [(6, 256), (12, 128), (17, 64)]
    assert stops("zero_tprune(keep=64, layer=5)", 22) == [(5, 64)]
    assert stops("zero_tprune(keep=0.25, steps=9)", 2) == [(1, 0.5), (2, 0.25)]
    assert stops("zero_tprune(keep=1.0, steps=1)", 11) == [(6, 1.0)]


def test_votes_by_layer() -> None:
    """30 in the first three layers, 1 in the last three, as seen from the stop behind them."""
    pruner = vtc.parse("zero_tprune(keep=0.5)")[0]

    def at(layer: int) -> int:
        tokens = VisualTokens(
            torch.zeros(1, 2, 1), torch.arange(2)[None], [2], [1], [], torch.zeros(1), [0], stage="vision",
            layer=layer, last=11,
        )  # fmt: skip
        return pruner._votes(tokens)

    assert [at(layer) for layer in range(1, 12)] == [30, 30, 30, 5, 5, 5, 5, 5, 5, 1, 1]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("zero_tprune(steps=0)", r"zero_tprune\.steps=0 is out of range; it must be an int >= 1"),
        ("zero_tprune(votes=0)", r"zero_tprune\.votes=0"),
        ("zero_tprune(votes=1.5)", r"zero_tprune\.votes=1\.5"),
        ("zero_tprune(at=decoder)", r"at='decoder' is no stage of it; allowed are vision, input"),
        ("zero_tprune(at=input, layer=2)", r"layer=2 is an encoder layer and does not go with at='input'"),
        ("zero_tprune(similar=1.5)", r"similar=1\.5 is out of range: it must be in \[0, 1\]"),
    ],
)
def test_bad_parameters_are_named(spec: str, text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        vtc.parse(spec)


def test_where_it_can_not_run() -> None:
    with pytest.raises(ValueError, match="at least two layers"):
        vtc.parse("zero_tprune(keep=0.3)")[0].tower_stops(Stop("vision", None, 0.3), 0)
    with pytest.raises(ValueError, match="comes later"):
        vtc.compress(vit("class"), "zero_tprune(keep=0.3, layer=0)")
    for family in NO_VISION_STAGE:
        with pytest.raises(NotImplementedError, match=r"zero_tprune.*use the input stage"):
            vtc.compress(tiny(family), "zero_tprune(keep=0.3)")
    assert set(NO_VISION_STAGE) < set(FAMILIES)
    segments = vtc.parse("zero_tprune(keep=0.3)")[0].signals[-1]
    with pytest.raises(NotImplementedError, match="inside the vision tower only"):
        VisionSide(locate(ready("llava")), signals=[segments])
    with pytest.raises(ValueError, match=r"EncoderSpecial\.of must be 'keys' or 'queries', got 'values'"):
        EncoderSpecial(of="values")
