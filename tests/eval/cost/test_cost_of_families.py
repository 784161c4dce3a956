"""The cost model on every family that vtc check has prompts for: torch's counts and the cache's bytes, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from vtc.eval.check.prompts.build_prompts import KINDS, kind_of
from vtc.eval.check.tiny_model.shrink import completed, shrink
from vtc.eval.cost.flops import counting
from vtc.eval.cost.prefill_cost import lm_cost
from vtc.eval.vlm.encode_once import core_of
from vtc.models.stock.call_arguments import cache_of, given
from vtc.models.stock.transformers_api import new_cache

LENGTH = 20  # longer than the small models' windows
UNCOUNTED = {
    "mixture-of-experts": (
        "qwen3_5_moe", "qwen4_exp", "aria", "nemotron_h_omni", "muse_spark", "ernie4_5_vl_moe", "unlimited_ocr",
        "step3p7", "deepseek_ocr2", "qwen3_vl_moe", "glm4v_moe", "qwen3_omni_moe_thinker", "minimax_m3_vl", "kimi_k25",
    ),
    "recurrent and convolution": ("qwen3_5", "lfm2_vl", "lfm3_vl", "minicpmv4_6", "minicpmv4_7", "minicpm_ocr"),
    "several streams": ("gemma3n",),
}  # fmt: skip
REFUSED = {family: why for why, families in UNCOUNTED.items() for family in families}


def model_of(family: str, **text: Any) -> Any:
    """A small model without weights; Gemma 4's looks at the values of its input ids."""
    if family not in CONFIG_MAPPING:
        pytest.skip("newer")
    config = CONFIG_MAPPING[family]()
    for name, value in text.items():
        setattr(config.text_config, name, value)
    kind = kind_of(config)
    small, _ = shrink(completed(config, kind.defaults), kind.geometry)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(small).eval()
    return model.to_empty(device="cpu") if family.startswith("gemma4") else model


def prefill(model: Any) -> tuple[list[int], int]:
    """FLOPs of each decoder layer, and bytes in the cache behind them."""
    lm = getattr(core_of(model), "language_model", None) or core_of(model).text_model
    ids = torch.zeros(1, LENGTH, dtype=torch.long, device=next(lm.parameters()).device)
    with counting() as counter:
        out = lm(input_ids=ids, use_cache=True, **given(lm, cache=new_cache(lm.config)))
    counts = counter.get_flop_counts()
    layers = [sum(counts[f"{type(lm).__name__}.layers.{i}"].values()) for i in range(len(lm.layers))]
    kept = [x for layer in cache_of(out).layers for x in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    return layers, sum(x.numel() * x.element_size() for x in kept if x is not None)


@pytest.mark.parametrize("family", [f for f in KINDS if f not in REFUSED])
def test_the_formula_is_what_torch_counts(family: str) -> None:
    agrees(model_of(family))


def test_layers_that_read_keys_of_others_hold_none() -> None:
    model = model_of("gemma4", num_kv_shared_layers=2)
    agrees(model)
    assert lm_cost(model).kv[-2:] == (0, 0)


def agrees(model: Any) -> None:
    cost, (layers, held) = lm_cost(model), prefill(model)
    assert [cost.flops([0] * i + [LENGTH] + [0] * (cost.depth - i - 1)) - 2 * cost.head for i in range(cost.depth)] == (
        layers
    )
    assert cost.kv_bytes([LENGTH] * cost.depth) == held
    assert cost.head == model.get_output_embeddings().weight.numel()


@pytest.mark.parametrize("family", REFUSED)
def test_what_the_formula_does_not_cover_is_refused(family: str) -> None:
    with pytest.raises(NotImplementedError, match=REFUSED[family]):
        lm_cost(model_of(family))
