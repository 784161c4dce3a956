"""``AttentionAhead`` is the pruning layer's own attention on what enters it, and reading it leaves no trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from accelerate import cpu_offload
from fake_runs import stops_wait_for_nothing
from generating import positions_of
from gradients_of import gradients, labelled, same
from looking_ahead import AHEAD, Look, rows_equal
from reference import greedy, hidden_per_layer
from torch import Tensor
from versions import greedy_offloaded
from zoo import FAMILIES, Prompt, prompt, tiny
from zoo.tokens import words

import vtc
from vtc.pruners.signals import AttentionAhead, DecoderAttention

no_grad = pytest.mark.usefixtures("no_grad")
EARLIER = "random(layer=1, keep=0.5, seed=3)"


@no_grad
@pytest.mark.parametrize("impl", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_eager_models_attention_of_the_pruning_layer(family: str, impl: str) -> None:
    look, inputs = Look(), prompt(family, "ragged").inputs
    model = tiny(family, impl)
    with vtc.compressed(model, look):
        out = model(**inputs, use_cache=True, output_attentions=impl == "eager")
        report = model.vtc.report
    plain = tiny(family, "eager")(**inputs, use_cache=True, output_attentions=True)
    rows_equal(look, report, plain.attentions[3])
    assert out.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length()
    if not report.layouts[0].has_newlines:  # they leave with the first step
        real = inputs["attention_mask"].bool()
        assert (out.logits - plain.logits)[real].abs().max() < 1e-4
        for mine, theirs in zip(out.past_key_values.layers, plain.past_key_values.layers, strict=True):
            assert mine.keys.shape == theirs.keys.shape
    if impl == "eager":
        assert len(out.attentions) == len(plain.attentions), "the look ahead is not recorded"


@no_grad
@pytest.mark.parametrize("family", FAMILIES)
def test_behind_an_earlier_step_it_is_of_the_tokens_left(family: str) -> None:
    look, inputs = Look(), prompt(family, "text_row").inputs
    model, eager = tiny(family), tiny(family, "eager")
    with vtc.compressed(model, [vtc.parse(EARLIER)[0], look]):
        logits = model(**inputs).logits
        report = model.vtc.report
    with vtc.compressed(eager, EARLIER):
        plain = eager(**inputs, output_attentions=True)
        assert all(torch.equal(a, b) for a, b in zip(report.steps[0].kept, eager.vtc.report.steps[0].kept, strict=True))
    rows_equal(look, report, plain.attentions[3])
    assert (logits - plain.logits)[:, -1].abs().max() < 1e-4


@no_grad
@pytest.mark.parametrize("family", ["llava", "llava_sliding", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_on_a_second_turn_it_sees_the_cache_and_leaves_it_alone(family: str) -> None:
    """Both turns prune at layer 1; the second brings a picture, and its layers attend to the first turn as well."""
    given, generator, kind = prompt(family, "ragged"), torch.Generator().manual_seed(9), FAMILIES[family]
    pictures = [kind.picture(kind.sizes[0], True, generator) for _ in given.rows]
    tails = [[*words(4, generator), *m.ids, *words(3, generator)] for m in pictures]
    rows = [[*row, *tail] for row, tail in zip(given.rows, tails, strict=True)]
    media = [[*media, m] for media, m in zip(given.media, pictures, strict=True)]
    both, first = Prompt(kind, rows, media).inputs, given.inputs
    past, positions = first["input_ids"].shape[1], positions_of(family, both)
    second = Prompt(kind, tails, [[m] for m in pictures]).inputs
    second["attention_mask"] = both["attention_mask"]
    if "token_type_ids" in both:
        second["token_type_ids"] = both["token_type_ids"]
    layer = 2  # without a window in Gemma3
    outputs, reports, look = [], [], Look(layer=layer)
    for impl, pipeline in (("eager", vtc.parse(EARLIER)), ("sdpa", [*vtc.parse(EARLIER), look])):
        model = tiny(family, impl)
        with vtc.compressed(model, pipeline):
            out = model(**first, position_ids=positions[..., :past], use_cache=True)
            cache = out.past_key_values
            out = model(
                **second,
                position_ids=positions[..., past:],
                past_key_values=cache,
                use_cache=True,
                output_attentions=impl == "eager",
            )
            outputs.append(out)
            reports.append(model.vtc.report)
    eager, sdpa = outputs
    weights = eager.attentions[layer]
    new = weights.shape[2]
    rows_equal(look, reports[1], weights[..., -new:])
    assert weights.shape[3] > new
    if family != "llava_sliding":
        assert (weights[:, :, -1, :-new] > 1e-3).any(), "the past takes its share"
    assert (eager.logits - sdpa.logits)[:, -1].abs().max() < 1e-4
    for a, b in zip(eager.past_key_values.layers, sdpa.past_key_values.layers, strict=True):
        assert a.keys.shape == b.keys.shape
        assert torch.allclose(a.keys[:, :, -1], b.keys[:, :, -1], atol=1e-4)


@dataclass(kw_only=True)
class Reading(Look):
    """Reads the rows of every text token and of every column, too."""

    read: dict[str, Tensor] = field(default_factory=dict)
    valid: list[Tensor] = field(default_factory=list)

    signals = (AHEAD, AttentionAhead(queries="text"), AttentionAhead(queries="all"))

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        self.read |= {s.queries: tokens.read(s) for s in self.signals}
        self.valid[:] = [tokens.text_valid()[tokens.sample], tokens.text_valid(after=True)]
        return super().select(tokens, k)


@no_grad
@pytest.mark.parametrize("shape", ["ragged", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_all_text_and_of_all_columns(family: str, shape: str) -> None:
    """Behind an earlier step, in samples of several pictures; text padded in front, columns as the layer has them."""
    look, inputs = Reading(), prompt(family, shape).inputs
    valid = inputs["attention_mask"].bool()
    model, eager = tiny(family), tiny(family, "eager")
    with vtc.compressed(model, [vtc.parse(EARLIER)[0], look]):
        model(**inputs)
        report = model.vtc.report
    with vtc.compressed(eager, EARLIER):
        weights = eager(**inputs, output_attentions=True).attentions[3]
    gone = hidden_per_layer(report, *valid.shape, 4)[2]
    visual = torch.zeros_like(valid)
    for span in report.spans:
        visual[span.sample, span.columns] = True
    for row, span in enumerate(report.spans):
        b, left = span.sample, span.columns[report.steps[0].kept[row]]
        present = valid[b] & ~gone[b]
        width = look.read["all"].shape[2]  # of what is left in the longest row
        place = present.long().cumsum(0) - 1 + width - int(present.sum())  # right-aligned
        text = (valid[b] & ~visual[b]).nonzero()[:, 0]
        real, behind = (x[row] for x in look.valid)
        rows, n = look.read["text"][row], len(left)
        assert torch.allclose(rows[:, real][..., :n], weights[b][:, text][..., left], atol=1e-4)
        assert int(behind.sum()) == int((text > span.columns[-1]).sum()) > 0
        assert (rows[..., n:] == 0).all()
        rows = look.read["all"][row]
        every = present.nonzero()[:, 0]
        assert int(place[every[-1]]) == rows.shape[1] - 1 or shape == "right"
        assert torch.allclose(rows[:, place[every]][..., :n], weights[b][:, every][..., left], atol=1e-4)
        last = look.read["last"][row][:, 0]
        assert torch.allclose(last[:, :n], weights[b][:, every[-1]][:, left], atol=1e-4)


@no_grad
def test_right_padding_and_layer_0() -> None:
    inputs = prompt("llava", "right").inputs
    plain = tiny("llava", "eager")(**inputs, output_attentions=True).attentions
    for layer in (0, 3):
        model, look = tiny("llava"), Look(layer=layer)
        with vtc.compressed(model, look):
            model(**inputs)
            last = inputs["attention_mask"].sum(1) - 1
            rows_equal(look, model.vtc.report, plain[layer], last)


@dataclass(kw_only=True)
class Ahead(vtc.ScorePruner):
    """The tokens that the last prompt token attends to at two layers, beside what it attended to right before."""

    name: ClassVar[str] = "ahead"
    seen: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    signals = (AHEAD, DecoderAttention())

    def stops(self, depth: int) -> tuple[vtc.Stop, ...]:
        return vtc.Stop("decoder", 2, 0.6), vtc.Stop("decoder", 4, 0.3)

    def score(self, tokens: vtc.VisualTokens) -> Tensor:
        ahead, behind = (tokens.read(s)[:, :, 0] for s in self.signals)
        assert ahead.shape == behind.shape
        assert tokens.layer is not None
        self.seen[tokens.layer] = ahead, behind
        return ahead.mean(1)


@no_grad
@pytest.mark.parametrize("family", FAMILIES)
def test_it_waits_for_nothing(family: str) -> None:
    stops_wait_for_nothing(family, Ahead(), 2, 4)


@no_grad
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_it_is_the_same_under_accelerates_offloading(family: str) -> None:
    inputs, tokens = prompt(family, "ragged").inputs, []
    for offloaded in (False, True):
        model, pruner = tiny(family), Ahead()
        if offloaded:
            model = cpu_offload(model, execution_device=torch.device("cpu"))
            greedy_offloaded(model, inputs, 1)
        vtc.compress(model, pruner)
        tokens.append((greedy(model, inputs, 3).logits, pruner.seen))
    assert torch.allclose(tokens[0][0], tokens[1][0], atol=1e-4)
    for layer in (2, 4):
        assert torch.allclose(tokens[0][1][layer][0], tokens[1][1][layer][0], atol=1e-5)
        assert not torch.allclose(*tokens[0][1][layer], atol=1e-3)


def test_training_with_checkpointing_and_without() -> None:
    model, inputs = tiny("llava").train(), labelled("llava")
    vtc.compress(model, Ahead())
    loss, plain = gradients(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again, checkpointed = gradients(model, inputs)
    assert torch.allclose(loss, again, atol=1e-6)
    same(plain, checkpointed, 1e-5)


@no_grad
def test_it_has_no_layer_and_no_text() -> None:
    class Named(Ahead):
        signals = (AttentionAhead(layer=2), DecoderAttention())

    class AtInput(Ahead):
        def stops(self, depth: int) -> tuple[vtc.Stop, ...]:
            return (vtc.Stop("input", None, 0.5),)

    class Texting(Look):
        def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
            return tokens.text(AHEAD)

    with pytest.raises(ValueError, match="it is of the pruning layer, leave layer out"):
        vtc.compress(tiny("llava"), Named())
    with pytest.raises(ValueError, match="can't prune at the input stage"):
        vtc.compress(tiny("llava"), AtInput())
    with pytest.raises(ValueError, match=r"AttentionAhead.queries must be .*, got 'some'"):
        AttentionAhead(queries="some")
    with pytest.raises(ValueError, match="no value per text token"):
        vtc.compress(tiny("llava"), Texting())(**prompt("llava", "one").inputs)
