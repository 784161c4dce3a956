"""On every model type, without weights: tokens, FLOPs by part and KV bytes are those of a real prefill."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from plan_world import inputs, real, small_config, weightless

from vtc.eval.check.prompts.build_prompts import KINDS
from vtc.eval.check.tiny_model.token_ids import tokens_of
from vtc.eval.cost.flops import counting
from vtc.eval.cost.model_work import ModelWork
from vtc.eval.cost.operators import flops_of
from vtc.eval.plan.picture import read_picture
from vtc.models.stock.call_arguments import cache_of

pytestmark = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="stock processors are of 5.23 on"
)
# what these multiply outside tower, projector, decoder and output layer: per-layer embeddings, resampled positions
OUTSIDE = {"gemma3n": 0.02, "minicpmv4_6": 0.02, "minicpm_ocr": 0.02}
BY_KIND = "ernie4_5_vl_moe"  # its experts depend on the kind of token
UNTOUCHED_FAILS = {"idefics2": "gradient", "granite4_vision": "no cache in its output"}


@cache
def counted(kind: str) -> tuple[int, int, Any]:
    """FLOPs of a real prefill but of all logits beside the last, bytes of its cache, and the inputs."""
    given, model = inputs(kind), real(kind)
    with counting() as counter:
        out = model(**given, use_cache=True, logits_to_keep=1)
    held = [t for layer in cache_of(out).layers for v in vars(layer).values() for t in flat(v)]
    config = small_config(kind).get_text_config()
    more = (out.logits.shape[1] - 1) * 2 * config.hidden_size * config.vocab_size
    return counter.get_total_flops() - more, sum(t.numel() * t.element_size() for t in held), given


def flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, dict):
        return [t for v in value.values() for t in flat(v)]
    return [value] if isinstance(value, torch.Tensor) else []


@pytest.mark.share(3)
@pytest.mark.parametrize("kind", [k for k in KINDS if k != BY_KIND and k not in UNTOUCHED_FAILS])
def test_a_plan_counts_what_a_real_prefill_does(kind: str) -> None:
    """FLOPs exactly (2% where a model multiplies elsewhere too), bytes exactly."""
    flops, held, given = counted(kind)
    work, length = ModelWork(weightless(kind)), given["input_ids"].shape[1]
    tower = work.tower(given)
    parts = [tower.tower(), tower.projector, work.prefill([length] * work.depth), work.head()]
    assert sum(map(flops_of, parts)) == pytest.approx(flops, rel=OUTSIDE.get(kind, 1e-9))
    assert work.kv_bytes([length] * work.depth) == held


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_a_picture_are_those_that_the_tower_makes(kind: str) -> None:
    given = inputs(kind)
    picture = read_picture(given, small_config(kind), (70, 50))
    assert picture.tokens == int((given["input_ids"][0] == tokens_of(small_config(kind)).image).sum())
    assert sum(ModelWork(weightless(kind)).tower(picture.inputs).lengths) == picture.tokens
    assert picture.text == given["input_ids"].shape[1] - picture.tokens


def test_experts_by_the_kind_of_token_are_refused() -> None:
    if BY_KIND not in transformers.CONFIG_MAPPING:
        pytest.skip("newer")
    with pytest.raises(NotImplementedError, match=f"FLOPs of '{BY_KIND}' are not counted: its experts depend"):
        ModelWork(weightless(BY_KIND)).decoder(8)
