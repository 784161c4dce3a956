"""vtc check on the families whose text models have recurrent layers: exact, or refused when they are wrapped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING
from versions import ENCODES_FIRST

import vtc
from vtc.eval.check import check_job
from vtc.eval.check.check_job import ATTENTIONS, CheckOptions, Subject, run_check, small_model
from vtc.eval.check.contracts import CONTRACTS, close
from vtc.eval.check.masked_reference import Uncheckable, reference
from vtc.eval.check.prompts.placeholders import feature_lengths
from vtc.eval.check.results import EXACT, PRUNED, REFUSED, WRONG, Result
from vtc.eval.check.shortened_reference import shortened_reference
from vtc.eval.check.tiny_model.build import with_attention
from vtc.eval.check.tiny_model.config_source import config_of
from vtc.models.language import narrowed_calls
from vtc.models.layout.model_parts import locate

FAMILIES = (
    "qwen3_5",
    "qwen3_5_moe",
    "minicpmv4_6",
    "minicpmv4_7",
    "minicpm_ocr",
    "lfm2_vl",
    "lfm3_vl",
    "nemotron_h_omni",
)
REFUSALS = ("qwen4_exp", "glm5_next")  # an indexer keeps a second cache
OLD = () if ENCODES_FIRST else ("second turn",)  # which older transformers gets wrong by itself
KEPT = (PRUNED, "picture last", "second turn", "beams")


def known(*types: str) -> list[Any]:
    """Those that the installed transformers has."""
    return [pytest.param(t, marks=pytest.mark.skipif(t not in CONFIG_MAPPING, reason="newer")) for t in types]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_job, "CONTRACTS", {name: CONTRACTS[name] for name in KEPT})


def check(model: str, *stages: str, attention: str = "sdpa") -> Result:
    return run_check(CheckOptions(model, (attention,), stages, tokens=3))


@pytest.mark.parametrize("family", known(*FAMILIES))
@pytest.mark.usefixtures("short")
def test_exact_at_the_input_and_between_layers(family: str) -> None:
    stages = ("vision", "input", "decoder") if family.startswith("qwen") else ("input", "decoder")
    result = check(family, *stages)
    assert [o for o in result.outcomes if o.status != EXACT and o.contract not in OLD] == []
    assert len(result.outcomes) == len(stages) * len(KEPT)


@pytest.mark.parametrize("family", known(*REFUSALS))
@pytest.mark.usefixtures("short")
def test_refused_when_wrapped(family: str) -> None:
    result = check(family, "input")
    assert {o.status for o in result.outcomes} == {REFUSED}
    assert any(why in result.outcomes[0].why for why in ("in its cache", "which vtc does not know"))


@pytest.mark.parametrize("family", known("lfm3_vl", "nemotron_h_omni"))
@pytest.mark.usefixtures("short")
def test_methods_that_read_attention_prune_right_behind_it(family: str) -> None:
    assert {o.status for o in check(family, "pipeline", attention="eager").outcomes} == {EXACT}


@pytest.mark.usefixtures("short")
def test_padding_that_enters_a_state_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrowed_calls, "padding_mask", lambda *_: None)
    assert WRONG in {o.status for o in check("qwen3_5", "input").outcomes if o.contract == PRUNED}


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "mistral3"])
@pytest.mark.parametrize("stage", ["input", "decoder"])
def test_the_two_references_agree_where_both_are_defined(family: str, stage: str) -> None:
    config = config_of(family)
    model, prompts, _ = small_model(config)
    with torch.no_grad():
        subject = Subject("eager", locate(model), locate(model), prompts, 3)
        (setting,) = CheckOptions(family, stages=(stage,)).settings(config)
        pruned = subject.pruned(setting, "ragged")
        assert pruned.generated is not None
        assert pruned.hidden.any()
        inputs, plain = prompts["ragged"].inputs, subject.plain("ragged")
        told = (subject.truth, inputs, pruned.hidden, plain.positions, pruned.generated.tokens)
        masked, short = reference(*told), shortened_reference(*told)
    left = inputs["attention_mask"].bool() & ~pruned.hidden[-1]
    left = torch.cat([left, left.new_ones(len(left), masked.shape[1] - left.shape[1])], 1)
    close(short, masked, "both references", left)


def test_masks_of_the_composite_model_can_not_be_shortened() -> None:
    model, prompts, _ = small_model(config_of("gemma3"))
    inputs = prompts["ragged"].inputs
    hidden = torch.zeros(len(locate(model).layers), *inputs["input_ids"].shape, dtype=torch.bool)
    positions = torch.arange(hidden.shape[2]).expand(hidden.shape[1:])
    with torch.no_grad(), pytest.raises(Uncheckable, match="makes masks itself"):
        shortened_reference(locate(model), inputs, hidden, positions, torch.zeros(hidden.shape[1], 1).long())


# ---------------------------------------------------------------------- what the contracts do not ask


@pytest.fixture(scope="module")
def lfm2() -> Any:
    model, prompts, _ = small_model(config_of("lfm2_vl"))
    return with_attention(model, ATTENTIONS["sdpa"]), prompts


@pytest.mark.parametrize("pruner", ["random(keep=0.5)", "random(layer=2, keep=0.5)"])
def test_candidates_that_are_not_taken_leave_a_convolution(lfm2: Any, pruner: str) -> None:
    model, prompts = lfm2
    inputs = prompts["ragged"].alone(1).inputs
    told = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}
    with torch.no_grad(), vtc.compressed(model, pruner):
        plain = model.generate(**inputs, **told)
        assert torch.equal(model.generate(**inputs, **told, prompt_lookup_num_tokens=3), plain)


@pytest.mark.skipif(not ENCODES_FIRST, reason="older transformers lets the padding of a single row into the state")
def test_a_padded_row_by_itself(lfm2: Any) -> None:
    model, prompts = lfm2
    inputs = prompts["ragged"].alone(1).inputs
    padded = {k: torch.nn.functional.pad(inputs[k], (4, 0)) for k in ("input_ids", "attention_mask")}
    positions = torch.nn.functional.pad(torch.arange(inputs["input_ids"].shape[1])[None], (4, 0))
    with torch.no_grad(), vtc.compressed(model, "random(layer=2, keep=0.5)"):
        alone = model(**inputs).logits
        close(model(**{**inputs, **padded}, position_ids=positions).logits[:, 4:], alone, "padded")


def test_positions_without_gaps(lfm2: Any) -> None:
    model, prompts = lfm2
    inputs = prompts["ragged"].alone(0).inputs
    told = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad(), vtc.compressed(model, "random(keep=0.5)", positions="compact"):
        out = model.generate(**inputs, **told)
        step, kept = model.vtc.report.steps[0], model.vtc.report.spans[0].columns
    visual = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool)
    visual[kept] = True
    visual[kept[step.kept[0]]] = False
    ids = inputs["input_ids"][:, ~visual]
    # the same prompt without the placeholders that went, their features left out
    features = model.model.get_image_features(**{k: v for k, v in inputs.items() if k.startswith(("pixel", "spatial"))})
    embeds = model.get_input_embeddings()(ids)
    embeds[ids == model.config.image_token_id] = features.pooler_output[0][step.kept[0]]
    with torch.no_grad():
        want = model.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(ids), **told)
    close(torch.stack(out.logits, 1), torch.stack(want.logits, 1), "compact positions")


def test_attentions_and_hidden_states_have_their_places(lfm2: Any) -> None:
    model, prompts = lfm2
    inputs = prompts["ragged"].inputs
    rows, width = inputs["input_ids"].shape
    eager = with_attention(model, "eager")
    with torch.no_grad(), vtc.compressed(eager, "random(layer=3, keep=0.5)"):
        out = eager(**inputs, output_attentions=True, output_hidden_states=True)
        report = eager.vtc.report
    assert [a.shape for a in out.attentions] == [(rows, a.shape[1], width, width) for a in out.attentions]
    gone = torch.ones(len(report.spans[0].columns), dtype=torch.bool)
    gone[report.steps[0].kept[0]] = False
    column = report.spans[0].columns[gone][0]
    # layer 2 still attended to the token, layer 5 did not
    assert [bool(a[report.spans[0].sample, :, -1, column].any()) for a in out.attentions] == [True, False]
    assert {h.shape[:2] for h in out.hidden_states} == {(rows, width)}


def test_attention_is_not_read_off_a_layer_that_has_none(lfm2: Any) -> None:
    model, _ = lfm2
    with pytest.raises(NotImplementedError, match=r"decoder layer 1 .* has no attention .*layers that have: 2, 5\)"):
        vtc.compress(model, "fastv(layer=2, keep=0.5)")


@pytest.mark.parametrize("family", known("nemotron_h_omni"))
def test_videos_behind_the_placeholders_of_pictures(family: str) -> None:
    model, _, _ = small_model(config_of(family))
    video = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if isinstance(model.get_video_features(video).pooler_output, torch.Tensor):
            pytest.skip("the untouched model of this transformers fails on its own videos")
        n = sum(feature_lengths(model, {"pixel_values_videos": video}, "video", "get_video_features"))
        ids = torch.tensor([[1, 5, 6, *[model.config.image_token_id] * n, 7, 8, 9]])
        with vtc.compressed(model, "random(keep=0.5)"):
            model.generate(input_ids=ids, pixel_values_videos=video, max_new_tokens=2)
            report = model.vtc.report
    assert (report.tokens_kept, report.spans[0].columns.tolist()) == (n // 2, list(range(3, 3 + n)))
