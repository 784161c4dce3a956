"""Contract 7: no host sync and no device mixing on the way of a forward, shown on a pretended GPU."""

from __future__ import annotations

import copy

import pytest
import torch
from fake import FakeDevice
from fake_runs import QWEN, READ_THE_DEVICE, counts_of, run
from methods import BOTH_STAGES, IN_THE_TOWER, READING, SETTINGS, Setting, cells
from zoo import FAMILIES, prompt, tiny

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.share(2)
@pytest.mark.parametrize(("setting", "family"), cells(SETTINGS, FAMILIES))
def test_a_forward_waits_for_nothing(setting: Setting, family: str) -> None:
    if any(c.adaptive_count for c in setting.classes):
        pytest.skip("an adaptive count is data and has to be read")
    pipeline = vtc.parse(setting.pruner, keep=setting.keep, **setting.params)
    if family in READ_THE_DEVICE and any(signal.part == "encoder" for p in pipeline for signal in p.signals):
        pytest.skip("the tower does not run here, so there is nothing to read of it")
    run(setting, family, "one", counts_of(family, "one"))


@pytest.mark.share(2)
@pytest.mark.parametrize(
    ("setting", "family"), cells([BOTH_STAGES, READING, IN_THE_TOWER], [f for f in FAMILIES if f not in QWEN])
)
def test_a_batch_waits_for_nothing_but_its_layout(setting: Setting, family: str) -> None:
    """Which sample an image belongs to is read once from a real batch; here images are spread evenly."""
    run(setting, family, "pair", counts_of(family, "pair"))


@pytest.mark.parametrize("family", ["llava_onevision", *QWEN])
def test_a_video_waits_for_nothing(family: str) -> None:
    setting = Setting("random(keep=0.5) + random(layer=2, keep=0.25)")
    run(setting, family, "clip", counts_of(family, "clip"))


def test_the_pretended_gpu_notices_a_sync_and_a_mixed_device() -> None:
    """The tool itself: what must raise does raise."""
    gpu = FakeDevice()
    x = gpu.put(torch.zeros(4, 4))
    with gpu:
        for sync in (x.sum().item, x.tolist, lambda: bool((x > 0).any()), lambda: x[x > 0]):
            with pytest.raises(Exception, match=r"aten\.|Dynamic|data-dependent"):
                sync()
        with pytest.raises(Exception, match="same device"):
            x + torch.ones(4, 4)
        assert (x + torch.ones(4, 4, device="cuda")).device.type == "cuda"
        assert torch.arange(3).tolist() == [0, 1, 2]


def test_only_the_module_that_is_named_is_told_how_many_tokens_a_mask_marks() -> None:
    gpu = FakeDevice()
    x = gpu.put(torch.zeros(4, 5))
    with gpu:
        gpu.marked = {"transformers": 3}
        with pytest.raises(Exception, match=r"aten\.nonzero"):
            x[x > 0]
        gpu.marked = {__name__: 3}
        assert x[x > 0].shape == (15,)
        assert x[x[:, 0] > 0].shape == (3, 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("setting", "family"), cells([BOTH_STAGES, READING, IN_THE_TOWER], FAMILIES))
def test_on_a_real_gpu_the_same_tokens_are_kept(setting: Setting, family: str) -> None:
    model, inputs = tiny(family), prompt(family, "text_row").inputs
    kept = []
    for device in ("cpu", "cuda"):
        copied = copy.deepcopy(model).to(device)
        with vtc.compressed(copied, setting.pruner):
            logits = copied(**{k: v.to(device) for k, v in inputs.items()}).logits.cpu()
            kept.append((logits, copied.vtc.report.steps))
    for a, b in zip(kept[0][1], kept[1][1], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.kept, b.kept, strict=True))
    assert torch.allclose(kept[0][0], kept[1][0], atol=1e-2)
