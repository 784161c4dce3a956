"""Features that enter a text model at its layers: behind the last one too, and where the input holds nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

import vtc
from vtc.eval.check.check_job import small_model
from vtc.eval.check.contracts import keeping_all, masked
from vtc.eval.check.model_under_test import Setting, Subject
from vtc.eval.check.tiny_model.config_source import config_of
from vtc.eval.vlm.encode_once import join_outputs
from vtc.models.layout.model_parts import locate
from vtc.pipeline_text import parse
from vtc.pruners.base import Pruner

LAYERS = 3  # as many as are fed


@pytest.fixture
def granite() -> tuple[Any, Any]:
    if "granite4_vision" not in CONFIG_MAPPING:
        pytest.skip("this transformers has no Granite 4 vision")
    model, prompts, _ = small_model(config_of("granite4_vision"))
    return model, prompts


@pytest.mark.parametrize("kind", ["qwen3_vl", "granite_docling"])
@pytest.mark.parametrize("pipeline", ["random(keep=0.5, seed=5)", "random(layer=2, keep=0.5, seed=5)"])
def test_what_is_fed_behind_the_last_layer(kind: str, pipeline: str) -> None:
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    model, prompts, _ = small_model(config_of(kind), depth=(LAYERS, 4))
    parts = locate(model)
    fed: list[int] = []
    handle = parts.lm.register_forward_pre_hook(
        lambda lm, args, kwargs: fed.append(len(kwargs.get("deepstack_visual_embeds") or ())), with_kwargs=True
    )
    model(**prompts["ragged"].inputs)
    handle.remove()
    assert fed == [LAYERS] == [len(parts.layers)], "the last of the features come behind the last layer"
    subject, setting = Subject("eager", parts, parts, prompts, 2), Setting("here", parse(pipeline))
    with torch.no_grad():
        assert keeping_all(subject, setting) == 0
        assert masked("ragged")(subject, setting) < 1e-4


@dataclass
class Seen(Pruner):
    """Keeps the first tokens, and remembers what all of them were."""

    name: ClassVar[str] = "seen"
    keep: int | float | None = 0.5
    layer: int | None = None
    features: list[Tensor] = field(default_factory=list)

    def select(self, tokens: Any, k: int) -> Tensor:
        self.features.append(tokens.features)
        return torch.arange(k).expand(len(tokens.features), k)


def test_methods_see_features_where_the_input_has_none(granite: tuple[Any, Any]) -> None:
    model, prompts = granite
    inputs = prompts["singles"].inputs
    at_input, at_layer = Seen(), Seen(layer=0)
    for pruner in (at_input, at_layer):
        with torch.no_grad(), vtc.compressed(model, pruner):
            model(**inputs)
    assert float(at_input.features[0].abs().amax(-1).min()) > 0, "no token is all zeros"
    assert torch.allclose(at_input.features[0], at_layer.features[0]), "the same as before the layer that is fed first"


def test_merging_where_the_input_holds_nothing_is_refused(granite: tuple[Any, Any]) -> None:
    model, prompts = granite
    with pytest.raises(NotImplementedError, match=r"pool merges visual tokens at the input.*layer="):
        vtc.compress(model, "pool(keep=0.5)")
    parts = locate(model)
    subject = Subject("eager", parts, parts, prompts, 2)
    with torch.no_grad():
        assert masked("ragged")(subject, Setting("later", parse("pool(layer=2, keep=0.25)"))) < 1e-4


def test_features_that_were_encoded_one_by_one(granite: tuple[Any, Any]) -> None:
    model, prompts = granite
    inputs, kind = prompts["singles"].inputs, prompts.kind
    with torch.no_grad():
        want = model(**inputs).logits
        parts = [kind.collate([own]) for own in prompts["singles"].media if own]
        joined = join_outputs([model.model.get_image_features(**part, return_dict=True) for part in parts])
        text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        got = model(**text, mm_encoder_outputs={"image": joined}).logits
        with vtc.compressed(model, "random(keep=1.0)"):
            again = model(**text, mm_encoder_outputs={"image": joined}).logits
    assert torch.allclose(got, want, atol=1e-5)
    assert torch.equal(again, got)
