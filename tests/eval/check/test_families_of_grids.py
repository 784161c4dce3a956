"""vtc check on families that are given pictures as patches with a grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from versions import known

import vtc
from vtc.eval.check import check_job
from vtc.eval.check.check_job import CheckOptions, run_check, small_model
from vtc.eval.check.contracts import CONTRACTS, PRUNED
from vtc.eval.check.results import EXACT
from vtc.eval.check.tiny_model.config_source import config_of
from vtc.models.layout.families import FAMILIES
from vtc.pruners.signals import AttentionAhead, DecoderAttention, Signal

TYPES = (
    "glm4v",
    "glm46v",
    "glmga",
    "glm4v_moe",
    "glm_ocr",
    "qwen3_vl_moe",
    "qwen2_5_omni_thinker",
    "qwen3_omni_moe_thinker",
    "cosmos3_omni",
    "cosmos3_edge",
    "cohere_compass",
    "exaone4_5",
    "hyperclovax_vision_v2",
    "minimax_m3_vl",
    "paddleocr_vl",
    "video_llama_3",
    "hunyuan_vl",
    "kimi_k25",
)
IN_THE_TOWER = [kind for family in FAMILIES for kind in family.model_types if not family.no_vision_stage]
# 5.23's own get_video_features of Kimi K2.5 fails on the untouched model
VIDEOS_BROKEN = ("videos",) if Version(transformers.__version__) < Version("5.24") else ()
SHORT = ("keep=1.0, bit for bit", PRUNED, "a row of text", "pictures of other sizes", "videos", "second turn")


@pytest.mark.share(3)
@pytest.mark.parametrize("kind", TYPES)
def test_family(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_job, "CONTRACTS", {name: CONTRACTS[name] for name in SHORT})
    stages = ("vision", "input", "decoder") if kind in IN_THE_TOWER else ("input", "decoder")
    result = run_check(CheckOptions(known(kind), ("sdpa",), stages, tokens=3))
    broken = VIDEOS_BROKEN if kind == "kimi_k25" else ()
    assert [o for o in result.outcomes if o.status != EXACT and o.contract not in broken] == []
    assert all("the untouched model fails" in o.why for o in result.outcomes if o.contract in broken)


@dataclass(kw_only=True)
class Look(vtc.Pruner):
    """Reads a signal before layer 2 or 3, and keeps everything although asked for one token."""

    name: ClassVar[str] = "look"
    stage = "decoder"
    adaptive_count = ragged = True
    layer: int = 2
    keep: int = 1
    signals: tuple[Signal, ...] = ()
    seen: list[Tensor] = field(default_factory=list)

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        self.seen.append(tokens.read(self.signals[0]))
        return torch.where(tokens.valid, torch.arange(tokens.ids.shape[1]), -1)


@pytest.mark.parametrize("kind", ["kimi_k25", "qwen3_vl_moe"])
def test_attention_ahead_is_what_the_layer_then_gives(kind: str) -> None:
    """Kimi's values are narrower than its keys."""
    model, prompts, _ = small_model(config_of(known(kind)))
    looks = Look(layer=2, signals=(AttentionAhead(),)), Look(layer=3, signals=(DecoderAttention(),))
    with torch.no_grad(), vtc.compressed(model, looks):
        model(**prompts["ragged"].inputs)
    ahead, given = (look.seen[0] for look in looks)
    assert ahead.shape == given.shape
    assert torch.allclose(ahead, given, atol=1e-5)
