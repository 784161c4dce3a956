"""vtc check on families whose pictures come as codes, in views, with places, or are fed at several layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING
from versions import ENCODES_FIRST, known

import vtc
from vtc.eval.check import check_job
from vtc.eval.check.check_job import CheckOptions, run_check, small_model
from vtc.eval.check.contracts import CONTRACTS
from vtc.eval.check.prompts.build_prompts import kind_of
from vtc.eval.check.results import EXACT, FINE, REFUSED
from vtc.eval.check.tiny_model.config_source import config_of
from vtc.eval.check.tiny_model.shrink import completed, shrink
from vtc.models.layout.model_parts import locate

TYPES = (
    "lighton_ocr",
    "molmo2",
    "step3p7",
    "deepseek_ocr2",
    "emu3",
    "apertus1p5",
    "gemma4_unified",
    "granite_docling",
    "granite4_vision",
)
# Gemma 4 without the inputs of each layer that its small models have
LARGE = {
    "hidden_size_per_layer_input": 0,
    "use_bidirectional_attention": "vision",
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 2,
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 704,
}
SHORT = ("keep=1.0, bit for bit", "pruned = masked", "a row of text", "videos", "second turn", "beams")


def usable(kind: str) -> str:
    if not ENCODES_FIRST and kind in ("emu3", "gemma4"):
        pytest.skip(f"{kind} came to be what it is in a newer transformers")
    return known(kind)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_job, "CONTRACTS", {name: CONTRACTS[name] for name in SHORT})


def exact(model: str, *stages: str) -> None:
    result = run_check(CheckOptions(model, ("sdpa",), stages, tokens=2))
    assert [o for o in result.outcomes if o.status != EXACT] == []
    assert result.exit_code == FINE


@pytest.mark.share(3)
@pytest.mark.parametrize("kind", TYPES)
def test_family(kind: str) -> None:
    exact(usable(kind), "input", "decoder")


def test_large_gemma4(tmp_path: Path) -> None:
    config = CONFIG_MAPPING[usable("gemma4")](text_config=LARGE, vision_config={"standardize": True})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    model, _, _ = small_model(config_of(str(tmp_path)))
    heads = {(a.is_sliding, a.k_proj.out_features // a.head_dim) for a in (x.self_attn for x in locate(model).layers)}
    assert heads == {(True, 2), (False, 1)}, "fewer keys where there is no window"
    exact(str(tmp_path), "input", "decoder")


def test_beams_that_transformers_gives_the_wrong_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        check_job, "CONTRACTS", {n: CONTRACTS[n] for n in ("pruned = masked", "beams, several pictures")}
    )
    result = run_check(CheckOptions(usable("granite4_vision"), ("sdpa",), ("input",), tokens=2))
    assert [o.status for o in result.outcomes] == [EXACT, REFUSED]
    assert "mixes up the pictures" in result.outcomes[1].why


def test_beams_with_wrong_pictures_of_one_size_are_refused_too() -> None:
    model, prompts, _ = small_model(config_of(usable("granite4_vision")))
    inputs = prompts["ragged"].inputs  # one size, two in a sample
    with torch.no_grad(), vtc.compressed(model, "random(keep=0.5)"):
        model.generate(**inputs, max_new_tokens=2)
        with pytest.raises(NotImplementedError, match="mixes up the pictures"):
            model.generate(**inputs, max_new_tokens=2, num_beams=2)


def small(kind: str) -> tuple[Any, list[int]]:
    kinds = kind_of(config_of(usable(kind)))
    return shrink(completed(config_of(kind), kinds.defaults), kinds.geometry)


def test_small_models_have_every_kind_of_layer() -> None:
    config, layers = small("step3p7")
    text = config.text_config
    pairs = set(zip(text.layer_types, text.mlp_layer_types, strict=True))
    assert len(pairs) == 4
    assert layers == [0, 1, 2, 3, 4, 5]
    heads = [text.per_layer_config[i].num_attention_heads for i in range(len(layers))]
    assert heads == [6 if kind == "sliding_attention" else 4 for kind in text.layer_types], "as much wider as before"
    assert text.sliding_window == 12


def test_crops_of_the_fine_route_are_one_item_each() -> None:
    model, prompts, _ = small_model(config_of(usable("granite_docling")))
    inputs = prompts["ragged"].alone(0).inputs
    crops, one = inputs["pixel_values"].shape[1], model.model.image_seq_len
    fine = 4 * one * crops
    ids = torch.tensor([[3, *[prompts.tokens.image] * fine, 4, 5]])
    route = {"tile_fine_mask": torch.ones(1, dtype=torch.bool), **{k: v for k, v in inputs.items() if "pixel" in k}}
    with torch.no_grad(), vtc.compressed(model, "random(keep=8)"):
        model(input_ids=ids, **route)
        assert [len(span.columns) for span in model.vtc.report.spans] == [4 * one] * crops
        assert model.vtc.report.tokens_kept == 8 * crops


def test_a_configuration_that_names_no_placeholder_is_refused() -> None:
    model, _, _ = small_model(config_of("llava"))
    model.config.image_token_id = None
    with pytest.raises(NotImplementedError, match="names no image_token_id"):
        vtc.compress(model, "random(keep=0.5)")


def test_codes_tell_pictures_apart() -> None:
    model, prompts, _ = small_model(config_of(usable("emu3")))
    first, second = prompts["ragged"].media[0][0], prompts["ragged"].media[1][0]
    with torch.no_grad():
        inputs = prompts.kind.collate([[first], [second]])
        codes = model.model.get_image_tokens(inputs["pixel_values"], inputs["image_sizes"]).view(2, -1)
    assert len(codes.unique()) > 4
    assert not torch.equal(codes[0], codes[1])
