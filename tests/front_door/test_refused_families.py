"""Every image-text model of transformers is either under ``vtc check``, or refused when it is wrapped, in words."""

from __future__ import annotations

import re
from typing import Any

import pytest
from places import ROOT
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as ALL
from versions import known

from vtc.eval.check.methods_on_model import methods_on
from vtc.eval.check.prompts.build_prompts import KINDS
from vtc.models.layout.families import FAMILIES
from vtc.models.layout.family import NO_PATCHES
from vtc.models.try_without_weights import refuse_unknown

# and a pattern of the reason, which may differ by version
REFUSED = {
    "blip": "by cross-attention",
    "blip-2": "has a generate\\(\\) of its own",
    "chameleon": "composite and text model in one",
    "diffusion_gemma": "is inside DiffusionGemmaModel",
    "dots3_note": "in its cache",
    "evolla": "takes no pictures beside text",
    "florence2": "it is an encoder-decoder",
    "git": "no module that is built like a VLM's",
    "glm5_next": "in its cache",
    "hy_v4_vl": "in its cache",
    "idefics": "by cross-attention",
    "inkling2": "in its cache",
    "inkling2_loop": "in its cache",
    "inkling_mm_model": "in its cache",
    "instructblip": "has a generate\\(\\) of its own",
    "instructblipvideo": "has a generate\\(\\) of its own",
    "kosmos-2": "has a generate|cross-attention",
    "kosmos-2.5": "image_token_id|image_embeds|cross-attention",
    "llama4": "attends by another rule",
    "mistral4": "no module that is built like a VLM's",
    "mistral_large4": "in its cache",
    "mllama": "by cross-attention",
    "pi0": "is inside PI0Model",
    "pix2struct": "it is an encoder-decoder",
    "pp_formulanet": "it is an encoder-decoder",
    "qwen4_exp": "in its cache",
    "t5gemma2": "it is an encoder-decoder",
    "udop": "it is an encoder-decoder",
    "vision-encoder-decoder": "it is an encoder-decoder",
}
# of which transformers can build no model by default
COMPLETED: dict[str, dict[str, Any]] = {
    "chameleon": {"vocabulary_map": {"<image>": 8711, **{f"IMGIMG{c}Z": 10 + ord(c) for c in "ABC"}}},
    "diffusion_gemma": {"text_config": {"num_experts": 2, "top_k_experts": 1, "moe_intermediate_size": 32}},
}
BY_CHECK = ("qwen4_exp",)  # tests/eval/check/test_families_with_recurrence.py


def test_none_is_forgotten() -> None:
    assert set(ALL) - set(KINDS) - set(REFUSED) == set()
    assert set(REFUSED) & set(KINDS) == set(BY_CHECK)


def test_the_page_names_them_all() -> None:
    checked, refused = (ROOT / "docs" / "families.md").read_text("utf-8").split("## Refused when wrapped")
    named = set(re.findall(r"`([\w.-]+)`", checked.split("## What has been checked")[1].split("\n\n")[2]))
    assert named == set(KINDS) - set(BY_CHECK)
    assert set(re.findall(r"`([\w.-]+)`", refused.split("\n\n")[1])) - {"generate"} == set(REFUSED)
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())  # a line may end within the words
    assert f"[{len(named)} model types](docs/families.md)" in readme


@pytest.mark.parametrize("kind", sorted(set(REFUSED) - set(BY_CHECK)))
def test_it_says_why_before_weights_are_read(kind: str) -> None:
    with pytest.raises(NotImplementedError) as told:
        refuse_unknown(CONFIG_MAPPING[known(kind)](**COMPLETED.get(kind, {})))
    assert re.search(REFUSED[kind], str(told.value))
    assert len(str(told.value).splitlines()) == 1


def test_sparse_layers_of_minimax_are_refused() -> None:
    """Its default configuration has none, and is exact."""
    config = CONFIG_MAPPING["minimax_m3_vl"]()
    layers = ["full_attention", *["minimax_m3_sparse"] * (config.text_config.num_hidden_layers - 1)]
    text = {"model_type": config.text_config.model_type, "layer_types": layers}
    with pytest.raises(NotImplementedError, match="MiniMaxM3VLSparseCacheLayer in its cache"):
        refuse_unknown(CONFIG_MAPPING["minimax_m3_vl"](text_config=text))


def test_reasons_against_encoder_signals_are_of_families_without_a_row() -> None:
    assert set(NO_PATCHES) <= set(KINDS) - {kind for family in FAMILIES for kind in family.model_types}


@pytest.mark.parametrize("kind", ["aria", "fast_vlm", "fuyu"])
def test_encoder_signals_are_refused_with_the_familys_own_reason(kind: str) -> None:
    told = {one.name: one.why for one in methods_on(kind, "*u*") if one.status == "refused"}
    assert {told[name].partition("because ")[2] or told[name] for name in ("prumerge", "vispruner")} == {
        NO_PATCHES[kind]
    }
    assert told["flowcut"] == f"{kind} can't be pruned inside its vision tower: {NO_PATCHES[kind]}"
