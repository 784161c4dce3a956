"""vtc check on families whose pictures have one resolution; what an item is where frames and crops come joined."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from versions import ENCODES_FIRST, known

import vtc
from vtc.eval.check.check_job import CheckOptions, run_check, small_model
from vtc.eval.check.results import EXACT, FINE
from vtc.eval.check.tiny_model.config_source import config_of
from vtc.models.layout.families import FAMILIES

TYPES = (
    "vipllava",
    "video_llava",
    "llava_next_video",
    "aya_vision",
    "cohere2_vision",
    "deepseek_vl",
    "deepseek_vl_hybrid",
    "fast_vlm",
    "got_ocr2",
    "janus",
    "ovis2",
    "paligemma",
    "shieldgemma2",
    "aria",
    "idefics2",
    "qianfan_ocr",
    "perception_lm",
)
IN_THE_TOWER = [kind for family in FAMILIES for kind in family.model_types if not family.no_vision_stage]
# what older transformers does wrong by itself (tests/versions.py)
OLD = () if ENCODES_FIRST else ("beams, several pictures", "second turn")


TIMM = ("fast_vlm", "perception_lm")  # in older transformers under eager attention only


def usable(kind: str) -> str:
    if kind == "video_llava" and not ENCODES_FIRST:
        pytest.skip("pictures were called pixel_values_images")
    return known(kind)


@pytest.mark.share(3)
@pytest.mark.parametrize("kind", TYPES)
def test_family(kind: str) -> None:
    stages = ("vision", "pipeline") if kind in IN_THE_TOWER else ("pipeline",)
    result = run_check(CheckOptions(usable(kind), ("eager" if kind in TIMM else "sdpa",), stages, tokens=2))
    assert [o for o in result.outcomes if o.status != EXACT and o.contract not in OLD] == []
    assert result.exit_code == FINE


def test_paligemma_over_layers_with_a_window(tmp_path: Path) -> None:
    """PaliGemma 2, whose text model knows eager attention only."""
    text = {"model_type": "gemma2", "num_hidden_layers": 26}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "paligemma", "text_config": text}))
    result = run_check(CheckOptions(str(tmp_path), ("eager",), ("decoder",), tokens=2))
    assert "sliding attention" in result.about
    assert [o for o in result.outcomes if o.status != EXACT and o.contract not in OLD] == []


@pytest.mark.parametrize(
    ("kind", "shape", "lengths"),
    [
        ("video_llava", "video", [16, 51, 51, 51, 51]),  # 3 frames of 16 patches and a class token
        ("llava_next_video", "video", [70, 12, 12, 12, 12]),
        ("perception_lm", "video", [16, 16, 16, 48, 48, 48, 48]),  # tiles of a picture, then whole videos
        ("idefics2", "ragged", [9, 9, 9, 9]),  # the second row has two pictures
    ],
)
def test_an_int_is_tokens_of_each_item(kind: str, shape: str, lengths: list[int]) -> None:
    model, prompts, _ = small_model(config_of(usable(kind)))
    with torch.no_grad(), vtc.compressed(model, "random", keep=4):
        model(**prompts[shape].inputs)
        report = model.vtc.report
    assert [len(span.columns) for span in report.spans] == lengths
    assert [len(kept) for kept in report.steps[0].kept] == [4] * len(lengths)


def test_beams_of_a_sample_with_two_videos_that_no_version_repeats_in_order() -> None:
    model, prompts, _ = small_model(config_of(usable("perception_lm")))
    prompt = prompts["video"]
    assert len(prompt.media[2]) == 2
    with torch.no_grad(), vtc.compressed(model, "random", keep=4):
        with pytest.raises(NotImplementedError, match="mixes up the videos"):
            model.generate(**prompt.alone(2).inputs, max_new_tokens=2, num_beams=2)
        model.generate(**prompt.alone(0).inputs, max_new_tokens=2, num_beams=2)
