"""HAWK: its formula, which text asks, weights of heads, and that the logits it reads know nothing of positions."""

from __future__ import annotations

import json
import math

import pytest
import torch
from methods import Setting
from properties import Spans, check_selection, chosen
from zoo import prompt, tiny

import vtc
from vtc.pruners.hawk import FORMAT, QWEN, QWEN_HEADS
from vtc.pruners.signals import AttentionAhead, TextEmbeddings

pytestmark = pytest.mark.usefixtures("no_grad")
LOGITS = AttentionAhead(queries="text", content=True)


def heads_file(path, weights, **more):
    path.write_text(json.dumps({"format": FORMAT, "weights": weights, **more}))
    return str(path)


def make(counts, budgets, texts, heads=3, seed=0):
    """Spans with `texts` tokens of text behind each."""
    g = torch.Generator().manual_seed(seed)
    rows = [torch.randn(heads, t, n, generator=g) for t, n in zip(texts, counts, strict=True)]
    reads = {LOGITS: [torch.nn.functional.pad(r, (0, 0, 0, max(texts) - r.shape[1])) for r in rows]}
    behind = {TextEmbeddings(): [torch.zeros(t, 1) for t in texts]}
    return Spans([torch.zeros(n, 1) for n in counts], budgets, reads, behind, stage="decoder", layer=0)


def slow_scores(rows, weights, first=0, last=0):
    """The formula with plain numbers; `rows [H][T][N]`."""
    total = [0.0] * len(rows[0][0])
    for head, weight in zip(rows, weights, strict=True):
        asked = head[first : len(head) - last] or head
        mean = [sum(column) / len(asked) for column in zip(*asked, strict=True)]
        norm = math.sqrt(sum(x * x for x in mean))
        total = [t + weight * x / norm for t, x in zip(total, mean, strict=True)]
    return total


def test_by_hand():
    """Heads (3, 4) and (1, 0) of two tokens: (0.6, 0.8) and (1, 0)."""
    logits = torch.tensor([[[2.0, 4.0], [4.0, 4.0]], [[1.0, 1.0], [1.0, -1.0]]])
    spans = Spans(
        [torch.zeros(2, 1)], [1], {LOGITS: [logits]}, {TextEmbeddings(): [torch.zeros(2, 1)]}, stage="decoder", layer=0
    )
    assert vtc.parse("hawk(keep=1)")[0].score(spans.tokens())[0].tolist() == pytest.approx([1.6, 0.8])


@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 0), (0, 2), (1, 3), (3, 3), (9, 0)])
def test_the_formula_in_plain_numbers(first, last, tmp_path):
    weights, texts = [0.0, 2.0, 0.5], (6, 4, 5)
    file = heads_file(tmp_path / "heads.json", weights)
    pruner = vtc.parse("hawk", keep=4, weights=file, first=first, last=last)[0]
    spans = make([12, 7, 9], [4, 4, 4], texts)
    found = pruner.score(spans.tokens())
    for i, n in enumerate((12, 7, 9)):
        rows = spans.reads[LOGITS][i][:, : texts[i]].tolist()
        cut = (first, last) if first + last < texts[i] else (0, 0)  # else nothing would be asked
        expected = torch.tensor(slow_scores(rows, weights, *cut))
        assert torch.allclose(found[i, :n], expected, atol=1e-6)
        best = sorted(range(n), key=lambda j: -expected[j])[:4]
        assert sorted(chosen(pruner, spans.tokens())[i]) == sorted(best)
    check_selection(pruner, make([12, 7, 9], [4, 2, 3], [6, 6, 6]))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_what_it_reads_are_products_of_projections_without_rotation(family):
    """Computed from the weights of layer 0 themselves, on what the untouched model gives that layer."""
    given = prompt(family, "text_row").inputs
    model, seen, entered = tiny(family), [], []
    pruner = vtc.parse("hawk(keep=0.5)")[0]
    lm = getattr(model.base_model, "language_model", None) or model.base_model.text_model
    layer = lm.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    model(**given)
    hook.remove()
    score = pruner.score
    pruner.score = lambda tokens: (seen.append((tokens.read(LOGITS), tokens.ids, tokens.sample)), score(tokens))[1]
    with vtc.compressed(model, pruner):
        model(**given)
        report = model.vtc.report
    x, attention = layer.input_layernorm(entered[0]), layer.self_attn
    q, k = (p(x).unflatten(-1, (-1, attention.head_dim)) for p in (attention.q_proj, attention.k_proj))
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
    products = torch.einsum("bqhd,bkhd->bhqk", q, k) * attention.scaling
    (logits, ids, _), text = seen[0], given["attention_mask"].bool()
    for row, span in enumerate(report.spans):
        mine = text[span.sample].clone()
        for other in report.spans:
            if other.sample == span.sample:
                mine[other.columns] = False
        want = products[span.sample][:, mine][:, :, span.columns[ids[row][ids[row] >= 0]]]
        assert torch.allclose(logits[row][:, -want.shape[1] :, : want.shape[2]], want, atol=1e-4)


def test_weights_of_heads(tmp_path):
    spans = make([10], [3], [4], heads=28)
    qwen = vtc.parse("hawk", keep=3, weights=QWEN)[0]
    rows = spans.reads[LOGITS][0].tolist()
    assert torch.allclose(qwen.score(spans.tokens())[0], torch.tensor(slow_scores(rows, QWEN_HEADS)), atol=1e-6)
    with pytest.raises(ValueError, match=r"of 28 heads, and this model has 3: .*vtc hawk"):
        qwen.score(make([10], [3], [4]).tokens())
    assert qwen.file_content("weights") is None
    file = tmp_path / "heads.json"
    for content, message in (
        ("[", "is no JSON"),
        ("{}", "was not written by"),
        (json.dumps({"format": FORMAT, "weights": ["a"]}), "is damaged"),
        (json.dumps({"format": FORMAT, "weights": [0, 0]}), "not all zero"),
        (json.dumps({"format": FORMAT, "weights": [1, -1]}), "numbers >= 0"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            vtc.parse("hawk", keep=3, weights=str(file))[0].check_files()
    with pytest.raises(FileNotFoundError, match="is no file here"):
        vtc.parse("hawk", keep=3, weights="gone.json")[0].check_files()
    with pytest.raises(ValueError, match=r"hawk.last=-1 is out of range"):
        vtc.parse("hawk(last=-1)")


def test_runs_on_a_model_with_a_file(tmp_path):
    setting = Setting("hawk", 0.5, {"weights": heads_file(tmp_path / "heads.json", [1.0, 0.0, 0.5, 2.0])})
    model = tiny("llava")
    with vtc.compressed(model, setting.pruner, keep=setting.keep, **setting.params):
        model(**prompt("llava", "ragged").inputs)
        report = model.vtc.report
    assert [len(kept) for kept in report.steps[0].kept] == [setting.kept(len(s.columns)) for s in report.spans]
