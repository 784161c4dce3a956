"""The relevance oracle: a row of Chefer's recursion, on any family's stock model, which it leaves as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import FAMILIES, prompt, shapes_of, tiny

import vtc
from vtc.eval.inspect.relevance import NOTHING, Explanation, explain, propagate, watched_attention

ANSWER = torch.tensor([17, 40, 5])


def recursion(weights: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """R of all layers as the paper writes it, `[L, L]`."""
    found = torch.eye(weights[0].shape[-1])
    for a, g in zip(weights, gradients, strict=True):
        found = found + (a * g).relu().mean(0) @ found
    return found


def toy(x: Tensor, w: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Two layers of causal attention with a residual; the logits, and the attention weights of the layers."""
    seen, heads = [], 2
    for q, k, v in zip(w[0::3], w[1::3], w[2::3], strict=True):
        parts = [(x @ m).unflatten(-1, (heads, -1)).transpose(0, 1) for m in (q, k, v)]
        logits = parts[0] @ parts[1].transpose(1, 2)
        future = torch.ones(len(x), len(x)).triu(1).bool()
        a = logits.masked_fill(future, float("-inf")).softmax(-1)
        seen.append(a)
        x = x + (a @ parts[2]).transpose(0, 1).flatten(1)
    return x, seen


@pytest.mark.parametrize("row", [3, 6])
def test_a_row_vector_through_the_layers_is_that_row_of_the_recursion(row: int) -> None:
    g = torch.Generator().manual_seed(1)
    w = [torch.randn(8, 8, generator=g, requires_grad=True) for _ in range(6)]
    logits, seen = toy(torch.randn(7, 8, generator=g), w)
    gradients = torch.autograd.grad(logits[row, 2], seen)
    whole = recursion(seen, list(gradients))[row]
    assert torch.allclose(propagate([a.detach() for a in seen], [x.clone() for x in gradients], row), whole)
    assert (whole[: row + 1] > 0).sum() > 2
    assert (whole[row + 1 :] == 0).all()  # later tokens have no part in it


def by_hand(family: str, inputs: dict[str, Any], answer: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of all columns token by token, each of a forward of its own; and the first layer's attention."""
    model, total = tiny(family, "eager"), torch.zeros(inputs["input_ids"].shape[1])
    first = torch.empty(0)
    for t in range(len(answer)):
        given = dict(inputs)
        if t:
            more = answer[None, :t]
            given["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
            for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
                if name in inputs:
                    fill = torch.full_like(more, int(name == "attention_mask"))
                    given[name] = torch.cat([inputs[name], fill], 1)
        out = model(**given, use_cache=False, output_attentions=True)
        gradients = torch.autograd.grad(out.logits[0, -1, answer[t]], out.attentions)
        found = recursion([a[0].detach() for a in out.attentions], [x[0] for x in gradients])
        total += found[-1, : len(total)] / len(answer)
        first = first if t else out.attentions[0][0].detach()
    return total, first


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", ["one", "ragged", "clip"])
def test_it_is_the_recursion_on_the_eager_model(family: str, shape: str) -> None:
    if shape not in shapes_of(FAMILIES[family], (shape,)):
        pytest.skip("this family has no videos")
    inputs = prompt(family, shape).alone(1 if shape == "ragged" else 0).inputs  # two pictures with text between
    found = explain(tiny(family), inputs, ANSWER)
    with torch.no_grad(), vtc.compressed(tiny(family), NOTHING) as model:
        model(**inputs)
        columns = [span.columns for span in model.vtc.report.spans]
    total, first = by_hand(family, inputs, ANSWER)
    assert len(found.relevance) == len(found.attention) == len(columns)
    text = torch.ones(len(total), dtype=torch.bool)
    text[torch.cat(columns)] = False
    for got, attention, where in zip(found.relevance, found.attention, columns, strict=True):
        assert got.shape == where.shape
        assert torch.allclose(got, total[where], rtol=1e-3, atol=1e-5 * float(total.max()))
        behind = [i for i in text.nonzero()[:, 0].tolist() if i > int(where[-1])]
        assert torch.allclose(attention, first[:, behind][..., where].mean((0, 1)), atol=1e-6)
    assert sum(float(x.sum()) for x in found.relevance) > 0


def state(model: Any) -> list[Any]:
    layers = model.base_model.language_model.layers
    return [id(layer.self_attn.config) for layer in layers] + [p.requires_grad for p in model.parameters()]


def test_the_model_is_as_before_also_after_an_error() -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    next(model.parameters()).requires_grad_(False)
    before, logits = state(model), model(**inputs).logits
    explain(model, inputs, ANSWER)
    assert state(model) == before
    with watched_attention(model):
        assert state(model) != before
    with pytest.raises(RuntimeError, match="stop"), watched_attention(model):
        raise RuntimeError("stop")
    assert state(model) == before
    assert torch.equal(model(**inputs).logits, logits)
    assert all(p.grad is None for p in model.parameters())


def test_a_wrapped_model_is_explained_without_its_methods() -> None:
    inputs, plain = prompt("llava", "one").inputs, tiny("llava")
    want = explain(plain, inputs, ANSWER).relevance[0]
    vtc.compress(plain, "uniform", keep=3)
    assert torch.equal(explain(plain, inputs, ANSWER).relevance[0], want)
    assert [str(p) for p in plain.vtc.pipeline] == ["uniform(keep=3)"]


def test_without_a_backward_pass_only_the_attention_is_there() -> None:
    inputs = prompt("qwen2_5_vl", "one").inputs
    found, whole = (explain(tiny("qwen2_5_vl"), inputs, ANSWER, backward=b) for b in (False, True))
    assert found.relevance == []
    assert torch.allclose(found.attention[0], whole.attention[0], atol=1e-6)
    assert not found.attention[0].requires_grad


def test_the_answer_is_what_the_model_says_without_its_end() -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    said = model.generate(**inputs, do_sample=False, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
    found: Explanation = explain(model, inputs, max_new_tokens=4)
    assert found.answer.tolist() == said.tolist()
    model.generation_config.eos_token_id = int(said[2])
    end = said.tolist().index(int(said[2]))
    assert explain(model, inputs, max_new_tokens=4).answer.tolist() == said[: max(1, end)].tolist()
    model.generation_config.eos_token_id = [int(said[0])]  # nothing but the end: that is explained
    assert explain(model, inputs, max_new_tokens=4).answer.tolist() == said[:1].tolist()


def test_what_can_not_be_explained_is_refused() -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    with pytest.raises(ValueError, match="at least one token"):
        explain(model, inputs, ANSWER[:0])
    with pytest.raises(ValueError, match="a batch of 3"):
        explain(model, prompt("llava", "ragged").inputs, ANSWER)
    with pytest.raises(ValueError, match="no visual token"):
        explain(model, prompt("llava", "text").alone(0).inputs, ANSWER)
    model.train()
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        explain(model, inputs, ANSWER)
    assert "vtc" not in model.__dict__
