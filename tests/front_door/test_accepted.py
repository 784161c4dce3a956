"""All that a stock forward accepts: positions, masks, labels, guidance, entry points; honoured or refused in words."""

from __future__ import annotations

import inspect
import warnings
from itertools import takewhile
from typing import Any

import pytest
import torch
import transformers as tf
from contracts import TOLERANCE
from methods import BOTH_STAGES, IN_THE_TOWER, TWO_LAYERS
from reference import allowed, baseline, greedy, kept_at_end, reference, text_model
from torch import Tensor, nn
from versions import ENCODES_FIRST
from zoo import FAMILIES, SPECIAL, prompt, tiny

import vtc
from vtc.models.stock.call_arguments import given

pytestmark = pytest.mark.usefixtures("no_grad")
WITH_TEXT_POSITIONS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # may stand in front of those of m-rope


def with_cache(model: nn.Module, cache: Any) -> dict[str, Any]:
    return given(model.base_model, cache=cache)


def cache_of(out: Any) -> Any:
    return out[next(name for name in ("cache", "past_key_values") if name in out)]


@pytest.mark.parametrize("family", FAMILIES)
def test_positional_arguments_and_tuples(family: str) -> None:
    model, inputs = tiny(family), prompt(family, "one").inputs
    names = [n for n in inspect.signature(type(model).forward).parameters if n != "self"]
    leading = list(takewhile(inputs.__contains__, names))
    assert leading[0] == "input_ids"
    places, more = [inputs[n] for n in leading], {n: x for n, x in inputs.items() if n not in leading}
    with vtc.compressed(model, BOTH_STAGES.pruner):
        named = model(**inputs, use_cache=True)
        report = str(model.vtc.report)
        placed = model(*places, **more, use_cache=True)
        assert str(model.vtc.report) == report
        loose = model(**inputs, use_cache=True, return_dict=False)
    assert torch.equal(placed.logits, named.logits)
    assert isinstance(loose, tuple)
    assert torch.equal(loose[0], named.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_to_keep(family: str) -> None:
    model, inputs = tiny(family), prompt(family, "ragged").inputs
    with vtc.compressed(model, BOTH_STAGES.pruner):
        plain = model(**inputs).logits
        assert torch.equal(model(**inputs, logits_to_keep=3).logits, plain[:, -3:])
        some = torch.tensor([plain.shape[1] - 4, plain.shape[1] - 1])
        assert torch.equal(model(**inputs, logits_to_keep=some).logits, plain[:, some])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_label_behind_a_picture_is_asked_of_what_is_left_before_it(family: str) -> None:
    """The loss is that of the pruned sequence, whose next token after the last one kept is the label."""
    model, inputs = tiny(family), prompt(family, "one").inputs
    labels = inputs["input_ids"].clone()
    labels[torch.isin(labels, torch.tensor(SPECIAL))] = -100
    with vtc.compressed(model, BOTH_STAGES.pruner):
        out = model(**inputs, labels=labels)
        report = model.vtc.report
    left = kept_at_end(report, inputs["attention_mask"], 6)
    targets = labels[left][1:]
    loss = nn.functional.cross_entropy(out.logits[left][:-1], targets, ignore_index=-100)
    after = (report.spans[-1].columns[-1] + 1).item()
    newest = left[0, :after].nonzero()[-1].item()
    assert torch.equal(out.logits[0, after - 1], out.logits[0, newest])
    assert abs(out.loss - loss) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_attentions_have_their_full_length(family: str) -> None:
    """Of every layer, in the prefill and after it; equal to those of the masked model wherever a token is left."""
    model, inputs = tiny(family, "eager"), prompt(family, "ragged").inputs
    width = inputs["input_ids"].shape[1]
    positions = baseline(family, "ragged").positions
    asked = {"output_hidden_states": True, "output_attentions": True}
    with vtc.compressed(model, BOTH_STAGES.pruner):
        out = model(**inputs, position_ids=positions[..., :width], use_cache=True, **asked)
        report = model.vtc.report
        assert torch.equal(model(**inputs, position_ids=positions[..., :width]).logits, out.logits)
        tokens = allowed(out.logits[:, -1:]).argmax(-1)
        step = model(
            input_ids=tokens,
            attention_mask=torch.cat([inputs["attention_mask"], inputs["attention_mask"].new_ones(3, 1)], 1),
            position_ids=positions[..., width : width + 1],
            **with_cache(model, cache_of(out)),
            **asked,
        )
    assert [len(out.hidden_states), len(out.attentions)] == [7, 6]
    kept = kept_at_end(report, inputs["attention_mask"], 6)
    stock = tiny(family, "eager")
    seen: list[Any] = []
    hook = text_model(stock).register_forward_hook(lambda m, a, o: seen.append(o))
    both = torch.cat([tokens, tokens], 1)
    reference_states(stock, inputs, report, positions, both)
    hook.remove()
    truth = seen[0]
    for mine, more, theirs in zip(out.hidden_states, step.hidden_states, truth.hidden_states, strict=True):
        assert mine.shape[:2] == (3, width)
        assert (mine - theirs[:, :width])[kept].abs().max() < TOLERANCE
        assert (more - theirs[:, width:]).abs().max() < TOLERANCE
    for i, (mine, more, theirs) in enumerate(zip(out.attentions, step.attentions, truth.attentions, strict=True)):
        assert mine.shape[2:] == (width, width)
        off = (mine - theirs[:, :, :width, :width]).abs().amax(1)
        assert off[kept].max() < TOLERANCE, f"layer {i}"
        assert (more - theirs[:, :, width:]).abs().max() < TOLERANCE, f"layer {i}"


def reference_states(stock: nn.Module, inputs: dict[str, Any], report: Any, positions: Tensor, tokens: Tensor) -> None:
    """The masked model over prompt and tokens, with what its layers give asked for."""
    text = text_model(stock)
    text.config.output_hidden_states = text.config.output_attentions = True
    reference(stock, inputs, report, positions, tokens)


def full_mask(inputs: dict[str, Any], width: int, kind: str) -> Any:
    """A causal mask `[B, 1, width, width]` over the prompt and what follows, bool or additive."""
    valid = inputs["attention_mask"].bool()
    valid = torch.cat([valid, valid.new_ones(len(valid), width - valid.shape[1])], 1)
    mask = torch.ones(width, width, dtype=torch.bool).tril() & valid[:, None, None] | torch.eye(width, dtype=torch.bool)
    mask[:, :, :, 2] &= torch.eye(width, dtype=torch.bool)[2]  # a text token that nobody else sees
    return mask if kind == "bool" else torch.zeros(()).masked_fill(~mask, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("gemma3", "llava_sliding")])
def test_a_mask_of_the_callers_own_holds_at_prefill_and_after_it(family: str, kind: str) -> None:
    """A four-dimensional mask over the whole sequence, one text token hidden, equals hiding it in the masked model."""
    impl = "sdpa" if kind == "bool" else "eager"
    model, inputs = tiny(family, impl), prompt(family, "one").inputs
    width = inputs["input_ids"].shape[1]
    mask, positions = full_mask(inputs, width + 1, kind), baseline(family, "one").positions
    given_inputs = dict(inputs, attention_mask=mask[:, :, :width, :width], position_ids=positions[..., :width])
    token = torch.tensor([[7]])
    with vtc.compressed(model, BOTH_STAGES.pruner):
        out = model(**given_inputs, use_cache=True)
        report = model.vtc.report
        step = model(
            input_ids=token, attention_mask=mask[:, :, -1:], position_ids=positions[..., width : width + 1],
            **with_cache(model, cache_of(out)),
        )  # fmt: skip
    hide = inputs["attention_mask"].clone()
    hide[:, 2] = 0
    truth = reference(tiny(family), dict(inputs, attention_mask=hide), report, positions, torch.tensor([[7, 7]]))
    kept = kept_at_end(report, hide, 6)
    assert (out.logits - truth[:, :width])[kept].abs().max() < TOLERANCE
    assert (step.logits[:, -1] - truth[:, -1]).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_several_samples_in_a_row_are_refused(family: str) -> None:
    model, inputs = tiny(family), prompt(family, "one").inputs
    width = inputs["input_ids"].shape[1]
    inputs.pop("attention_mask")
    packed = torch.cat([torch.arange(4), torch.arange(width - 4)])[None]
    if family in WITH_TEXT_POSITIONS:
        packed = packed.expand(4, 1, -1)
    with vtc.compressed(model, BOTH_STAGES.pruner):
        for more in ({"position_ids": packed}, {"cu_seq_lens_q": torch.tensor([0, 4, width])}):
            with pytest.raises(NotImplementedError, match="row of its own"):
                model(**inputs, **more, use_cache=False)
        assert greedy(model, prompt(family, "one").inputs, 2).tokens.shape == (1, 2)


def test_attention_in_both_directions_is_refused() -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    with vtc.compressed(model, BOTH_STAGES.pruner), pytest.raises(NotImplementedError, match="is_causal=False"):
        model(**inputs, is_causal=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_runs_its_text_beside_the_pruned_prompt(family: str) -> None:
    """With everything kept it is the stock model's; the report stays the prompt's."""
    model, inputs = tiny(family), prompt(family, "one").inputs
    negative = {"negative_prompt_ids": torch.tensor([[5, 6, 7]])}
    options = {"guidance_scale": 2.0, "max_new_tokens": 4, "do_sample": False, "suppress_tokens": SPECIAL}
    try:
        plain = model.generate(**inputs, **options, **negative)
    except RuntimeError:
        assert family in WITH_TEXT_POSITIONS
        pytest.skip("the unwrapped model can't: it gives the text the positions of the pictures' prompt")
    with vtc.compressed(model, "random", keep=1.0):
        assert torch.equal(model.generate(**inputs, **options, **negative), plain)
    scored = {**options, "return_dict_in_generate": True, "output_logits": True, "output_scores": True}
    with vtc.compressed(model, TWO_LAYERS.pruner):
        out = model.generate(**inputs, **scored, **negative)
        assert model.vtc.report.tokens_kept < model.vtc.report.tokens_total
        first = model(**inputs).logits[:, -1].log_softmax(-1)
    beside = tiny(family)(input_ids=negative["negative_prompt_ids"]).logits[:, -1].log_softmax(-1)
    expected = 2.0 * (first - beside) + beside
    assert torch.equal(allowed(expected).argmax(-1), out.sequences[:, -4])


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_merged_by_the_caller_are_warned_of_once(family: str) -> None:
    model, inputs = tiny(family), prompt(family, "one").inputs
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    plain = text_model(model)(inputs_embeds=embeds).last_hidden_state
    with vtc.compressed(model, BOTH_STAGES.pruner):
        with pytest.warns(UserWarning, match="none is pruned"):
            assert torch.equal(text_model(model)(inputs_embeds=embeds).last_hidden_state, plain)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            text_model(model)(inputs_embeds=embeds)
    with vtc.compressed(model, BOTH_STAGES.pruner), pytest.warns(UserWarning, match="none is pruned"):
        model(inputs_embeds=embeds, **({"token_type_ids": inputs["token_type_ids"]} if family == "gemma3" else {}))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_features_pruned_in_the_encoder_and_merged_by_the_caller_are_refused(family: str) -> None:
    model, inputs = tiny(family), prompt(family, "one").inputs
    pixels = {k: inputs[k] for k in ("pixel_values", "image_grid_thw") if k in inputs}
    with vtc.compressed(model, IN_THE_TOWER.pruner):
        features = model.base_model.get_image_features(**pixels, return_dict=True)
        with pytest.raises(NotImplementedError, match="mm_encoder_outputs"):
            model(inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]))
        if ENCODES_FIRST:
            text = {k: v for k, v in inputs.items() if k != "pixel_values"}
            features = model.base_model.get_image_features(**pixels, return_dict=True)
            fed = model(**text, mm_encoder_outputs={"image": features}).logits
            assert torch.equal(fed, model(**inputs).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_language_model_called_by_itself_goes_on_from_a_pruned_cache(family: str) -> None:
    model, inputs = tiny(family), prompt(family, "one").inputs
    width, token = inputs["input_ids"].shape[1], torch.tensor([[7]])
    positions = baseline(family, "one").positions[..., width : width + 1]
    with vtc.compressed(model, BOTH_STAGES.pruner):
        expected = model(
            input_ids=token, position_ids=positions, **with_cache(model, cache_of(model(**inputs, use_cache=True)))
        ).logits
        cache = cache_of(model(**inputs, use_cache=True))
        out = text_model(model)(input_ids=token, position_ids=positions, **with_cache(model, cache))
        alone = model.get_output_embeddings()(out.last_hidden_state)
    assert (alone - expected).abs().max() < TOLERANCE


def test_in_training_mode_the_cache_that_comes_back_is_the_pruned_one() -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    token = torch.tensor([[7]])
    with vtc.compressed(model, BOTH_STAGES.pruner):
        expected = model(input_ids=token, **with_cache(model, cache_of(model(**inputs)))).logits
        model.train()
        assert torch.equal(model(input_ids=token, **with_cache(model, cache_of(model(**inputs)))).logits, expected)
        model.gradient_checkpointing_enable()
        with torch.enable_grad():
            assert not {"cache", "past_key_values"} & set(model(**inputs))


def test_continuous_batching_and_paged_attention_are_refused() -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    with vtc.compressed(model, BOTH_STAGES.pruner):
        for name in ("generate_batch", "init_continuous_batching"):
            with pytest.raises(NotImplementedError, match="continuous batching"):
                getattr(model, name)(inputs=[[1, 2]])
        text_model(model).config.__dict__["_attn_implementation_internal"] = "paged|sdpa"
        with pytest.raises(NotImplementedError, match="paged"):
            model(**inputs)
    assert "generate_batch" not in vars(model)


def test_a_generate_that_goes_round_the_composite_model_is_noticed() -> None:
    class Round(tf.LlavaForConditionalGeneration):
        def generate(self, input_ids: Tensor, pixel_values: Tensor, **kwargs: Any) -> Tensor:
            return self.model.language_model(input_ids=input_ids).last_hidden_state.argmax(-1)

    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    model.__class__ = Round
    with vtc.compressed(model, "random", keep=3), pytest.raises(RuntimeError, match="never reached"):
        model.generate(**inputs)
    model.config.model_type = "unheard_of"
    paths = {"core": "model", "lm": "model.language_model", "layers": "model.language_model.layers",
             "tower": "model.vision_tower"}  # fmt: skip
    with pytest.raises(NotImplementedError, match=r"generate\(\) of its own"):
        vtc.compress(model, "random", keep=3, parts=paths)
