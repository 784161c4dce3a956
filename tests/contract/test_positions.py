"""positions="compact": kept tokens are renumbered without gaps, as if the pruned embeddings had been the prompt."""

from __future__ import annotations

import warnings

import pytest
import torch
from versions import beam_shape
from zoo import prompt, tiny
from zoo.tokens import SPECIAL

import vtc
from vtc.pruners.vtc_warning import VTCWarning

pytestmark = pytest.mark.usefixtures("no_grad")
NEW = 8


def pruned_embeddings(family: str, shape: str, report) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of what the report says is left, left-padded, from the untouched model."""
    model, inputs = tiny(family), prompt(family, shape).inputs
    seen = []
    lm = model.model.language_model
    handle = lm.register_forward_pre_hook(lambda m, a, k: seen.append(k["inputs_embeds"]), with_kwargs=True)
    model(**inputs, use_cache=False)
    handle.remove()
    keep = inputs["attention_mask"].bool().clone()
    for span, kept in zip(report.spans, report.steps[-1].kept, strict=True):
        keep[span.sample, span.columns] = False
        keep[span.sample, span.columns[kept]] = True
    rows = [seen[0][b, keep[b]] for b in range(len(keep))]
    width = max(map(len, rows))
    embeds = torch.stack([torch.nn.functional.pad(r, (0, 0, width - len(r), 0)) for r in rows])
    return embeds, torch.stack([torch.arange(width) >= width - len(r) for r in rows]).long()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["llava", "llava_next", "mistral3", "internvl"])
def test_compact_equals_a_prompt_of_the_pruned_embeddings(family, beams):
    shape = "ragged" if beams == 1 else beam_shape(family, "ragged")
    model, inputs = tiny(family), prompt(family, shape).inputs
    options = {"max_new_tokens": NEW, "do_sample": False, "num_beams": beams, "suppress_tokens": list(SPECIAL)}
    with vtc.compressed(model, "random", keep=0.3, positions="compact"):
        found = model.generate(**inputs, **options)[:, -NEW:]
        model(**inputs, use_cache=False)  # the report of generate() has a row for each beam
        report = model.vtc.report
    embeds, mask = pruned_embeddings(family, shape, report)
    expected = model.generate(inputs_embeds=embeds, attention_mask=mask, **options)[:, -NEW:]
    assert torch.equal(found, expected)
    with vtc.compressed(model, "random", keep=0.3):
        kept = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
        gaps = torch.stack(kept.logits)
    with vtc.compressed(model, "random", keep=0.3, positions="compact"):
        again = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    assert (torch.stack(again.logits)[0] - gaps[0]).abs().max() > 1e-3  # it is not the same as keeping positions


@pytest.mark.parametrize("family", ["gemma3", "llava_sliding"])
def test_a_window_that_an_engine_would_count_otherwise_is_warned_of_once(family):
    model, inputs = tiny(family), prompt(family, "one").inputs
    with vtc.compressed(model, "random", keep=0.3, positions="compact"):
        with pytest.warns(VTCWarning, match="tokens, dropped ones included, and some layers see"):
            model(**inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(**inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with vtc.compressed(model, "random", keep=0.3):
            model(**inputs)
        with vtc.compressed(model, "random", keep=1.0, positions="compact"):
            model(**inputs)


def test_a_window_is_warned_of_where_an_answer_outgrows_it():
    model, inputs = tiny("llava_sliding"), prompt("llava_sliding", "one").inputs
    length, window = inputs["input_ids"].shape[1], model.config.text_config.sliding_window
    model.config.text_config.sliding_window = length + 2
    try:
        with vtc.compressed(model, "random", keep=0.3, positions="compact"):
            options = {"do_sample": False, "suppress_tokens": list(SPECIAL)}
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                model.generate(**inputs, **options, max_new_tokens=3, min_new_tokens=3)
            with pytest.warns(VTCWarning, match=f"this sequence has {length + 3} tokens"):
                model.generate(**inputs, **options, max_new_tokens=4, min_new_tokens=4)
    finally:
        model.config.text_config.sliding_window = window


def test_multi_axis_rotary_positions_are_refused_at_once():
    model = tiny("qwen2_5_vl")
    with pytest.raises(ValueError, match="use 'keep'"):
        vtc.compress(model, "random", keep=0.3, positions="compact")
    assert not hasattr(model, "vtc")


@pytest.mark.parametrize("spec", ["random(keep=0.4)", "random(keep=0.6) + random(layer=3, keep=0.3)"])
def test_padding_inside_a_second_turn_is_hidden(spec):
    """Two samples go on with turns of different length: each gives what it gives alone, without padding."""
    model, first = tiny("llava"), prompt("llava", "ragged")
    turns = [[7, 8, 9], [10, 11, 12, 13, 14], [15, 16]]
    width = max(map(len, turns))
    with vtc.compressed(model, spec):
        alone = []
        for b, turn in enumerate(turns):
            inputs = first.alone(b).inputs
            cache = model(**inputs, use_cache=True).past_key_values
            mask = torch.cat([inputs["attention_mask"], torch.ones(1, len(turn), dtype=torch.long)], 1)
            positions = (mask.cumsum(-1) - 1)[:, -len(turn) :]
            ids = torch.tensor([turn])
            out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, position_ids=positions)
            alone.append(out.logits[0, -1])
        inputs = first.inputs
        cache = model(**inputs, position_ids=(inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)).past_key_values
        ids = torch.tensor([[0] * (width - len(t)) + t for t in turns])
        mask = torch.cat([inputs["attention_mask"], (ids > 0).long()], 1)
        positions = (mask.cumsum(-1) - 1)[:, -width:]
        out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, position_ids=positions)
    assert (out.logits[:, -1] - torch.stack(alone)).abs().max() < 1e-4
