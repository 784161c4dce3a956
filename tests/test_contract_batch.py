"""Contract 3: ragged batches give what the samples give alone, and right padding what left padding gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts import TOLERANCE, outcome
from methods import BOTH_STAGES, IN_THE_TOWER, METHODS, READING, Setting, cells
from reference import baseline, greedy
from zoo import BATCHES, FAMILIES, prompt, tiny

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")
TOKENS = 4


def kept_of_sample(report: Any, sample: int) -> list[list[list[int]]]:
    """Per step, per span of `sample`: the kept ids."""
    rows = [i for i, span in enumerate(report.spans) if span.sample == sample]
    return [[step.kept[i].tolist() for i in rows] for step in report.steps]


def batch_equals_one_by_one(setting: Setting, family: str, shape: str) -> None:
    model, given = tiny(family), prompt(family, shape)
    together = outcome(setting, family, shape)
    with vtc.compressed(model, setting.pruner, keep=setting.keep, **setting.params):
        for b in range(len(given.rows)):
            single = greedy(model, given.alone(b).inputs, TOKENS)
            assert torch.equal(single.tokens[0], together.generated.tokens[b, :TOKENS]), f"sample {b}"
            assert torch.allclose(single.logits[0], together.generated.logits[b, :TOKENS], atol=TOLERANCE)
            if given.media[b]:
                assert kept_of_sample(model.vtc.report, 0) == kept_of_sample(together.report, b)


@pytest.mark.parametrize(("setting", "family"), cells(METHODS, FAMILIES))
def test_batch_equals_one_by_one(setting: Setting, family: str) -> None:
    batch_equals_one_by_one(setting, family, "ragged")


@pytest.mark.parametrize(
    ("setting", "family", "shape"), cells([BOTH_STAGES, READING, IN_THE_TOWER], FAMILIES, *BATCHES)
)
def test_batch_equals_one_by_one_under_every_prompt_shape(setting: Setting, family: str, shape: str) -> None:
    batch_equals_one_by_one(setting, family, shape)


@pytest.mark.parametrize(("setting", "family"), cells([BOTH_STAGES, READING, IN_THE_TOWER], FAMILIES))
def test_right_padding_equals_left_padding(setting: Setting, family: str) -> None:
    left, right = outcome(setting, family, "ragged"), outcome(setting, family, "right")
    for b, row in enumerate(prompt(family, "right").rows):
        a, c = left.logits[b, -len(row) :], right.logits[b, : len(row)]
        assert torch.allclose(a, c, atol=TOLERANCE)
        assert kept_of_sample(left.forward_report, b) == kept_of_sample(right.forward_report, b)
    plain = baseline(family, "right")
    assert (plain.logits - right.logits).abs().max() > 1e-3
