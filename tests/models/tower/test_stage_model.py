"""Pruning inside the tower of a whole model: generation, gradients, checkpoints, failures, threads."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from anatomy import anatomy
from torch import Tensor
from vision_reference import NAMES, masked
from vision_tools import Norm, features, pad_segments, ready, record, rows_of
from zoo import SPECIAL, prompt

import vtc
from vtc.models.layout.model_parts import locate
from vtc.models.layout.vision_call_record import VisionRecord
from vtc.models.tower.tower_hooks import VisionSide
from vtc.pruners.base import Pruner, Stop
from vtc.pruners.visual_tokens import VisualTokens


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


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl"])
def test_gradients_and_checkpointing(name: str, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if padded:
        pad_segments(monkeypatch)

    def gradients(checkpointing: bool) -> tuple[Tensor, dict[str, Tensor]]:
        model = ready(name)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        parts, inputs = locate(model), prompt(name, "ragged").inputs
        side = VisionSide(parts, [(Norm(keep=2), Stop("vision", 1, 2))]).attach()
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
