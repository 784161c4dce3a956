"""RESTORE: what is added to attention by hand, where it is not, sizes of merged tokens, and what can't carry it."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from generating import positions_of
from reference import greedy, reference
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator
from zoo import prompt, tiny
from zoo.tokens import CLOSE

import vtc
from vtc.models.language.masks import calibrated

pytestmark = pytest.mark.usefixtures("no_grad")


def turned(positions, thetas, scale=1.0):
    """Cosines and sines as a rotary embedding gives them, each frequency twice, `[1, L, 2 len(thetas)]`."""
    angles = torch.tensor(positions)[None, :, None] * torch.tensor([*thetas, *thetas])
    return scale * angles.cos(), scale * angles.sin()


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_by_hand(scale):
    """Columns at 0 (text), 5 (kept, stands for 3) and 9 (text): only the visual key gets something."""
    thetas = (1.0, 0.1)
    counted, asks = torch.tensor([[0.0, 3.0, 0.0]]), torch.ones(1, 3, dtype=torch.bool)
    rotary = turned([0.0, 5.0, 9.0], thetas, scale)
    found = calibrated(None, rotary, counted, asks, 3, torch.float32)[0, 0]
    least = torch.finfo(torch.float32).min
    far = math.log(3) + math.log(2 - (math.cos(4.0) + math.cos(0.4)) / 2)
    expected = torch.tensor([[0, least, least], [0, math.log(3), least], [0, far, 0]])
    assert torch.allclose(found, expected, atol=1e-5)
    plain = calibrated(None, None, counted / 3, asks, 5, torch.float32)[0, 0]
    assert plain.tolist() == [[0, 0, 0, least, least], [0, 0, 0, 0, least], [0] * 5], "earlier keys get nothing"
    some = calibrated(None, rotary, counted, torch.tensor([[True, True, False]]), 3, torch.float32)[0, 0]
    assert some[2].tolist() == [0, 0, 0], "what does not ask for the prompt sees what is there"


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("impl", ["sdpa", "eager"])
def test_it_chooses_as_the_first_method_and_attends_otherwise(family, impl):
    model, given = tiny(family, impl), prompt(family, "ragged").inputs
    found = {}
    for spec in ("divprune", "restore"):
        with vtc.compressed(model, spec, keep=0.4):
            found[spec] = model(**given).logits, model.vtc.report
    kept = [report.steps[0].kept for _, report in found.values()]
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))
    assert not torch.allclose(found["divprune"][0], found["restore"][0], atol=1e-3)
    assert found["divprune"][1].steps[0].sizes is None
    assert all((size == 1).all() for size in found["restore"][1].steps[0].sizes)


@pytest.mark.parametrize("spec", ["restore(keep=1.0)", "restore(first=fastv, first_params={'layer': 2}, keep=1.0)"])
def test_where_nothing_went_it_is_the_stock_model(spec):
    model, given = tiny("llava"), prompt("llava", "ragged").inputs
    plain = model(**given).logits
    with vtc.compressed(model, spec):
        assert torch.allclose(model(**given).logits, plain, atol=1e-5)


def test_pictures_that_lost_nothing_get_nothing():
    """Pictures of 8 tokens beside larger ones, of which 8 are kept each: the reference gives to these alone."""
    model, given = tiny("qwen2_5_vl"), prompt("qwen2_5_vl", "sizes").inputs
    with vtc.compressed(model, "restore(first=uniform)", keep=8):
        logits = model(**given).logits
        report = model.vtc.report
    lengths = [len(span.columns) for span in report.spans]
    assert min(lengths) == 8 < max(lengths)
    nothing = torch.zeros(len(logits), 1).long()
    truth = reference(model, given, report, positions_of("qwen2_5_vl", given), nothing)
    assert (logits - truth)[:, -1].abs().max() < 1e-4


@pytest.mark.parametrize("first", ["tome", "pool", "budget(first=tome, busy=0.0)"])
def test_merged_tokens_count_by_their_number(first):
    """These say how many tokens each one stands for; the mask of layer 0 has the logarithm."""
    model, given, masks = tiny("llava"), prompt("llava", "one").inputs, []
    layer = model.model.language_model.layers[0]
    name, _, params = first.partition("(")
    spec = f"restore(first={name}" + (", first_params={'first': 'tome', 'busy': 0.0})" if params else ")")
    with vtc.compressed(model, spec, keep=0.4):
        hook = layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: masks.append((kwargs["attention_mask"], kwargs["position_embeddings"])),
            with_kwargs=True,
        )
        model(**given)
        hook.remove()
        [span], [step] = model.vtc.report.spans, model.vtc.report.steps
    (mask, (cosines, sines)), first = masks[0], int(span.columns[0])
    k, n = len(step.kept[0]), len(span.columns)
    unit = torch.cat([cosines, sines], -1)[0]
    distance = (2 - (unit[-1] @ unit[first : first + k].T) / (unit[-1] @ unit[-1])).log()
    sizes = (mask[0, 0, -1, first : first + k] - distance).exp()
    assert torch.allclose(sizes, sizes.round(), atol=1e-3)
    assert sizes.sum().item() == pytest.approx(n, abs=1e-2)
    assert sizes.max() > 1.5
    assert torch.allclose(step.sizes[0], sizes, atol=1e-3)


def test_generated_tokens_see_plain_attention():
    model, given = tiny("llava"), prompt("llava", "ragged").inputs
    seen, layer = [], model.model.language_model.layers[1]
    with vtc.compressed(model, "restore", keep=0.4):
        hook = layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
        )
        greedy(model, given, 3)
        hook.remove()
    assert seen[0].dtype == torch.float32
    assert all(mask is None or mask.dtype == torch.bool for mask in seen[1:])


@pytest.mark.parametrize("first", ["divprune", "fastv", "pool"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_every_way_of_greedy_decoding_gives_the_same(family, first):
    """Candidates come in one forward behind the prompt and are verified in later ones; without a cache all are new."""
    model, given = tiny(family), prompt(family, "one").inputs
    with vtc.compressed(model, f"restore(first={first})", keep=0.4):
        plain = greedy(model, given, 8)
        for way in ({"prompt_lookup_num_tokens": 3}, {"use_cache": False}):
            other = greedy(model, given, 8, eos_token_id=CLOSE, **way)
            assert torch.equal(other.tokens, plain.tokens), way
            assert (other.logits - plain.logits).abs().max() < 1e-4, way


@pytest.mark.parametrize("first", ["divprune", "fastv"])
def test_candidates_that_come_with_the_prompt_are_no_part_of_it(monkeypatch, first):
    """All of them are right here, so that the logits behind each one are the step's."""
    model, given = tiny("llava"), prompt("llava", "one").inputs
    width = given["input_ids"].shape[1]
    with vtc.compressed(model, f"restore(first={first})", keep=0.4):
        plain = greedy(model, given, 8)

        def right(_, ids, *more, **rest):
            done = ids.shape[1] - width
            return torch.cat([ids, plain.tokens[:, done : done + 3]], 1), None

        monkeypatch.setattr(PromptLookupCandidateGenerator, "get_candidates", right)
        other = greedy(model, given, 8, prompt_lookup_num_tokens=3, eos_token_id=CLOSE)
    assert torch.equal(other.tokens, plain.tokens)
    assert (other.logits - plain.logits).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("impl", ["sdpa", "eager"])
def test_half_precision_costs_no_more_than_in_the_stock_model(impl, dtype):
    """What is added meets the least number of that type in eager masks; a batch has padding under it."""
    model, given = tiny("llava", impl), prompt("llava", "ragged").inputs
    half = deepcopy(model).to(dtype)
    narrow = {name: x.to(dtype) if x.is_floating_point() else x for name, x in given.items()}
    real = given["attention_mask"].bool()

    def lost():
        return (half(**narrow).logits.float() - model(**given).logits)[real][-1].abs().max()

    stock = lost()
    with (
        vtc.compressed(model, "restore(first=uniform)", keep=0.4),
        vtc.compressed(half, "restore(first=uniform)", keep=0.4),
    ):
        assert lost() < 4 * stock


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("restore(first=pmod, first_params={'weights': 'untrained'})", "input or decoder stage"),
        ("restore(first=flowcut)", "input or decoder stage"),
        ("restore(first=restore)", "must be another method's name"),
        ("restore(first_params={'keep': 0.5})", "restore's own keep"),
        ("reroute(first=restore, first_params={'first': 'pyramiddrop'})", "must drop tokens in the decoder"),
    ],
)
def test_what_it_can_not_be_is_told(spec, message):
    with pytest.raises(ValueError, match=message):
        vtc.parse(spec, keep=0.5)


def test_what_can_not_carry_it_refuses():
    model, given = tiny("llava"), prompt("llava", "one").inputs
    with pytest.raises(ValueError, match="restore needs the original positions"):
        vtc.compress(model, "restore", keep=0.4, positions="compact")
    with pytest.raises(ValueError, match="once in a pipeline"):
        vtc.compress(model, "restore(keep=0.5) + restore(first=fastv, keep=0.3)")
    static = pytest.raises(NotImplementedError, match="restore adds to the attention of each layer")
    with vtc.compressed(model, "restore", keep=0.4), static:
        model.generate(**given, max_new_tokens=2, cache_implementation="static")
    flex, no_numbers = tiny("llava", "flex_attention"), pytest.raises(NotImplementedError, match="takes no numbers")
    with vtc.compressed(flex, "restore", keep=0.4), no_numbers:
        flex(**given)


def test_rotary_embeddings_of_axes_that_stand_apart_are_refused(monkeypatch):
    """As transformers gave them for Qwen2-VL and its kin before 5.19."""
    model = tiny("qwen2_5_vl")
    rotary = model.model.language_model.rotary_emb
    joined = rotary.forward
    monkeypatch.setattr(rotary, "forward", lambda *a, **k: tuple(torch.stack([x] * 3) for x in joined(*a, **k)))
    with (
        vtc.compressed(model, "restore", keep=0.4),
        pytest.raises(NotImplementedError, match=r"apart for each axis.*upgrade transformers"),
    ):
        model(**prompt("qwen2_5_vl", "one").inputs)
