"""Pruning inside bare vision transformers of timm and open_clip."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from anatomy import HOOKS
from bare_vits import IMAGES, build, prefix_of
from torch import Tensor, nn
from vision_tools import Norm

import vtc
from vtc.models.tower.bare_vit import VitAdapter, is_vit
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import DecoderHidden, EncoderAttention, EncoderFeatures, EncoderKeys, EncoderValues
from vtc.pruners.visual_tokens import VisualTokens

open_clip = pytest.importorskip("open_clip")
pytestmark = pytest.mark.usefixtures("no_grad")

KINDS = ("timm", "timm_registers", "timm_only_registers", "timm_average", "open_clip")
NO_CLASS_TOKEN = ("timm_only_registers", "timm_average")


def masked(kind: str, model: nn.Module, steps: list[Any]) -> Tensor:
    """The unpruned transformer with dropped patches hidden as keys; its output tokens `[B, T, D]`."""
    prefix, length = prefix_of(kind), 16 + prefix_of(kind)
    blocks = model.transformer.resblocks if kind == "open_clip" else model.blocks
    hooks = []
    for i, block in enumerate(blocks):
        kept = [s.kept for s in steps if s.layer <= i]
        if not kept:
            continue
        seen = torch.zeros(len(IMAGES), length, dtype=torch.bool)
        seen[:, :prefix] = True
        seen.scatter_(1, torch.stack(kept[-1]) + prefix, True)
        seen = seen[:, None].expand(-1, length, -1) | torch.eye(length, dtype=torch.bool)
        if kind == "open_clip":
            seen = torch.zeros(seen.shape).masked_fill(~seen, float("-inf")).repeat_interleave(4, 0)
        else:
            seen = seen[:, None]
        hooks.append(
            block.register_forward_pre_hook(lambda m, a, k, seen=seen: (a, {**k, "attn_mask": seen}), with_kwargs=True)
        )
    out: list[Tensor] = []
    hooks.append(blocks[-1].register_forward_hook(lambda m, a, y: out.append(y)))
    model(IMAGES)
    for hook in hooks:
        hook.remove()
    return out[0]


@pytest.mark.parametrize("plan", [[(2, 5)], [(0, 0.5)], [(1, 0.7), (3, 1)]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_pruned_is_masked(kind: str, plan: list[tuple[int, Any]]) -> None:
    model, prefix = build(kind), prefix_of(kind)
    assert is_vit(model)
    plain = model(IMAGES)
    hooks = {n: [len(getattr(m, h, ())) for h in HOOKS] for n, m in model.named_modules()}
    adapter = VitAdapter(model, [Norm(layer=layer, keep=keep) for layer, keep in plan]).attach()
    last: list[Tensor] = []
    blocks = model.transformer.resblocks if kind == "open_clip" else model.blocks
    spy = blocks[-1].register_forward_hook(lambda m, a, y: last.append(y))
    pooled = model(IMAGES)
    spy.remove()
    adapter.detach()
    assert hooks == {n: [len(getattr(m, h, ())) for h in HOOKS] for n, m in model.named_modules()}
    assert [s.layer for s in adapter.steps] == [layer for layer, _ in plan]
    assert [len(k) for s in adapter.steps for k in s.kept] == [
        n for _, keep in plan for n in [keep if isinstance(keep, int) else int(keep * 16 + 0.5)] * 3
    ]
    want = masked(kind, model, adapter.steps)
    for image, kept in enumerate(adapter.steps[-1].kept):
        index = torch.cat([torch.arange(prefix), kept + prefix])
        assert torch.allclose(last[0][image], want[image, index], atol=1e-4)
    assert (pooled - plain).abs().max() > 1e-3
    assert torch.equal(model(IMAGES), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_signals(kind: str) -> None:
    model, prefix = build(kind), prefix_of(kind)
    seen: dict[Any, Tensor] = {}

    class Reader(Norm):
        signals = (
            EncoderAttention(),
            EncoderAttention(queries="received"),
            EncoderKeys(layer=0),
            EncoderKeys(layer=0, heads="mean"),
            EncoderValues(),
            EncoderFeatures(),
        )

        def score(self, tokens: VisualTokens) -> Tensor:
            seen.update({s: tokens.read(s) for s in self.signals}, features=tokens.features, ids=tokens.ids)
            return super().score(tokens)

    first, second = Norm(layer=1, keep=9), Reader(layer=2, keep=4)
    adapter = VitAdapter(model, [first, second]).attach()
    blocks = model.transformer.resblocks if kind == "open_clip" else model.blocks
    entered: dict[int, Tensor] = {}
    spies = [
        blocks[i].attn.register_forward_pre_hook(lambda m, a, i=i: entered.update({i: a[0].clone()})) for i in (0, 1)
    ]
    model(IMAGES)
    adapter.detach()
    for spy in spies:
        spy.remove()

    def heads(i: int) -> tuple[Tensor, Tensor, Tensor]:
        attention, x = blocks[i].attn, entered[i]
        if kind == "open_clip":
            q, k, v = nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
        else:
            q, k, v = attention.qkv(x).chunk(3, -1)
        q, k, v = (t.view(*t.shape[:2], 4, 12).transpose(1, 2) for t in (q, k, v))
        return (q, k, v) if kind == "open_clip" else (attention.q_norm(q), attention.k_norm(k), v)

    q, k, v = heads(1)
    weights = (q @ k.transpose(2, 3) / 12**0.5).softmax(-1)[..., prefix:]
    auto = weights.mean(2) if kind in NO_CLASS_TOKEN else weights[:, :, 0]
    assert torch.allclose(seen[EncoderAttention()], auto, atol=1e-5)
    assert torch.allclose(seen[EncoderAttention(queries="received")], weights.mean(2), atol=1e-5)
    assert torch.allclose(seen[EncoderValues()][:, :, 0], v.transpose(1, 2).flatten(2)[:, prefix:], atol=1e-5)
    assert torch.equal(seen[EncoderFeatures()][:, :, 0], seen["features"])
    keys = heads(0)[1].transpose(1, 2).flatten(2)[:, prefix:]  # of all patches, before the first stop
    keys = keys.gather(1, seen["ids"][..., None].expand(-1, -1, 48))
    assert torch.allclose(seen[EncoderKeys(layer=0)][:, :, 0], keys, atol=1e-5)
    mean = keys.unflatten(-1, (4, 12)).mean(2)
    assert torch.allclose(seen[EncoderKeys(layer=0, heads="mean")][:, :, 0], mean, atol=1e-5)
    assert torch.equal(seen["ids"], torch.stack(adapter.steps[0].kept))


def test_front_door() -> None:
    model = build("timm")
    plain = model(IMAGES)
    vtc.compress(model, "random(at=vision, layer=1, keep=0.5) + random(at=vision, layer=3, keep=2)")
    assert model.forward_features(IMAGES).shape == (3, 3, 48)
    pruned = model(IMAGES)
    report = model.vtc.report
    assert [(s.stage, s.layer, [len(k) for k in s.kept]) for s in report.steps] == [
        ("vision", 1, [8] * 3),
        ("vision", 3, [2] * 3),
    ]
    assert report.layouts == [Layout((Grid(4, 4),))] * 3
    assert (report.tokens_total, report.tokens_kept) == (48, 6)
    assert torch.equal(report.spans[1].columns, torch.arange(1, 17))
    assert not torch.equal(pruned, plain)
    vtc.restore(model)
    assert torch.equal(model(IMAGES), plain)
    with vtc.compressed(model, "random(at=vision, layer=1, keep=1.0)"):
        assert torch.equal(model(IMAGES), plain)


def test_an_open_clip_model_is_pruned_on_its_image_side() -> None:
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 4, "head_width": 16}
    text = {"context_length": 7, "vocab_size": 20, "width": 32, "heads": 2, "layers": 2}
    clip = open_clip.model.CLIP(16, vision, text).eval()
    images, words = IMAGES[:1], torch.zeros(1, 7, dtype=torch.long)
    plain, named = clip.encode_image(images), clip.encode_text(words)
    vtc.compress(clip, "random(at=vision, layer=2, keep=10)")
    assert not torch.equal(clip.encode_image(images), plain)
    assert torch.equal(clip.encode_text(words), named)
    assert [len(k) for k in clip.vtc.report.steps[0].kept] == [10]
    vtc.restore(clip)
    assert torch.equal(clip.encode_image(images), plain)


def test_refusals() -> None:
    model = build("timm")
    assert not is_vit(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"no language model.*at='vision'"):
        vtc.compress(model, "random", keep=3)
    with pytest.raises(ValueError, match=r"layer=4 is out of range.*0 to 3"):
        VitAdapter(model, [Norm(layer=4, keep=3)])
    with pytest.raises(ValueError, match="needs keep"):
        VitAdapter(model, [Norm(layer=1)])

    class Text(Norm):
        signals = (DecoderHidden(),)

    class Later(Norm):
        signals = (EncoderKeys(layer=2),)

    class Cls(Norm):
        signals = (EncoderAttention(queries="cls"),)

    class Adaptive(Norm):
        adaptive_count = True

    with pytest.raises(NotImplementedError, match="does not have"):
        VitAdapter(model, [Text(layer=1, keep=3)])
    with pytest.raises(ValueError, match="comes later"):
        VitAdapter(model, [Later(layer=2, keep=3)])
    for kind in NO_CLASS_TOKEN:
        with pytest.raises(NotImplementedError, match="no class token"):
            VitAdapter(build(kind), [Cls(layer=1, keep=3)])
    with pytest.raises(NotImplementedError, match="varying"):
        VitAdapter(model, [Adaptive(layer=1, keep=3)])


@torch.enable_grad()
def test_training_and_checkpointing() -> None:
    model = build("timm")
    with vtc.compressed(model, "random(at=vision, layer=1, keep=4)"):
        model(IMAGES).sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        model.set_grad_checkpointing()
        loss = model(IMAGES).sum()
        with pytest.raises(NotImplementedError, match="gradient checkpointing"):
            loss.backward()


@pytest.mark.parametrize("kind", ["timm", "open_clip"])
def test_torch_compile_before_and_after_wrapping(kind: str) -> None:
    model, spec = build(kind), "random(at=vision, layer=1, keep=6)"
    plain = model(IMAGES)
    with vtc.compressed(model, spec):
        pruned = model(IMAGES)
    torch._dynamo.reset()
    before = torch.compile(model, backend="eager")
    assert torch.allclose(before(IMAGES), plain, atol=1e-5)
    assert vtc.compress(before, spec) is before
    assert torch.allclose(before(IMAGES), pruned, atol=1e-5)  # not the graph that was made without hooks
    assert model.vtc.report is not None
    vtc.restore(before)
    assert not hasattr(model, "vtc")
    assert torch.allclose(before(IMAGES), plain, atol=1e-5)
    after = torch.compile(vtc.compress(model, spec), backend="eager")
    assert torch.allclose(after(IMAGES), pruned, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("kind", ["timm", "open_clip"])
def test_a_wrapped_one_is_not_copied(kind: str, duplicate: Any) -> None:
    model = vtc.compress(build(kind), "random(at=vision, layer=1, keep=6)")
    with pytest.raises(TypeError, match=r"call vtc\.restore\(model\) first"):
        duplicate(model)


@pytest.mark.parametrize("kind", KINDS)
def test_entry_points_beside_forward(kind: str) -> None:
    """Intermediate features are those of the tokens left in each block; a full grid of them is refused."""
    model, prefix = build(kind), prefix_of(kind)
    blocks = model.transformer.resblocks if kind == "open_clip" else model.blocks
    outputs: list[Tensor] = []
    layout = "output_fmt" if kind != "open_clip" else "image_output_fmt"
    layout = layout if layout in inspect.signature(model.forward_intermediates).parameters else "output_fmt"
    with vtc.compressed(model, "random(at=vision, layer=2)", keep=5):
        hooks = [b.register_forward_hook(lambda m, a, y: outputs.append(y)) for b in blocks]
        found = model.forward_intermediates(IMAGES, **{layout: "NLC"}, intermediates_only=True)
        found = found["image_intermediates"] if isinstance(found, dict) else found
        assert [f.shape[1] for f in found] == [16, 16, 5, 5]
        for mine, theirs in zip(found, outputs, strict=True):
            assert torch.equal(mine, theirs[:, prefix:])
        assert model.vtc.report.tokens_kept == 15
        for hook in hooks:
            hook.remove()
        with pytest.raises(NotImplementedError, match="NLC"):
            model.forward_intermediates(IMAGES)
        if kind != "open_clip":
            left = model.forward_features(IMAGES)
            assert left.shape[1] == prefix + 5
            assert torch.equal(model.forward_head(left), model(IMAGES))
            assert model.get_intermediate_layers(IMAGES, n=1)[0].shape[1] == 5
            with pytest.raises(NotImplementedError, match="NLC"):
                model.get_intermediate_layers(IMAGES, n=1, reshape=True)
            with pytest.raises(NotImplementedError, match="attn_mask"):
                model(IMAGES, attn_mask=torch.ones(1, 1, 16 + prefix, 16 + prefix, dtype=torch.bool))
    assert "forward_intermediates" not in vars(model)
    assert model.forward_intermediates(IMAGES)


def test_the_image_side_of_a_whole_open_clip_model() -> None:
    """encode_image prunes, encode_text is as ever, and so is what the logits are made of."""
    tower = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 4, "head_width": 12}
    small = {"embed_dim": 32, "vision_cfg": tower,
             "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}}  # fmt: skip
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**small).eval()
    text = torch.randint(1, 50, (2, 8))
    plain, words = model.encode_image(IMAGES), model.encode_text(text)
    with vtc.compressed(model, "random(at=vision, layer=2)", keep=5):
        pruned = model.encode_image(IMAGES)
        assert model.vtc.report.tokens_kept == 15
        assert torch.equal(model.encode_text(text), words)
        assert torch.equal(model(IMAGES, text)[0], nn.functional.normalize(pruned, dim=-1))
    assert (pruned - plain).abs().max() > 1e-3
