"""Contracts 6 and 8: text-only input, one token kept, determinism and seeds."""

from __future__ import annotations

import pytest
import torch
from contracts import TOLERANCE, outcome, same_report
from methods import IN_THE_TOWER, METHODS, NO_COUNTS, READING, SETTINGS, Setting, cells
from reference import allowed, baseline, features_given, greedy, reference
from zoo import FAMILIES, prompt, tiny

import vtc

ONE_EACH = Setting("random(at=vision, layer=1, keep=1)")
pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize(("setting", "family"), cells([*METHODS, READING, IN_THE_TOWER], FAMILIES))
def test_text_only_input_is_untouched(setting: Setting, family: str) -> None:
    model, plain = tiny(family), baseline(family, "text")
    inputs = prompt(family, "text").inputs
    with vtc.compressed(model, setting.pruner, keep=setting.keep, **setting.params):
        model(**prompt(family, "one").inputs)  # an earlier picture must not linger
        logits = model(**inputs, position_ids=plain.positions[..., : inputs["input_ids"].shape[1]]).logits
        again = greedy(model, inputs, 4)
    assert torch.equal(logits, plain.logits)
    assert torch.equal(again.tokens, plain.generated.tokens[:, :4])


@pytest.mark.share(3)
@pytest.mark.parametrize(
    ("setting", "family"), cells([*(m.with_keep(1) for m in METHODS if m.pruner not in NO_COUNTS), ONE_EACH], FAMILIES)
)
def test_one_token_per_picture(setting: Setting, family: str) -> None:
    pruned, plain = outcome(setting, family, "one"), baseline(family, "one")
    model, given = tiny(family), prompt(family, "one").inputs
    if not any(c.adaptive_count for c in setting.classes):
        media, kept = prompt(family, "one").media[0], [len(k) for k in pruned.report.steps[-1].kept]
        assert setting.counts(kept, media) == setting.counts([1] * len(kept), media)
    with features_given(model, pruned.features):
        logits = reference(model, given, pruned.report, plain.positions, pruned.generated.tokens, pruned.vectors)
    width = given["input_ids"].shape[1]
    assert (pruned.generated.logits - logits[:, width - 1 :]).abs().max() < TOLERANCE
    assert torch.equal(allowed(logits[:, width - 1 :]).argmax(-1), pruned.generated.tokens)


@pytest.mark.share(3)
@pytest.mark.parametrize(("setting", "family"), cells(SETTINGS, FAMILIES))
def test_the_same_input_gives_the_same_tokens(setting: Setting, family: str) -> None:
    first = outcome(setting, family, "ragged")
    model, inputs = tiny(family), prompt(family, "ragged").inputs
    torch.manual_seed(1234)  # the global generator plays no part
    with vtc.compressed(model, setting.pruner, keep=setting.keep, **setting.params):
        model(**prompt(family, "text_row").inputs)  # nor does what went before
        second = greedy(model, inputs, 3)
        assert same_report(model.vtc.report, first.report)
    assert torch.equal(second.logits, first.generated.logits[:, :3])


SEEDED = [m for m in METHODS if any("seed" in vars(p) for p in vtc.parse(m.pruner, keep=m.keep))]


@pytest.mark.parametrize("setting", SEEDED, ids=str)
def test_another_seed_gives_another_choice(setting: Setting) -> None:
    model, inputs = tiny("llava"), prompt("llava", "ragged").inputs
    kept = []
    state = torch.get_rng_state()
    for seed in (0, 1):
        with vtc.compressed(model, setting.pruner, keep=setting.keep, **{**setting.params, "seed": seed}):
            model(**inputs)
            kept.append(model.vtc.report.steps[-1].kept)
    assert not all(torch.equal(a, b) for a, b in zip(*kept, strict=True))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


def test_two_pictures_of_a_sample_get_different_random_tokens() -> None:
    model = tiny("llava")
    with vtc.compressed(model, "random", keep=0.5):
        model(**prompt("llava", "touching").inputs)
        first, second, other = model.vtc.report.steps[-1].kept
    assert not torch.equal(first, second)
    assert torch.equal(first, other), "the same place in another sample gives the same choice, alone or in a batch"


@pytest.mark.parametrize("setting", METHODS, ids=str)
def test_equal_tokens_are_chosen_by_lowest_index_or_seed(setting: Setting) -> None:
    """A blank picture: all tokens of a row are equal up to position; the choice must not depend on the run."""
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    inputs["pixel_values"] = torch.zeros_like(inputs["pixel_values"])
    kept = []
    for _ in range(2):
        with vtc.compressed(model, setting.pruner, keep=setting.keep, **setting.params):
            logits = model(**inputs).logits
            kept.append(model.vtc.report.steps[-1].kept[0])
    assert torch.equal(*kept)
    assert torch.isfinite(logits).all()
