"""Hooks come and go only while nobody is inside the model: else a generate() would end on the wrong masks."""

from __future__ import annotations

import collections
import threading
import time
from typing import Any

import pytest
import timm
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from zoo import SPECIAL, prompt, tiny

import vtc

SPECS = ("random(keep=0.4)", "random(layer=2, keep=0.3)")


def tokens(model: Any, hold: Any = None) -> torch.Tensor:
    """Eight greedy tokens on a ragged batch; `hold` is called at every one."""

    class Hold(StoppingCriteria):
        def __call__(self, ids: Any, scores: Any, **kwargs: Any) -> Any:
            if hold is not None:
                hold()
            return torch.zeros(len(ids), dtype=torch.bool)

    with torch.no_grad():
        return model.generate(
            **prompt("llava", "text_row").inputs,
            max_new_tokens=8,
            do_sample=False,
            suppress_tokens=SPECIAL,
            stopping_criteria=StoppingCriteriaList([Hold()]),
        )


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("change", [vtc.restore, lambda m: vtc.compress(m, "uniform", keep=3)])
def test_changing_the_hooks_from_inside_a_generate_is_refused_and_changes_nothing(spec: str, change: Any) -> None:
    model = vtc.compress(tiny("llava"), spec)
    right = tokens(model)
    with pytest.raises(RuntimeError, match="in this very thread"):
        tokens(model, lambda: change(model))
    assert torch.equal(tokens(model), right)
    vtc.restore(model)


@pytest.mark.parametrize("spec", SPECS)
def test_restore_waits_for_another_thread(spec: str) -> None:
    model = tiny("llava")
    plain = tokens(model)
    vtc.compress(model, spec)
    right, inside, got = tokens(model), threading.Event(), []

    def work() -> None:
        got.append(tokens(model, lambda: (inside.set(), time.sleep(0.02))))

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    vtc.restore(model)
    thread.join()
    assert torch.equal(got[0], right)
    assert not torch.equal(right, plain)
    assert torch.equal(tokens(model), plain)


def test_swapping_while_another_thread_generates_gives_no_third_kind_of_tokens() -> None:
    model = tiny("llava")
    plain = tokens(model)
    with vtc.compressed(model, SPECS[0]):
        pruned = tokens(model)
    seen, stop = collections.Counter(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                out = tokens(model)
                seen["plain" if torch.equal(out, plain) else "pruned" if torch.equal(out, pruned) else "wrong"] += 1
            except RuntimeError as error:
                seen["refused" if "vtc" in str(error) else str(error)] += 1

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(60):
        vtc.compress(model, SPECS[0])
        time.sleep(0.01)
        vtc.restore(model)
        time.sleep(0.005)
    stop.set()
    thread.join()
    assert set(seen) <= {"plain", "pruned", "refused"}
    assert sum(seen.values()) > 0


def test_a_thread_that_does_not_come_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtc.models.stock.thread_gate.PATIENCE", 0.05)
    model = vtc.compress(tiny("llava"), SPECS[0])
    right, inside, go = tokens(model), threading.Event(), threading.Event()
    got: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: got.append(tokens(model, lambda: (inside.set(), go.wait()))))
    thread.start()
    inside.wait()
    with pytest.raises(RuntimeError, match="another thread has been inside"):
        vtc.restore(model)
    go.set()
    thread.join()
    assert torch.equal(got[0], right)  # the hooks stayed
    vtc.restore(model)


def test_a_bare_vit_is_not_unwrapped_from_inside() -> None:
    net = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64, num_classes=5).eval()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), vtc.compressed(net, "random(at='vision', layer=4)", keep=0.5):
        right = net(pixels)
        handle = net.blocks[6].register_forward_hook(lambda *_: vtc.restore(net) and None)
        with pytest.raises(RuntimeError, match="in this very thread"):
            net(pixels)
        handle.remove()
        assert torch.equal(net(pixels), right)
