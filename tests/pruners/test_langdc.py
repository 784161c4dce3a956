"""LangDC as a method: its captioner is transformers' Llama, where tokens go, and what it counts."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from made_up import layout_of
from properties import Spans
from zoo import prompt, tiny

import vtc
from vtc.eval.cost.flops import counting
from vtc.eval.cost.prefill_cost import Measured
from vtc.pruners.base import Merged
from vtc.pruners.langdc import LangDC
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import PreProjector
from vtc.pruners.trained.captioner import CONFIG, Captioner
from vtc.pruners.trained.captions import pool_centres, pool_grid, pool_square

pytestmark = pytest.mark.usefixtures("no_grad")
END, PAD = 2, 0


def stock(**more: Any) -> tuple[Any, Captioner]:
    """A random Llama of transformers, and the same as a captioner."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = {**CONFIG, "vocab_size": 40, "num_hidden_layers": 2, "num_key_value_heads": 1, **more}
    given = {k: v for k, v in config.items() if k != "rope_theta"}
    torch.manual_seed(0)
    llama = LlamaForCausalLM(
        LlamaConfig(**given, rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]})
    ).eval()
    for weight in llama.parameters():
        weight.data = torch.randn_like(weight) * 0.4
    ours = Captioner(config)
    ours.load_state_dict({k: v for k, v in llama.state_dict().items() if k in ours.state_dict()})
    return llama, ours


@pytest.mark.parametrize("tied", [False, True])
def test_states_and_captions_are_those_of_the_stock_llama(tied: bool) -> None:
    llama, ours = stock(tie_word_embeddings=tied)
    x, there = torch.randn(3, 6, 16), torch.ones(3, 6, dtype=torch.bool)
    there[1, 2:4] = False
    out = llama(inputs_embeds=x, attention_mask=there.long(), position_ids=(there.cumsum(1) - 1).clamp(min=0),
                output_hidden_states=True)  # fmt: skip
    states = ours(x, there)
    assert len(states) == len(out.hidden_states)
    for a, b in zip(states, out.hidden_states, strict=True):
        assert torch.allclose(a[there], b[there], atol=1e-5)
    assert torch.allclose(ours.logits(states[-1])[there], out.logits[there], atol=1e-4)
    found, ids = ours.say(x, there, 7, 1, END, PAD)
    for row in range(3):
        shown, said = x[row, there[row]][None], []
        for step in range(ids.shape[1]):
            out = llama(inputs_embeds=shown, output_hidden_states=True)
            logits = out.logits[0, -1]
            logits[PAD] = float("-inf")
            assert torch.allclose(found[row, step], out.hidden_states[1][0, -1], atol=1e-4)
            said.append(int(logits.argmax()))
            if said[-1] == END:
                break
            shown = torch.cat([shown, llama.get_input_embeddings()(torch.tensor([[said[-1]]]))], 1)
        assert ids[row].tolist() == said + [PAD] * (ids.shape[1] - len(said))


def test_its_flops_are_those_that_torch_counts() -> None:
    _, ours = stock()
    with counting() as counter:
        _, ids = ours.say(torch.randn(1, 5, 16), torch.ones(1, 5, dtype=torch.bool), 6, 1, -1, PAD)
    assert ids.shape[1] == 6
    assert counter.get_total_flops() == ours.flops(5, 6)


def spans(layouts: list[Layout], budgets: list[int], seed: int = 0) -> Spans:
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(x.tokens, 8, generator=generator) for x in layouts]
    patches = [torch.randn(x.tokens, 1, 6, generator=generator) for x in layouts]
    return Spans(features, budgets, {PreProjector(): patches}, layouts=layouts)


class Says(LangDC):
    """Whose captions are given."""

    captions: ClassVar[list[list[int]]] = []

    def run(self, tokens: Any, *inputs: Any, **options: Any) -> Any:
        if "there" not in options:
            return super().run(tokens, *inputs)
        self.shown, self.there = inputs[0], options["there"]
        ids = torch.tensor(self.captions)
        return torch.arange(ids.numel() * 8.0).view(*ids.shape, 8) + 1000, ids


def test_pooled_tokens_of_a_video_come_first_and_then_its_captions() -> None:
    video = Layout(tuple(Grid(4, 4) for _ in range(6)))
    given = spans([video], [24])
    pruner = Says(keep=24, weights="untrained")
    pruner.captions = [[5, END, PAD], [6, 7, END]]
    found = pruner.select(given.tokens(), 24)
    assert isinstance(found, Merged)
    assert found.index.shape == (1, 24 + 2 + 3)
    index = found.index[0].tolist()
    assert index == sorted(set(index))
    frames = given.features[0].unflatten(0, (6, 16))
    assert torch.allclose(found.features[0, :24], pool_square(frames, 2).flatten(0, 1), atol=1e-6)
    assert index[-5:] == [91, 92, 93, 94, 95]
    assert index[:20] == [16 * f + i for f in range(5) for i in pool_centres((4, 4), (2, 2)).tolist()]
    assert found.features[0, 24:, 0].tolist() == [1000, 1008, 1024, 1032, 1040]
    assert pruner.there.sum(1).tolist() == [4 * 4, 2 * 4], "segments of four frames, pooled to 2x2"
    pruner.length = "code"  # the longest caption loses its last step
    assert pruner.select(given.tokens(), 24).index.shape == (1, 24 + 2 + 2)


def test_pictures_of_a_prompt_are_one_clip_unless_each_is_to_be_its_own() -> None:
    given = spans([layout_of("image", 4, 4)] * 3 + [layout_of("image", 2, 3)], [4, 4, 4, 2])
    tokens = given.tokens()
    tokens.sample, tokens.order = torch.tensor([0, 0, 0, 1]), [1, 0, 2, 0]
    pruner = Says(keep=4, weights="untrained")
    pruner.captions = [[5, END, PAD], [6, 7, END]]
    index = pruner.select(tokens, 4).index
    assert [int((row >= 0).sum()) for row in index] == [4, 4, 4 + 2, 2 + 3], "behind the last picture of each sample"
    assert pruner.there.sum(1).tolist() == [12, 4]
    pruner.join, pruner.captions = False, [[5, END, PAD], [6, 7, END], [END, PAD, PAD], [6, END, PAD]]
    index = pruner.select(tokens, 4).index
    assert [int((row >= 0).sum()) for row in index] == [4 + 3, 4 + 2, 4 + 1, 2 + 2]


def test_captions_take_no_more_places_than_there_are() -> None:
    given = spans([Layout.line(5)], [3])
    pruner = Says(keep=3, weights="untrained")
    pruner.captions = [[5, 6, 7, 8, END]]
    assert pruner.select(given.tokens(), 3).index.tolist() == [[0, 1, 2, 3, 4]]


def test_any_grid_is_pooled() -> None:
    x = torch.randn(2, 15, 3)
    found = pool_grid(x, (3, 5), (2, 2))
    assert torch.allclose(found[:, 0], x.view(2, 3, 5, 3)[:, :2, :3].mean((1, 2)), atol=1e-6)
    assert pool_centres((24, 24), (6, 6))[:2].tolist() == [25, 29]


def test_what_captioning_costs_is_in_the_report() -> None:
    given, model = prompt("llava", "ragged"), tiny("llava")
    with vtc.compressed(model, "langdc", keep=4, weights="untrained"):
        model(**given.inputs)
        report = model.vtc.report
    samples = {span.sample for span in report.spans}
    assert sorted(report.own_flops) == sorted(samples)
    measured = [Measured.from_report(report, b, report.depth) for b in samples]
    assert [m.own for m in measured] == [report.own_flops[b] for b in samples]
    assert min(m.own for m in measured) > 0
    pooled = [4 * sum(span.sample == b for span in report.spans) for b in samples]
    assert all(m.kept > n for m, n in zip(measured, pooled, strict=True)), "captions come on top"


def test_wrong_options_are_told() -> None:
    with pytest.raises(ValueError, match=r"langdc\.length='nope'; allowed are paper, code"):
        LangDC(length="nope")
    with pytest.raises(ValueError, match=r"no trained network of langdc comes with vtc.*vtc train langdc"):
        vtc.compress(tiny("llava"), "langdc")
