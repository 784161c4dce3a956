"""Contract 3: ragged batches give what the samples give alone, and right padding what left padding gives."""

from __future__ import annotations

import pytest
import torch
from contract_checks import batch_equals_one_by_one, kept_of_sample
from contracts import TOLERANCE, outcome
from methods import BOTH_STAGES, IN_THE_TOWER, METHODS, READING, Setting, cells
from reference import baseline
from zoo import BATCHES, FAMILIES, prompt

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.mark.parametrize(("setting", "family"), cells(METHODS, FAMILIES))
def test_batch_equals_one_by_one(setting: Setting, family: str) -> None:
    batch_equals_one_by_one(setting, family, "ragged")


@pytest.mark.share(2)
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
