"""The tools of the contract tests, tested on their own: with nothing hidden the reference is the plain model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from reference import allowed, baseline, greedy, reference
from zoo import FAMILIES, prompt, shapes_of, tiny

pytestmark = pytest.mark.usefixtures("no_grad")

NOTHING = SimpleNamespace(spans=[], steps=[])
CELLS = [(f, s) for f, family in FAMILIES.items() for s in shapes_of(family) if s != "right"]


@pytest.mark.parametrize(("family", "shape"), CELLS)
def test_reference_without_pruning_is_the_plain_model(family: str, shape: str) -> None:
    model, inputs, plain = tiny(family), prompt(family, shape).inputs, baseline(family, shape)
    logits = reference(model, inputs, NOTHING, plain.positions, plain.generated.tokens)
    width = inputs["input_ids"].shape[1]
    real = inputs["attention_mask"].bool()
    assert torch.allclose(logits[:, width - 1 :], plain.generated.logits, atol=1e-4)
    assert torch.allclose(logits[:, :width][real], plain.logits[real], atol=1e-4)
    assert torch.equal(allowed(logits[:, width - 1 :]).argmax(-1), plain.generated.tokens)


@pytest.mark.parametrize(("family", "shape"), [c for c in CELLS if c[1] not in ("one",)])
def test_a_sample_alone_equals_its_row_of_the_batch(family: str, shape: str) -> None:
    model, plain, given = tiny(family), baseline(family, shape), prompt(family, shape)
    for b in range(len(given.rows)):
        alone = greedy(model, given.alone(b).inputs, 5)
        assert torch.equal(alone.tokens[0], plain.generated.tokens[b, :5])
        assert torch.allclose(alone.logits[0], plain.generated.logits[b, :5], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_hiding_tokens_changes_the_reference(family: str) -> None:
    model, inputs, plain = tiny(family), prompt(family, "one").inputs, baseline(family, "one")
    columns = (inputs["input_ids"][0] == 90).nonzero()[:, 0]
    report = SimpleNamespace(
        spans=[SimpleNamespace(sample=0, columns=columns)],
        steps=[SimpleNamespace(stage="decoder", layer=2, kept=[torch.arange(0, len(columns), 3)], sizes=None)],
    )
    logits = reference(model, inputs, report, plain.positions, plain.generated.tokens[:, :1])
    assert (logits[:, -1] - plain.logits[:, -1]).abs().max() > 1e-2
    assert torch.allclose(logits[0, : columns[1]], plain.logits[0, : columns[1]], atol=1e-4) or family == "gemma3"
