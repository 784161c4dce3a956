"""vtc.embed: the pictures of a wrapped model as embeddings, for an engine that is fed them."""

from __future__ import annotations

import pytest
import torch
from contracts import TOLERANCE
from zoo import FAMILIES, prompt, tiny

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")
METHODS = ("divprune", "pool", "random")
SEVERAL_AXES = [name for name in FAMILIES if name.startswith("qwen")]
LATER = {
    "llava_sliding": "tokens and some layers see",
    "gemma3": "tokens and some layers see",
    "pixtral": "the text of this prompt goes on inside a picture",
    "mistral3": "the text of this prompt goes on inside a picture",
}
TAKEN = [name for name in FAMILIES if name not in SEVERAL_AXES and name not in LATER]


def fed_with(model, inputs, row, pictures, spans):
    """Last logits of the untouched `model` on a row in whose text these `pictures` stand in place of its own."""
    embeds, gone = model.get_input_embeddings()(inputs["input_ids"][row]), ~inputs["attention_mask"][row].bool()
    rows, last = [], 0
    for picture, columns in zip(pictures, (s.columns for s in spans if s.sample == row), strict=True):
        gone[columns] = True
        first = int(columns.min())
        rows += [embeds[last:first][~gone[last:first]], picture]
        last = first
    rows.append(embeds[last:][~gone[last:]])
    return model(inputs_embeds=torch.cat(rows)[None]).logits[0, -1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", TAKEN)
def test_an_engine_fed_with_them_answers_as_the_wrapped_model(family, method):
    model, inputs = tiny(family), prompt(family, "ragged").inputs
    with vtc.compressed(model, method, keep=3, positions="compact"):
        found = vtc.embed(model, inputs)
        wrapped = model(**inputs)
        report = model.vtc.report
    assert [len(row) for row in found] == [
        sum(s.sample == b for s in report.spans) for b in range(len(inputs["input_ids"]))
    ]
    for row, pictures in enumerate(found):
        assert {len(picture) for picture in pictures} <= {3}
        last = int(inputs["attention_mask"][row].nonzero().max())
        logits = fed_with(model, inputs, row, pictures, report.spans)
        torch.testing.assert_close(logits, wrapped.logits[row, last], atol=TOLERANCE, rtol=0)


def test_where_everything_is_kept_the_pictures_are_whole():
    model = vtc.compress(tiny("llava"), "random", keep=1.0, positions="compact")
    found = vtc.embed(model, prompt("llava", "ragged").inputs)
    assert [len(picture) for row in found for picture in row] == [s.columns.numel() for s in model.vtc.report.spans]


@pytest.mark.parametrize("family", SEVERAL_AXES)
def test_pictures_that_are_more_than_embeddings_are_refused(family):
    model = vtc.compress(tiny(family), "random", keep=3)
    with pytest.raises(NotImplementedError, match="beside the embeddings of pictures, so embeddings alone are not"):
        vtc.embed(model, prompt(family, "ragged").inputs)


@pytest.mark.parametrize("family", LATER)
def test_prompts_that_an_engine_would_read_otherwise_are_refused(family):
    model = vtc.compress(tiny(family), "random", keep=3, positions="compact")
    with pytest.raises(NotImplementedError, match=LATER[family]):
        vtc.embed(model, prompt(family, "ragged").inputs)


def test_what_is_refused_says_what_to_do():
    model, inputs = tiny("llava"), prompt("llava", "ragged").inputs
    with pytest.raises(ValueError, match="wrap the model first"):
        vtc.embed(model, inputs)
    with pytest.raises(ValueError, match="wrap the model first"):
        vtc.embed("llava", inputs)
    with (
        vtc.compressed(model, "random", keep=3),
        pytest.raises(ValueError, match="wrap it with positions='compact'"),
    ):
        vtc.embed(model, inputs)
    with (
        vtc.compressed(model, "fastv", keep=3, layer=2),
        pytest.raises(NotImplementedError, match="fastv drops tokens inside the language model"),
    ):
        vtc.embed(model, inputs)
    with (
        vtc.compressed(model, "random", keep=3, positions="compact"),
        pytest.raises(ValueError, match="there is no picture in these inputs"),
    ):
        vtc.embed(model, prompt("llava", "text").inputs)


def test_the_model_is_left_as_it_was():
    model, inputs = tiny("llava"), prompt("llava", "ragged").inputs
    vtc.compress(model, "random", keep=3, positions="compact")
    before = model(**inputs).logits
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    first, again = vtc.embed(model, inputs), vtc.embed(model, inputs)
    assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert torch.equal(model(**inputs).logits, before)
