"""Every way to generate: beams, sampling, assisted decoding, second turns, manual loops, caches, streamers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contracts import TOLERANCE
from generating import beams, dialogue_of, positions_of
from methods import BOTH_STAGES, READING, TWO_LAYERS, Setting
from reference import allowed, baseline, greedy, reference, text_model
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer
from versions import beam_shape, mixes_pictures
from zoo import FAMILIES, SPECIAL, Prompt, free_prompt, prompt, tiny
from zoo.tokens import CLOSE, words

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")
TWO = ["llava", "qwen2_5_vl"]
# their generate() takes no embeddings for placeholders: Qwen needs the ids for positions, Gemma3 refuses
NO_EMBEDDINGS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3")


@pytest.mark.parametrize("family", FAMILIES)
def test_beam_search(family: str) -> None:
    """Keeping all equals the unwrapped model; pruned, the cache changes nothing."""
    model, inputs = tiny(family), prompt(family, beam_shape(family, "text_row")).inputs
    plain = beams(model, inputs).sequences
    with vtc.compressed(model, "random", keep=1.0):
        assert torch.equal(beams(model, inputs).sequences, plain)
    with vtc.compressed(model, BOTH_STAGES.pruner):  # fixed sets: pruning anew at every step chooses the same
        cached, uncached = beams(model, inputs), beams(model, inputs, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    assert torch.allclose(cached.sequences_scores, uncached.sequences_scores, atol=TOLERANCE)


@pytest.mark.parametrize("setting", [BOTH_STAGES, READING], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_beam_search_of_a_batch_equals_one_by_one(family: str, setting: Setting) -> None:
    model, given = tiny(family), prompt(family, beam_shape(family, "text_row"))
    with vtc.compressed(model, setting.pruner):
        together = beams(model, given.inputs)
        for b in range(len(given.rows)):
            alone = beams(model, given.alone(b).inputs)
            assert torch.equal(alone.sequences[0, -6:], together.sequences[b, -6:])
            assert abs(alone.sequences_scores[0] - together.sequences_scores[b]) < TOLERANCE


@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
def test_beams_where_there_are_as_many_samples_as_crops(family: str) -> None:
    """Features come joined by sample: three of one are not those of three samples, and nothing is mixed up."""
    given = free_prompt(FAMILIES[family], [[3, "i0", 4], [5], [6]], torch.Generator().manual_seed(0))
    model = tiny(family)
    with vtc.compressed(model, BOTH_STAGES.pruner):
        together = beams(model, given.inputs)
        alone = [beams(model, given.alone(b).inputs) for b in range(len(given.rows))]
    assert all(
        torch.equal(one.sequences[0, -6:], all_[-6:]) for one, all_ in zip(alone, together.sequences, strict=True)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_several_sequences_equals_a_batch_of_copies(family: str) -> None:
    model, given = tiny(family), prompt(family, beam_shape(family, "ragged"))
    settings = {"do_sample": True, "max_new_tokens": 6, "suppress_tokens": SPECIAL}
    with vtc.compressed(model, READING.pruner):
        torch.manual_seed(0)
        several = model.generate(**given.inputs, **settings, num_return_sequences=3)
        torch.manual_seed(0)
        copies = model.generate(**given.copies(3).inputs, **settings)
    assert torch.equal(several, copies)


@pytest.mark.parametrize("family", [f for f in FAMILIES if mixes_pictures(f)])
def test_sequences_with_mixed_up_pictures_are_refused(family: str) -> None:
    model = tiny(family)
    with vtc.compressed(model, READING.pruner):
        for shape in ("ragged", "text_row"):
            inputs = prompt(family, shape).inputs
            for more in ({"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}):
                with pytest.raises(NotImplementedError, match="mixes up the images"):
                    model.generate(**inputs, **more, max_new_tokens=2)
            assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 3
    inputs = prompt(family, "ragged").inputs
    assert model.generate(**inputs, num_beams=2, max_new_tokens=2).shape[0] == 3  # restored: transformers' own business


@pytest.mark.parametrize("setting", [BOTH_STAGES, READING], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_lookup_equals_greedy(family: str, setting: Setting) -> None:
    if family in ("gemma3", "llava_sliding"):
        pytest.skip("transformers itself can't crop a sliding cache that is full")
    model, inputs = tiny(family), prompt(family, "one").inputs
    with vtc.compressed(model, setting.pruner):
        plain = greedy(model, inputs, 12).tokens
        assisted = model.generate(
            **inputs,
            max_new_tokens=12,
            do_sample=False,
            suppress_tokens=SPECIAL,
            prompt_lookup_num_tokens=3,
            eos_token_id=CLOSE,  # suppressed too; transformers < 5.13 needs to have one here
        )
    assert torch.equal(assisted[:, -12:], plain)


@pytest.mark.parametrize("setting", [BOTH_STAGES, READING], ids=str)
def test_a_smaller_model_that_guesses_changes_nothing(setting: Setting) -> None:
    """transformers copies what the encoder gave, and all else that the model is called with, for the assistant."""
    model, given = tiny("llava"), prompt("llava", "one").inputs
    assistant = LlamaForCausalLM(model.config.text_config).eval()
    with vtc.compressed(model, setting.pruner):
        ways = [model.generate(**given, max_new_tokens=8, do_sample=False, assistant_model=assistant),
                model.generate(**given, max_new_tokens=8, do_sample=False)]  # fmt: skip
    assert torch.equal(*ways)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize("pruner", ["uniform(keep=1.0)", BOTH_STAGES.pruner], ids=["all", "pruned"])
def test_a_model_that_guesses_for_itself_changes_nothing(family: str, pruner: Any) -> None:
    """Its ``generate`` is called from inside while the pictures of the call around it wait to be fed."""
    model, given = tiny(family), prompt(family, "one").inputs
    with vtc.compressed(model, pruner):
        plain = greedy(model, given, 6).tokens
        report = str(model.vtc.report)
        found = model.generate(
            **given, max_new_tokens=6, do_sample=False, suppress_tokens=SPECIAL, assistant_model=model
        )
        assert torch.equal(found[:, -6:], plain)
        assert torch.equal(greedy(model, given, 6).tokens, plain)
        assert str(model.vtc.report) == report


@pytest.mark.parametrize("family", FAMILIES)
def test_second_turn_on_the_pruned_cache(family: str) -> None:
    """A text-only second turn equals a fresh prefill of the whole dialogue."""
    model, inputs = tiny(family), prompt(family, "ragged").inputs
    with vtc.compressed(model, BOTH_STAGES.pruner):
        first = model.generate(
            **inputs, max_new_tokens=5, do_sample=False, suppress_tokens=SPECIAL, return_dict_in_generate=True
        )
        dialogue, text = dialogue_of(inputs, first.sequences, [7, 8, 9, 10])
        fresh = greedy(model, dialogue, 5)
        second = greedy(model, text, 5, past_key_values=first.past_key_values)
    assert torch.equal(second.tokens, fresh.tokens)
    assert (second.logits - fresh.logits).abs().max() < TOLERANCE


def join(first: Any, second: Any, offset: int) -> SimpleNamespace:
    """The reports of two turns as one over the whole dialogue."""
    moved = [SimpleNamespace(sample=s.sample, columns=s.columns + offset) for s in second.spans]
    steps = [
        SimpleNamespace(stage=a.stage, layer=a.layer, kept=[*a.kept, *b.kept], sizes=None)
        for a, b in zip(first.steps, second.steps, strict=True)
    ]
    return SimpleNamespace(spans=[*first.spans, *moved], steps=steps)


@pytest.mark.parametrize("shape", ["one", "ragged"])
@pytest.mark.parametrize("family", FAMILIES)
def test_second_turn_with_a_new_picture(family: str, shape: str) -> None:
    """Tail logits on the pruned cache equal the reference over both turns, with the tokens of both hidden."""
    given = prompt(family, shape)
    generator = torch.Generator().manual_seed(9)
    model, inputs = tiny(family), given.inputs
    kind = FAMILIES[family]
    replies = [words(3, generator) for _ in given.rows]
    new = [kind.picture(kind.sizes[0], True, generator) for _ in given.rows]
    tails = [[*words(2, generator), *m.ids, *words(3, generator)] for m in new]
    whole = Prompt(
        kind,
        [[*r, *a, *t] for r, a, t in zip(given.rows, replies, tails, strict=True)],
        [[*media, m] for media, m in zip(given.media, new, strict=True)],
    )
    both = whole.inputs
    if "batch_num_images" in both:  # OneVision would show the first picture otherwise once it has company
        pytest.skip("OneVision's own processor changes the first picture's tokens when a second one comes")
    past = inputs["input_ids"].shape[1] + 3
    full = both["input_ids"]
    positions = positions_of(family, both)
    with vtc.compressed(model, BOTH_STAGES.pruner):
        first = dict(inputs, input_ids=full[:, :past], attention_mask=both["attention_mask"][:, :past])
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in first:
                first[name] = both[name][:, :past]
        out = model(**first, position_ids=positions[..., :past], use_cache=True)
        report = model.vtc.report
        tail = Prompt(kind, tails, [[m] for m in new]).inputs
        tail["attention_mask"] = both["attention_mask"]
        if "token_type_ids" in both:  # Gemma3 wants the whole dialogue's
            tail["token_type_ids"] = both["token_type_ids"]
        logits = model(
            **tail, position_ids=positions[..., past:], past_key_values=out.past_key_values, use_cache=True
        ).logits
        joint = join(report, model.vtc.report, past)
    none = full.new_zeros(len(full), 1)
    truth = reference(model, both, joint, positions, none)[:, past:]
    kept = torch.ones(len(full), full.shape[1], dtype=torch.bool)
    for span, ids in zip(joint.spans, joint.steps[-1].kept, strict=True):
        kept[span.sample, span.columns] = False
        kept[span.sample, span.columns[ids]] = True
    assert (logits - truth)[kept[:, past:]].abs().max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_manual_loop_without_mask_and_positions_equals_generate(family: str) -> None:
    model, inputs = tiny(family), prompt(family, "one").inputs
    with vtc.compressed(model, BOTH_STAGES.pruner):
        expected = greedy(model, inputs, 8)
        out = model(**{k: v for k, v in inputs.items() if k != "attention_mask"}, use_cache=True)
        tokens = []
        for _ in range(8):
            tokens.append(allowed(out.logits[:, -1:]).argmax(-1))
            out = model(input_ids=tokens[-1], past_key_values=out.past_key_values, use_cache=True)
    assert torch.equal(torch.cat(tokens, 1), expected.tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_cache_the_tokens_are_the_same(family: str) -> None:
    model, inputs = tiny(family), prompt(family, "text_row").inputs
    with vtc.compressed(model, TWO_LAYERS.pruner):
        cached, uncached = greedy(model, inputs, 6), greedy(model, inputs, 6, use_cache=False)
    assert torch.equal(cached.tokens, uncached.tokens)
    assert (cached.logits - uncached.logits).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in NO_EMBEDDINGS])
def test_generate_from_embeddings_of_the_placeholders(family: str) -> None:
    model, inputs = tiny(family), prompt(family, "one").inputs
    with vtc.compressed(model, READING.pruner):
        expected = greedy(model, inputs, 8)
        given = {k: v for k, v in inputs.items() if k != "input_ids"}
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        out = model.generate(
            **given, inputs_embeds=embeds, max_new_tokens=8, min_new_tokens=8, do_sample=False, suppress_tokens=SPECIAL
        )
    assert torch.equal(out[:, -8:], expected.tokens)


def test_embeddings_without_a_picture_are_left_alone() -> None:
    """Whoever merges the features himself gives no picture: nothing is known about placeholders, nothing is pruned."""
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    plain = model(inputs_embeds=embeds).logits
    with vtc.compressed(model, READING.pruner), pytest.warns(UserWarning, match="none is pruned"):
        assert torch.equal(model(inputs_embeds=embeds).logits, plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dynamic_cache_made_by_the_user(family: str) -> None:
    model, inputs = tiny(family), prompt(family, "ragged").inputs
    config = text_model(model).config
    with vtc.compressed(model, TWO_LAYERS.pruner):
        expected = greedy(model, inputs, 5)
        for cache in (DynamicCache(), DynamicCache(config=config)):
            if family in ("gemma3", "llava_sliding") and not cache.layers:
                continue  # a lazy cache does not know about windows, transformers' own masks don't fit it
            given = greedy(model, inputs, 5, past_key_values=cache)
            assert torch.equal(given.tokens, expected.tokens)
            assert (given.logits - expected.logits).abs().max() < TOLERANCE


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.reshape(-1).tolist()

    def end(self) -> None:
        self.ended = True


def test_a_streamer_sees_the_prompt_and_every_token() -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    collector = Collector()
    with vtc.compressed(model, READING.pruner):
        out = model.generate(**inputs, max_new_tokens=6, do_sample=False, suppress_tokens=SPECIAL, streamer=collector)
    assert collector.tokens == out[0].tolist()
    assert collector.ended


@pytest.mark.parametrize("family", TWO)
def test_a_cache_can_be_cropped_copied_and_reordered(family: str) -> None:
    """What assisted decoding and beam search do to the cache, done by hand."""
    model, inputs = tiny(family), prompt(family, "ragged").inputs
    positions, width = baseline(family, "ragged").positions, inputs["input_ids"].shape[1]
    order = torch.tensor([2, 0, 1])
    step = torch.tensor([[5], [6], [7]])
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.long)], 1)

    def decode(cache: Any, rows: Tensor) -> Tensor:
        return model(
            input_ids=step[rows],
            attention_mask=mask[rows],
            position_ids=positions[..., rows, width : width + 1],
            past_key_values=cache,
        ).logits

    with vtc.compressed(model, TWO_LAYERS.pruner):
        cache = model(**inputs, position_ids=positions[..., :width], use_cache=True).past_key_values
        assert cache.get_seq_length() == width, "the logical length is the whole sequence's"
        expected = decode(cache, torch.arange(3))
        cache.crop(-1)
        assert torch.allclose(decode(cache, torch.arange(3)), expected, atol=TOLERANCE)
        cache.crop(-1)
        cache.reorder_cache(order)
        assert torch.allclose(decode(cache, order), expected[order], atol=TOLERANCE)
