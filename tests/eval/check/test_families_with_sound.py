"""vtc check where sound stands beside pictures, and where a model itself says which tokens of a video it feeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

import vtc
from vtc.eval.check import check_job
from vtc.eval.check.check_job import CheckOptions, run_check, small_model
from vtc.eval.check.contracts import CONTRACTS
from vtc.eval.check.masked_reference import greedy_with_positions
from vtc.eval.check.prompts.placeholders import feature_lengths
from vtc.eval.check.prompts.placeholders_of_sound import in_time
from vtc.eval.check.results import EXACT, NOT_RUN, WRONG, Result
from vtc.eval.check.tiny_model.config_source import config_of
from vtc.models.language.composite_hooks import CompositeSide
from vtc.models.layout.model_parts import locate

BESIDE, INSIDE = "sound beside pictures", "sound in videos"
ROWS = (BESIDE, INSIDE, "second turn behind sound")
# what default configurations leave out, and the released ones have
EARS: dict[str, dict[str, Any]] = {
    "gemma4": {},
    "gemma4_unified": {},
    "nemotron_h_omni": {"projection_hidden_size": 64, "projection_bias": False},
}
OMNI = ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")
FAMILIES = (*OMNI, "gemma3n", *EARS, "apertus1p5", "muse_spark")


def known(*types: str) -> list[Any]:
    """Those that the installed transformers has."""
    return [pytest.param(t, marks=pytest.mark.skipif(t not in CONFIG_MAPPING, reason="newer")) for t in types]


def check(family: str, folder: Path, rows: tuple[str, ...], *stages: str, attention: str = "sdpa") -> Result:
    """Some rows of the check; of a configuration with ears where the default one has none."""
    if family in EARS:
        CONFIG_MAPPING[family](audio_config=EARS[family]).save_pretrained(folder)
        family = str(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check_job, "CONTRACTS", {name: CONTRACTS[name] for name in rows})
        return run_check(CheckOptions(family, (attention,), stages, tokens=3))


@pytest.mark.parametrize("family", known(*FAMILIES))
def test_no_column_of_sound_goes(family: str, tmp_path: Path) -> None:
    result = check(family, tmp_path, ROWS, "input", "decoder", "pipeline")
    assert [o for o in result.outcomes if o.status != EXACT] == []
    rows = ROWS if family in OMNI else (ROWS[0], ROWS[2])
    assert len(result.outcomes) == 3 * len(rows)


@pytest.mark.parametrize("family", known("qwen2_5_omni_thinker", "gemma4"))
def test_under_eager_attention(family: str, tmp_path: Path) -> None:
    assert {o.status for o in check(family, tmp_path, ROWS, "input", "decoder", attention="eager").outcomes} == {EXACT}


def test_models_without_ears_have_no_such_row(tmp_path: Path) -> None:
    assert check("qwen3_vl", tmp_path, ROWS, "input").outcomes == []


def test_sound_that_is_taken_for_a_picture_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = CompositeSide.placeholders

    def beside(*args: Any) -> dict[str, torch.Tensor]:
        return {name: mask.roll(5, 1) for name, mask in right(*args).items()}

    monkeypatch.setattr(CompositeSide, "placeholders", beside)
    (outcome,) = check("qwen2_5_omni_thinker", tmp_path, (BESIDE,), "input").outcomes
    assert (outcome.status, "columns of sound are taken for a picture's" in outcome.why) == (WRONG, True)


def test_the_order_of_a_video_and_its_sound() -> None:
    def line(*args: Any) -> str:
        return "".join("va"[heard] for heard in in_time(*args))

    assert line([0.0, 0.0, 4.0, 4.0], 6, 4.0) == "vvaaaavvaa"  # chunks of four
    assert line([0.0, 12.0], 6, 4.0) == "vaaaavaa"  # Qwen2.5-Omni begins one chunk at a time
    assert line([0.0, 2.0, 9.0], 4, None) == "vaavaav"


@pytest.mark.parametrize("family", known(*OMNI))
def test_the_untouched_model_takes_no_prompt_that_ends_in_a_picture(family: str) -> None:
    model, prompts, _ = small_model(config_of(family))
    inputs = prompts["ragged"].alone(0).inputs
    end = 1 + int((inputs["input_ids"][0] == prompts.tokens.image).nonzero()[-1])
    cut = {name: inputs[name][:, :end] for name in ("input_ids", "attention_mask")}
    with pytest.raises(RuntimeError, match="shape mismatch"):  # it counts the mark behind the picture all the same
        model.generate(**{**inputs, **cut}, max_new_tokens=1)


# ---------------------------------------------------------------------- tokens that the model itself leaves out


@pytest.fixture(scope="module")
def video_llama() -> Any:
    if "video_llama_3" not in CONFIG_MAPPING:
        pytest.skip("newer")
    return small_model(config_of("video_llama_3"))[:2]


@pytest.mark.parametrize("family", known("video_llama_3"))
def test_compressed_videos(family: str, tmp_path: Path) -> None:
    rows = ("videos", "pictures of other sizes")
    outcomes = check(family, tmp_path, rows, "input", "decoder", "pipeline").outcomes
    assert [o.status for o in outcomes] == [EXACT] * 6


def test_the_prompts_leave_tokens_out_and_join_them_by_different_numbers(video_llama: Any) -> None:
    _, prompts = video_llama
    inputs = prompts["video"].inputs
    assert 0 < int(inputs["video_compression_mask"].sum()) < len(inputs["video_compression_mask"])
    assert len(set(inputs["video_merge_sizes"].tolist())) > 1
    assert len(set(prompts["sizes"].inputs["image_merge_sizes"].tolist())) > 1


def test_a_mask_that_leaves_nothing_out_is_none(video_llama: Any) -> None:
    model, prompts = video_llama
    inputs = prompts["video"].alone(2).inputs
    mask = inputs.pop("video_compression_mask")
    ids = inputs["input_ids"][0].tolist()
    whole = sum(feature_lengths(model.model, inputs, "video", "get_video_features"))
    ids += [prompts.tokens.video] * (whole - int(mask.sum())) + [5, 6]
    told = {**inputs, "input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    with torch.no_grad(), vtc.compressed(model, "random(keep=0.5)"):
        plain = model(**told).logits
        assert torch.equal(model(**told, video_compression_mask=torch.ones_like(mask)).logits, plain)
        assert model.vtc.report.tokens_total == whole


def test_a_video_of_which_nothing_is_fed(video_llama: Any) -> None:
    model, prompts = video_llama
    inputs = prompts["video"].alone(2).inputs
    first, fed = int((inputs["video_grid_thw"].prod(1) // inputs["video_merge_sizes"] ** 2)[0]), prompts.tokens.video
    mask, ids = inputs["video_compression_mask"].clone(), inputs["input_ids"].clone()
    gone = int(mask[:first].sum())
    mask[:first] = False
    ids[0, (ids[0] == fed).nonzero()[:gone, 0]] = 5
    told, refused = {**inputs, "input_ids": ids, "video_compression_mask": mask}, "mask leaves no token of video 0"
    with torch.no_grad(), vtc.compressed(model, "random(keep=0.5)"), pytest.raises(ValueError, match=refused):
        model(**told)


@pytest.mark.parametrize("family", known("nemotron_h_omni"))
def test_a_model_that_drops_tokens_of_videos_by_itself_is_refused(family: str) -> None:
    config = config_of(family)
    config.video_pruning_rate = 0.5
    model, prompts, _ = small_model(config)
    video = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        if isinstance(model.get_video_features(video).pooler_output, torch.Tensor):
            pytest.skip("the untouched model of this transformers fails on its own videos")
        n = sum(feature_lengths(model, {"pixel_values_videos": video}, "video", "get_video_features"))
        ids = torch.tensor([[1, 5, *[model.config.image_token_id] * n, *range(3, 60)]])
        with vtc.compressed(model, "random(keep=0.5)"):
            with pytest.raises(NotImplementedError, match=r"video_pruning_rate=0\.5 in its config"):
                model(input_ids=ids, pixel_values_videos=video)
            model(**prompts["ragged"].inputs)  # pictures go on
            assert model.vtc.report.tokens_kept < model.vtc.report.tokens_total


# ---------------------------------------------------------------------- rows that depend on what stands beside them


@pytest.mark.parametrize("family", known("hunyuan_vl"))
def test_the_untouched_model_counts_pictures_over_the_batch(family: str, tmp_path: Path) -> None:
    model, prompts, _ = small_model(config_of(family))
    prompt, parts = prompts["ragged"], locate(model)
    inputs, alone = prompt.inputs, prompt.alone(2).inputs
    width, own = inputs["input_ids"].shape[1], alone["input_ids"].shape[1]
    with torch.no_grad():
        together, of_all = greedy_with_positions(parts, inputs, 1, prompts.tokens.special)
        single, of_one = greedy_with_positions(parts, alone, 1, prompts.tokens.special)
    assert (of_all[:, 2, width - own :] != of_one[:, 0]).any(1).tolist() == [False, False, False, True]
    assert float((together.logits[2] - single.logits[0]).abs().max()) > 1e-3  # not rounding
    (outcome,) = check(family, tmp_path, ("one by one",), "input").outcomes
    assert outcome.status == NOT_RUN
    assert outcome.why == "the untouched model gives a row other positions in a batch than by itself"
