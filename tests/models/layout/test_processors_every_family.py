"""Stock processors of every family: what they write, what the model feeds and what vtc prunes are the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from stock_processors import STOCK
from stock_processors.geometry import GEOMETRY
from stock_processors.make import Stock, picture
from stock_processors.refusals import MODEL_FAILS, NOT_WRAPPED, REFUSED, SHAPES
from versions import known

import vtc
from vtc.eval.check.prompts.build_prompts import KINDS, kind_of
from vtc.eval.check.prompts.placeholders import feature_lengths
from vtc.eval.check.tiny_model.build import build
from vtc.eval.check.tiny_model.config_source import config_of
from vtc.eval.check.tiny_model.shrink import completed, shrink
from vtc.eval.check.tiny_model.token_ids import tokens_of
from vtc.models.layout.model_parts import locate

pytestmark = [
    pytest.mark.usefixtures("no_grad"),
    # there, processors have other classes, arguments and words of refusal
    pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="docs/families.md is of 5.23 on"),
]
KEEP = 0.5
WRAPPED = [kind for kind in KINDS if kind not in NOT_WRAPPED]


@dataclass
class Family:
    """A small model and its stock processor."""

    kind: str
    model: Any
    core: Any
    image: int
    stock: Stock

    def lengths(self, inputs: dict[str, Any]) -> list[int]:
        """Of the features that the model makes."""
        return feature_lengths(self.core, inputs, "image", "get_video_features")

    def text(self) -> dict[str, Any]:
        """A prompt of text, of the tokenizer where the processor refuses it."""
        if "text" in REFUSED.get(self.kind, {}):
            return dict(self.stock.processor.tokenizer(["Q?"], return_tensors="pt"))
        return self.stock([])


@cache
def family(kind: str) -> Family:
    config = config_of(kind)
    prompts = kind_of(config)

    def geometry(small: dict[str, Any]) -> None:
        prompts.geometry(small)
        if kind in GEOMETRY:
            GEOMETRY[kind](small)

    small, _ = shrink(completed(config, prompts.defaults), geometry)
    model = build(small)
    return Family(kind, model, locate(model).core, tokens_of(small).image, STOCK[kind](small))


def pictures_of(shape: str) -> list[Any]:
    return [picture(*size) for size in SHAPES[shape]]


def columns_of(report: Any, row: int) -> list[int]:
    return sorted(c for span in report.spans if span.sample == row for c in span.columns.tolist())


def placeholders(inputs: dict[str, Any], image: int, row: int) -> list[int]:
    return (inputs["input_ids"][row] == image).nonzero()[:, 0].tolist()  # type: ignore[no-any-return]


def test_every_family_has_a_processor() -> None:
    assert STOCK.keys() == KINDS.keys()
    assert {*GEOMETRY, *REFUSED, *MODEL_FAILS, *NOT_WRAPPED} <= KINDS.keys()


CASES = [
    (kind, shape)
    for kind in KINDS
    for shape in SHAPES
    if shape != "text" and (shape != "5 x 1000" or "1 x 1000" in REFUSED.get(kind, {}))
]


@pytest.mark.share(3)
@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_placeholders_are_features_and_the_columns_of_spans(kind: str, shape: str) -> None:
    one, pictures = family(known(kind)), pictures_of(shape)
    refused = REFUSED.get(kind, {}).get(shape)
    if refused:
        with pytest.raises(refused.error, match=refused.words):
            one.stock(pictures)
        return
    inputs = one.stock(pictures)
    fails = MODEL_FAILS.get(kind, {}).get(shape)
    if fails:
        with pytest.raises(fails.error, match=fails.words):
            one.model(**inputs)
        return
    counts, features = one.stock.counts(inputs["input_ids"][0].tolist(), one.image), one.lengths(inputs)
    assert len(counts) == len(pictures)
    assert min(counts) > 0
    assert sum(features) == sum(counts)
    if len(features) >= len(counts):  # or those of a prompt come joined
        assert {*accumulate(counts)} <= {*accumulate(features)}
    plain = one.model(**inputs).logits
    if kind in NOT_WRAPPED:
        with pytest.raises(NotImplementedError, match=NOT_WRAPPED[kind]):
            vtc.compress(one.model, "random", keep=KEEP)
        return
    with vtc.compressed(one.model, "random", keep=1.0) as model:
        assert torch.equal(model(**inputs).logits, plain)
        assert columns_of(model.vtc.report, 0) == placeholders(inputs, one.image, 0)
    with vtc.compressed(one.model, "random", keep=KEEP) as model:
        model(**inputs)
        report = model.vtc.report
    assert report.tokens_total == sum(counts)
    kept = [len(k) for k in report.steps[0].kept]
    assert kept == [max(1, int(KEEP * len(span.columns) + 0.5)) for span in report.spans]


# pictures of each row of a batch, and of families that take one picture a prompt
ROWS = (["4000 x 300"], ["20 x 20", "4000 x 300"], [])
FEWER: dict[str, tuple[list[str], ...]] = {
    "fuyu": (["4000 x 300"], [], ["20 x 20"], ["300 x 4000"]),
    "shieldgemma2": (["4000 x 300"], ["20 x 20"]),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_each_row_of_a_batch_has_its_own(kind: str) -> None:
    one, rows = family(known(kind)), FEWER.get(kind, ROWS)
    inputs = one.stock(*[[p for shape in row for p in pictures_of(shape)] for row in rows])
    plain = one.model(**inputs).logits
    with vtc.compressed(one.model, "random", keep=1.0) as model:
        assert torch.equal(model(**inputs).logits, plain)
        report = model.vtc.report
    for row, shapes in enumerate(rows):
        found = columns_of(report, row)
        assert found == placeholders(inputs, one.image, row)
        assert bool(found) == bool(shapes)
    assert sum(one.lengths(inputs)) == report.tokens_total
    with vtc.compressed(one.model, "random", keep=KEEP) as model:
        model(**inputs)
        assert 0 < model.vtc.report.tokens_kept < report.tokens_total


@pytest.mark.parametrize("kind", WRAPPED)
def test_text_is_left_alone(kind: str) -> None:
    one = family(known(kind))
    refused = REFUSED.get(kind, {}).get("text")
    if refused:
        with pytest.raises(refused.error, match=refused.words):
            one.stock([])
    inputs = one.text()
    plain = one.model(**inputs).logits
    with vtc.compressed(one.model, "random", keep=KEEP) as model:
        assert torch.equal(model(**inputs).logits, plain)
        assert model.vtc.report.spans == []
