"""The checks behind contracts 1 to 4, for tests that hold more than the registry against them."""

from __future__ import annotations

from typing import Any

import torch
from contracts import TOLERANCE, outcome
from methods import (
    Setting,
)
from reference import (
    allowed,
    baseline,
    check_choice,
    features_given,
    greedy,
    kept_at_end,
    reference,
    text_model,
)
from zoo import prompt, tiny

import vtc

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


def pruned_equals_masked(setting: Setting, family: str, shape: str) -> None:
    pruned, plain = outcome(setting, family, shape), baseline(family, shape)
    model, given = tiny(family), prompt(family, shape).inputs
    width = given["input_ids"].shape[1]
    tokens = pruned.generated.tokens if shape != "right" else torch.zeros(len(given["input_ids"]), 1, dtype=torch.long)
    with features_given(model, pruned.features):
        gates: dict[int, torch.Tensor] = {}
        routers = getattr(setting.pruner, "gates_of", None)
        logits = reference(model, given, pruned.report, plain.positions, tokens, pruned.vectors, routers, gates)
    if routers is not None:
        ratios = {stop.layer: stop.keep for stop in setting.pruner.stops(len(text_model(model).layers))}
        check_choice(pruned.report, gates, ratios)
    kept = kept_at_end(pruned.report, given["attention_mask"], len(text_model(model).layers))
    assert (pruned.logits - logits[:, :width])[kept].abs().max() < TOLERANCE
    if shape != "right":
        assert (pruned.generated.logits - logits[:, width - 1 :]).abs().max() < TOLERANCE
        assert torch.equal(allowed(logits[:, width - 1 :]).argmax(-1), tokens)
