"""``VisualTokens.project`` is the model's own projector, token by token, and ``projector`` its module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from fake import FakeDevice
from torch import Tensor, nn
from vision_tools import ready
from zoo import FAMILIES, prompt, shapes_of

import vtc
from vtc.models.layout.model_parts import locate
from vtc.models.layout.run_projector import project
from vtc.pruners.signals import PreProjector, Projected

pytestmark = pytest.mark.usefixtures("no_grad")
PROJECTING = [name for name in FAMILIES if name != "llava_onevision"]
PRE, POST = PreProjector(), Projected()


@dataclass(kw_only=True)
class Reader(vtc.Pruner):
    """Keeps the first tokens; remembers what it projected, what the model projected, and the module."""

    name: ClassVar[str] = "reader"
    layer: int | None = None
    seen: dict[str, Any] = field(default_factory=dict)

    ragged = True
    signals = (PRE, POST)

    @property
    def stage(self) -> str:  # type: ignore[override]
        return "input" if self.layer is None else "decoder"

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        patches = tokens.read(PRE)
        self.seen = {
            "patches": patches,
            "mine": tokens.project(patches),
            "model's": tokens.read(POST),
            "valid": tokens.valid,
            "module": tokens.projector,
        }
        return torch.arange(k).expand(len(tokens.counts), -1)


def same(seen: dict[str, Any]) -> None:
    mine, theirs = (seen[key][seen["valid"]] for key in ("mine", "model's"))
    assert mine.shape == theirs.shape
    assert theirs.abs().amax(-1).min() > 1e-3, "the features say something"
    assert torch.allclose(mine, theirs, atol=1e-4, rtol=1e-4), (mine - theirs).abs().max()


@pytest.mark.parametrize(
    ("family", "shape"), [(n, s) for n in PROJECTING for s in shapes_of(FAMILIES[n], ("ragged", "sizes", "video"))]
)
def test_project_gives_the_models_own_features(family: str, shape: str) -> None:
    model, spy = ready(family), Reader(keep=1)
    with vtc.compressed(model, spy):
        model(**prompt(family, shape).inputs)
    same(spy.seen)
    assert spy.seen["valid"].sum() == sum(layout.content for layout in model_layouts(family, shape))
    assert any(spy.seen["module"] is m for m in model.modules())
    assert len(list(spy.seen["module"].parameters())) > 0


def model_layouts(family: str, shape: str) -> list[Any]:
    model = ready(family)
    with vtc.compressed(model, "random", keep=0.5):
        model(**prompt(family, shape).inputs)
        return model.vtc.report.layouts


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "mistral3"])
def test_project_behind_the_input_stage(family: str) -> None:
    model, spy = ready(family), Reader(keep=1, layer=2)
    with vtc.compressed(model, spy):
        model(**prompt(family, "ragged").inputs)
    same(spy.seen)


@pytest.mark.parametrize("family", PROJECTING)
def test_any_shape_and_order_of_tokens(family: str) -> None:
    """What is projected is each token by itself: permuted, few, one, in a batch of any rank, of another dtype."""
    model, spy = ready(family), Reader(keep=1)
    with vtc.compressed(model, spy):
        model(**prompt(family, "one").inputs)
    parts, patches, whole = locate(model), spy.seen["patches"][0], spy.seen["mine"][0]
    order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))
    for x, want in (
        (patches[order], whole[order]),
        (patches[:1], whole[:1]),
        (patches[0], whole[0]),
        (patches[:4].unflatten(0, (2, 1, 2)).double(), whole[:4].unflatten(0, (2, 1, 2))),
    ):
        have = project(parts, x)
        assert have.shape == want.shape
        assert torch.allclose(have, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3", "internvl", "idefics3", "mistral3"])
def test_project_under_accelerates_offloading(family: str, how: str, tmp_path: Any) -> None:
    model, spy = ready(family), Reader(keep=1)
    inputs = prompt(family, "ragged").inputs
    with vtc.compressed(model, spy):
        model(**inputs)
    patches, want = spy.seen["patches"], spy.seen["mine"]
    device = torch.device("cpu")
    if how == "cpu":
        model = cpu_offload(model, execution_device=device)
    else:
        model = disk_offload(model, str(tmp_path), execution_device=device)
    parts = locate(model)
    assert any(p.is_meta for p in parts.core.get_submodule(parts.family.projector).parameters())
    assert torch.allclose(project(parts, patches), want, atol=1e-5)


@pytest.mark.parametrize("family", PROJECTING)
def test_project_waits_for_nothing(family: str) -> None:
    model, gpu = ready(family), FakeDevice()
    parts = locate(model)
    unit, width = parts.family.unit(parts.config), parts.config.vision_config.hidden_size
    width = getattr(parts.config.vision_config, "embed_dim", width)  # Qwen2-VL's name for it
    layers = getattr(parts.config, "vision_feature_layer", None)
    width *= len(layers) if isinstance(layers, list) else 1
    gpu.put_model(model)
    x = gpu.put(torch.zeros(2, 5, unit, width))
    with gpu:
        out = project(parts, x)
    assert out.device.type == "cuda"
    assert out.shape == (2, 5, parts.config.get_text_config().hidden_size)


def test_refusals_say_why() -> None:
    model = ready("llava_onevision")
    with pytest.raises(NotImplementedError, match=r"LLaVA-OneVision.*resamples projected features"):
        vtc.compress(model, Reader(keep=1))(**prompt("llava_onevision", "one").inputs)
    qwen, named = locate(ready("qwen2_vl")), locate(ready("llava"))
    with pytest.raises(ValueError, match=r"4 patches per token of Qwen2-VL; got \[5, 1, 32\]"):
        project(qwen, torch.zeros(5, 1, 32))
    named.family = type(named.family).unknown("mine")
    with pytest.raises(NotImplementedError, match="mine"):
        project(named, torch.zeros(5, 1, 48))

    class AskingForTheModule(Reader):
        signals = ()

        def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
            assert isinstance(tokens.projector, nn.Module)
            return torch.arange(k).expand(len(tokens.counts), -1)

    known = {"core": "model", "lm": "model.language_model", "tower": "model.vision_tower"}
    model = ready("llava")
    model.config.model_type = model.model.config.model_type = "mine"
    with pytest.raises(NotImplementedError, match="projector of mine"):
        vtc.compress(model, AskingForTheModule(keep=1), parts=known)(**prompt("llava", "one").inputs)
