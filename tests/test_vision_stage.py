"""Pruning inside the tower equals hiding the dropped patches from every later layer of the full tower."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from anatomy import anatomy
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from vision_tools import Norm, features, own_attention, ready, record, rows_of, token_patches, visual_layers
from zoo import FAMILIES, SPECIAL, prompt, shapes_of

import vtc
from vtc.models.locate import Parts, locate
from vtc.models.record import VisionRecord
from vtc.models.vision import VisionSide, hooks_run_twice
from vtc.pruners.base import Merged, Pruner, Stop, VisualTokens, resolve_keep

NAMES = ("llava", "llava_siglip", "gemma3", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
REFUSED = ("llava_onevision", "internvl", "idefics3", "smolvlm", "mistral3", "pixtral")
PLANS = ([(1, 0.4)], [(0, 5)], [(1, 0.7), (2, 0.3)], [(0, 0.9), (2, 1)])
CELLS = [
    (name, shape, "video" if shape == "video" else "image")
    for name in NAMES
    for shape in shapes_of(FAMILIES[name], ("sizes", "ragged", "video"))
]


def masked(parts: Parts, inputs: dict[str, Any], modality: str, found: VisionRecord) -> Any:
    """The unpruned tower, in which tokens dropped at a layer are hidden as keys from that layer on."""
    prefix = int(parts.config.vision_config.model_type == "clip_vision_model")
    places = token_patches(parts, inputs, modality, found.layouts())
    total = max(int(p.max()) for p in places) + 1
    rows = 1
    if not parts.family.packed:
        length = 16 * parts.family.unit(parts.config) + prefix
        rows = -(-total // length)
        total = rows * length
    hidden: dict[int, Tensor] = {}
    for step in found.steps:
        keep = torch.zeros(total, dtype=torch.bool)
        starts = [int(p[p >= 0].min()) - prefix for p in places] + [total]
        for i, (place, kept) in enumerate(zip(places, step.kept, strict=True)):
            if torch.isin((place[:, 0] >= 0).nonzero()[:, 0], kept).all():  # whole: its padding patches stay too
                keep[starts[i] : starts[i + 1]] = True
            keep[place[kept].flatten().clamp(min=0)] |= place[kept].flatten() >= 0
        keep = keep.view(rows, -1)
        keep[:, :prefix] = True
        hidden[step.layer] = keep
    done = dict.fromkeys(range(len(visual_layers(parts))), 0)

    def attend(i: int, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float) -> Tensor:
        keep = hidden[max(layer for layer in hidden if layer <= i)]
        n = q.shape[2]
        if parts.family.packed:
            keep = keep[:, done[i] : done[i] + n]
            done[i] += n
        seen = keep[:, None, None] | torch.eye(n, dtype=torch.bool)
        return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling).transpose(1, 2)

    with own_attention(parts, attend, first=min(hidden)):
        return features(parts.core, inputs, modality)


def assert_equal_where_kept(a: Any, b: Any, found: VisionRecord) -> None:
    kept = found.steps[-1].kept
    for x, y, k in zip(rows_of(a), rows_of(b), kept, strict=True):
        assert torch.allclose(x[k], y[k], atol=1e-4), (x[k] - y[k]).abs().max()
    deep = [getattr(o, "deepstack_features", None) or [] for o in (a, b)]
    for x, y in zip(*deep, strict=True):
        if isinstance(x, Tensor):  # transformers 5.5 does not split them
            x, y = x.split(found.lengths), y.split(found.lengths)
        for one, other, k in zip(x, y, kept, strict=True):
            assert torch.allclose(one[k], other[k], atol=1e-4)


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


@torch.no_grad()
def test_windows_without_tokens_vanish() -> None:
    parts, inputs = locate(ready("qwen2_5_vl")), prompt("qwen2_5_vl", "sizes").inputs
    output, found = record(parts, inputs, pruners=[Norm(layer=0, keep=1)])  # layers 0 and 2 have windows of 4 units
    assert [len(k) for k in found.steps[0].kept] == [1] * len(found.lengths)
    assert_equal_where_kept(output, masked(parts, inputs, "image", found), found)


@torch.no_grad()
def test_newlines_fill_up_a_large_budget() -> None:
    parts, inputs = locate(ready("llava_next")), prompt("llava_next", "one").inputs
    plain = rows_of(features(parts.core, inputs))
    output, found = record(parts, inputs, pruners=[Norm(layer=1, keep=67), Norm(layer=2, keep=64)])
    newline = found.layouts()[0].newline
    assert int(newline.sum()) == 6
    first, second = (s.kept[0] for s in found.steps)
    assert torch.equal(newline[first].nonzero().numel() * torch.ones(1), torch.tensor([3.0]))
    assert torch.equal(first[newline[first]], newline.nonzero()[:3, 0])
    assert torch.equal(second, (~newline).nonzero()[:, 0])
    assert torch.equal(rows_of(output)[0], plain[0])  # all of the picture is still there


@dataclass(kw_only=True)
class Given(Pruner):
    """Keeps given ids of each span, at the input stage."""

    name: ClassVar[str] = "given"
    ids: Any = None

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        rows = [torch.isin(tokens.ids[row], self.ids[span]).nonzero()[:, 0] for row, span in enumerate(tokens.span)]
        return torch.stack(rows)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_generation_equals_a_masked_tower_and_dropped_placeholders(name: str) -> None:
    model, inputs = ready(name), prompt(name, "ragged").inputs
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "suppress_tokens": SPECIAL}
    vtc.compress(model, "random(at=vision, layer=1, keep=0.6) + random(at=vision, layer=2, keep=0.3)")
    pruned = model.generate(**inputs, **options)
    logits, report = model(**inputs).logits, model.vtc.report
    vtc.restore(model)
    plain = model(**inputs).logits
    parts = locate(model)
    found = VisionRecord("image", [len(s.columns) for s in report.spans], lambda: report.layouts)
    found.steps = [s for s in report.steps if s.stage == "vision"]
    assert [s.layer for s in found.steps] == [1, 2]
    reference = masked(parts, inputs, "image", found)
    method = parts.core.get_image_features
    parts.core.get_image_features = functools.wraps(method)(lambda *_, **__: reference)
    vtc.compress(model, Given(ids=found.steps[-1].kept, keep=0.3))
    want = model(**inputs).logits
    real = inputs["attention_mask"].bool()
    for s in report.spans:
        real[s.sample, s.columns] = False
    assert torch.allclose(logits[real], want[real], atol=2e-4)
    assert (logits[real] - plain[real]).abs().max() > 1e-2
    # generate() calls the feature method by itself, so it sees the patched one too
    assert torch.equal(pruned, model.generate(**inputs, **options))


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
def test_gradients_and_checkpointing(name: str) -> None:
    def gradients(checkpointing: bool) -> tuple[Tensor, dict[str, Tensor]]:
        model = ready(name)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        parts, inputs = locate(model), prompt(name, "ragged").inputs
        side = VisionSide(parts, [(Norm(keep=2), Stop("vision", 1, 2))]).attach()
        if checkpointing and hooks_run_twice(visual_layers(parts)[0]):
            with pytest.raises(NotImplementedError, match="upgrade transformers"):
                side.record("image", inputs, lambda: features(parts.core, inputs))
            pytest.skip("this version of transformers checkpoints hooks too")
        output, found = side.record("image", inputs, lambda: features(parts.core, inputs))
        assert found is not None
        loss = sum((x[k] ** 2).mean() for x, k in zip(rows_of(output), found.steps[0].kept, strict=True))
        loss.backward()
        side.detach()
        return loss.detach(), {n: p.grad for n, p in parts.tower.named_parameters() if p.grad is not None}

    (loss, grads), (again, checkpointed) = gradients(False), gradients(True)
    assert torch.equal(loss, again)
    assert grads
    assert all(torch.isfinite(g).all() for g in grads.values())  # tiles and windows without tokens give no NaN
    assert grads.keys() == checkpointed.keys()
    assert all(torch.allclose(g, checkpointed[n], rtol=1e-4, atol=1e-6 * g.abs().max()) for n, g in grads.items())


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
@torch.no_grad()
def test_nothing_is_left_behind(name: str) -> None:
    model, inputs = ready(name), prompt(name, "one").inputs
    plain = model(**inputs).logits
    before = anatomy(model)

    class Broken(Norm):
        def score(self, tokens: VisualTokens) -> Tensor:
            raise RuntimeError("broken on purpose")

    parts = locate(model)
    side = VisionSide(parts, [(Broken(keep=3), Stop("vision", 1, 3))]).attach()
    with pytest.raises(RuntimeError, match="broken on purpose"):
        side.record("image", inputs, lambda: features(parts.core, inputs))
    side.detach()
    assert anatomy(model) == before
    side.attach()
    assert torch.equal(model(**inputs).logits, plain)  # the hooks are there, but no call is recorded
    side.detach()
    assert torch.equal(model(**inputs).logits, plain)


@torch.no_grad()
def test_threads_do_not_mix() -> None:
    parts = locate(ready("qwen2_5_vl"))
    prompts = [prompt("qwen2_5_vl", s).inputs for s in ("one", "sizes")]
    pruner = Norm(layer=1, keep=0.3)
    alone = [record(parts, p, pruners=[pruner]) for p in prompts]
    side = VisionSide(parts, [(pruner, pruner.stops(6)[0])]).attach()
    wrong: list[int] = []

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(15):
                output, found = side.record("image", prompts[i], lambda: features(parts.core, prompts[i]))
                same = [torch.equal(a, b) for a, b in zip(rows_of(output), rows_of(alone[i][0]), strict=True)]
                if not all(same) or found.lengths != alone[i][1].lengths:
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    side.detach()
    assert not wrong


@pytest.mark.parametrize("name", REFUSED)
def test_families_that_cannot_say_so(name: str) -> None:
    with pytest.raises(NotImplementedError, match=r"norm.*(tower|class).*use the input stage"):
        VisionSide(locate(ready(name)), [(Norm(keep=3), Stop("vision", 1, 3))])


def test_refused_layers_and_methods() -> None:
    parts = locate(ready("llava"))  # four layers, of which the projector reads the third's output
    for layer in (3, 7, -5):
        with pytest.raises(ValueError, match=rf"layer={layer} is out of range.*0 to 2"):
            VisionSide(parts, [(Norm(keep=3), Stop("vision", layer, 3))])
    with pytest.raises(ValueError, match="needs a layer"):
        VisionSide(parts, [(Norm(keep=3), Stop("vision", None, 3))])
    assert list(VisionSide(parts, [(Norm(keep=3), Stop("vision", -2, 3))]).stops) == [2]

    class Merging(Norm):
        merges = True

        def select(self, tokens: VisualTokens, k: int) -> Merged:
            return Merged(tokens.ids[:, :k], tokens.features[:, :k])

    assert list(VisionSide(parts, [(Merging(keep=3), Stop("vision", 1, 3))]).stops) == [1]
    for name in ("gemma3", "qwen2_5_vl"):
        with pytest.raises(NotImplementedError, match=r"merges tokens.*one patch a token.*input stage"):
            VisionSide(locate(ready(name)), [(Merging(keep=3), Stop("vision", 1, 3))])
    parts.config.vision_feature_select_strategy = "full"
    with pytest.raises(NotImplementedError, match="class token"):
        VisionSide(parts, [(Norm(keep=3), Stop("vision", 1, 3))])
