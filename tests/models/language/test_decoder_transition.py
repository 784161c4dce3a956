"""``DecoderTransition`` against what the untouched model's own sublayers take and give, and it leaves no trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from accelerate import cpu_offload
from fake_runs import stops_wait_for_nothing
from generating import positions_of
from gradients_of import gradients, labelled, same
from reference import hidden_per_layer, text_model
from sublayer_states import sublayers
from torch import Tensor
from torch.nn.functional import cosine_similarity
from versions import greedy_offloaded
from zoo import FAMILIES, Prompt, prompt, tiny
from zoo.tokens import CLOSE, SPECIAL, words

import vtc
from vtc.pruners.signals import DecoderTransition

no_grad = pytest.mark.usefixtures("no_grad")
BLOCKS = {"attention": "self_attn", "mlp": "mlp"}
EARLIER = "random(layer=1, keep=0.5, seed=3)"
EVERY = tuple(
    DecoderTransition(layer, block=block, over=over, absolute=absolute)
    for layer, absolute in ((0, False), (1, False), (2, True))
    for block in BLOCKS
    for over in ("sequence", "span")
)


@dataclass(kw_only=True)
class Spy(vtc.Pruner):
    """Reads how sublayers change the tokens, and keeps everything although asked for one token."""

    name: ClassVar[str] = "spy"
    keep: int = 1
    layer: int = 3
    seen: dict[Any, Tensor] = field(default_factory=dict)

    stage = "decoder"
    adaptive_count = True
    ragged = True
    signals = EVERY

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        assert tokens.signals == EVERY
        for signal in EVERY:
            self.seen[signal] = tokens.read(signal)
            self.seen["text", signal] = tokens.text(signal)
        self.seen |= {"ids": tokens.ids, "real": tokens.text_valid()}
        columns = torch.arange(tokens.ids.shape[1]).expand(len(tokens.counts), -1)
        return torch.where(tokens.valid, columns, -1)


def check(spy: Spy, report: Any, states: dict[Any, Any], valid: Tensor, atol: float = 1e-5) -> None:
    """What `spy` read against `states` in and out of the sublayers, of the tokens that each layer had."""
    gone = hidden_per_layer(report, *valid.shape, 3)
    visual = torch.zeros_like(valid)
    for span in report.spans:
        visual[span.sample, span.columns] = True
    for signal in EVERY:
        x, y = states[signal.layer, BLOCKS[signal.block]]
        ratio, turn = y.norm(dim=-1) / x.norm(dim=-1), cosine_similarity(x, y, dim=-1)
        turn = 1 - (turn.abs() if signal.absolute else turn)
        for row, span in enumerate(report.spans):
            b, present = span.sample, valid[span.sample] & ~gone[signal.layer, span.sample]
            if x.shape[1] == valid.shape[1] and not gone[signal.layer].any():
                place = torch.arange(len(present))
            else:
                place = present.long().cumsum(0) - 1 + x.shape[1] - int(present.sum())  # right-aligned
            ids = spy.seen["ids"][row]
            left = span.columns[ids[ids >= 0]]
            mine = present & torch.zeros_like(present).index_fill(0, span.columns, True)
            share = turn[b, place[present if signal.over == "sequence" else mine]].exp().sum()
            text = (valid[b] & ~visual[b]).nonzero()[:, 0]
            for values, columns in (
                (spy.seen[signal][row, : len(left)], left),
                (spy.seen["text", signal][b][spy.seen["real"][b]], text),
            ):
                assert values.dtype == torch.float32
                want = torch.stack([ratio[b, place[columns]], turn[b, place[columns]].exp() / share], -1)
                if columns is text and signal.over == "span":
                    want[:, 1] = 0
                assert torch.allclose(values.double(), want, atol=atol, rtol=1e-4), (signal, row)
            assert (spy.seen[signal][row, len(left) :] == 0).all()


@no_grad
@pytest.mark.parametrize("shape", ["ragged", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_what_the_models_own_sublayers_do(family: str, shape: str) -> None:
    """The layers behind an earlier step have fewer tokens; layer 0 has them all."""
    spy, inputs = Spy(), prompt(family, shape).inputs
    model, plain = tiny(family), tiny(family, "eager")
    with vtc.compressed(model, [vtc.parse(EARLIER)[0], spy]):
        out = model(**inputs, use_cache=True)
        report = model.vtc.report
    with vtc.compressed(plain, EARLIER), sublayers(plain) as states:
        same_out = plain(**inputs, use_cache=True)
    check(spy, report, states, inputs["attention_mask"].bool())
    assert (out.logits - same_out.logits)[inputs["attention_mask"].bool()].abs().max() < 1e-4


@no_grad
def test_on_a_second_turn_it_is_of_the_new_tokens() -> None:
    family = "qwen2_5_vl"
    given, generator, kind = prompt(family, "ragged"), torch.Generator().manual_seed(9), FAMILIES[family]
    pictures = [kind.picture(kind.sizes[0], True, generator) for _ in given.rows]
    tails = [[*words(4, generator), *m.ids, *words(3, generator)] for m in pictures]
    rows = [[*row, *tail] for row, tail in zip(given.rows, tails, strict=True)]
    both = Prompt(kind, rows, [[*media, m] for media, m in zip(given.media, pictures, strict=True)]).inputs
    past, positions = given.inputs["input_ids"].shape[1], positions_of(family, both)
    second = Prompt(kind, tails, [[m] for m in pictures]).inputs
    valid = second["attention_mask"].bool()
    second["attention_mask"] = both["attention_mask"]
    spy = Spy()
    for pipeline in (EARLIER, [vtc.parse(EARLIER)[0], spy]):
        model = tiny(family)
        with vtc.compressed(model, pipeline):
            cache = model(**given.inputs, position_ids=positions[..., :past], use_cache=True).past_key_values
            with sublayers(model) as states:
                model(**second, position_ids=positions[..., past:], past_key_values=cache, use_cache=True)
            report = model.vtc.report
        if pipeline == EARLIER:
            alone = states
    check(spy, report, alone, valid)


@no_grad
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_candidates_of_assisted_decoding_take_no_share(family: str) -> None:
    """The first forward carries them behind the prompt; here they are found because the prompt ends as it begins."""
    model, inputs, lengths = tiny(family), prompt(family, "one").inputs, []
    inputs["input_ids"][0, -2:] = inputs["input_ids"][0, 1:3]
    more = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": SPECIAL, "eos_token_id": CLOSE}
    seen = []
    for assisted in ({}, {"prompt_lookup_num_tokens": 3}):
        spy = Spy()
        with vtc.compressed(model, spy):
            hook = text_model(model).register_forward_pre_hook(
                lambda m, a, k: lengths.append(k["inputs_embeds"].shape[1]), with_kwargs=True
            )
            model.generate(**inputs, **more, **assisted)
            hook.remove()
        seen.append(spy.seen)
    assert inputs["input_ids"].shape[1] == lengths[0]
    assert lengths[0] + 3 in lengths[1:], "candidates came along"
    for signal in EVERY:
        assert torch.allclose(seen[0][signal], seen[1][signal], atol=1e-5), signal


@dataclass(kw_only=True)
class Changed(vtc.ScorePruner):
    """The tokens that two layers change most."""

    name: ClassVar[str] = "changed"
    seen: dict[int, Tensor] = field(default_factory=dict)

    signals = (DecoderTransition(), DecoderTransition(block="mlp", over="span"))

    def stops(self, depth: int) -> tuple[vtc.Stop, ...]:
        return vtc.Stop("decoder", 2, 0.6), vtc.Stop("decoder", 4, 0.3)

    def score(self, tokens: vtc.VisualTokens) -> Tensor:
        assert tokens.layer is not None
        assert [s.layer for s in tokens.signals] == [tokens.layer - 1] * 2
        self.seen[tokens.layer] = sum(tokens.read(s).prod(-1) for s in self.signals)
        return self.seen[tokens.layer]


@no_grad
@pytest.mark.parametrize("family", FAMILIES)
def test_it_waits_for_nothing(family: str) -> None:
    stops_wait_for_nothing(family, Changed(), 2, 4)


@pytest.mark.share(3)
@no_grad
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_it_is_the_same_under_accelerates_offloading_and_compiled(family: str) -> None:
    inputs, found = prompt(family, "ragged").inputs, []
    for kind in ("plain", "offloaded", "compiled"):
        model, pruner = tiny(family), Changed()
        if kind == "offloaded":
            model = cpu_offload(model, execution_device=torch.device("cpu"))
            greedy_offloaded(model, inputs, 1)
        vtc.compress(model, pruner)
        if kind == "compiled":
            torch._dynamo.reset()
            compiled = torch.compile(model, backend="eager")
            logits = compiled(**inputs).logits
            torch._dynamo.reset()
        else:
            logits = model(**inputs).logits
        found.append((logits, dict(pruner.seen)))
    for logits, seen in found[1:]:
        assert torch.allclose(logits, found[0][0], atol=1e-4)
        for layer in (2, 4):
            assert torch.allclose(seen[layer], found[0][1][layer], atol=1e-5)


def test_training_with_checkpointing_and_without() -> None:
    model, inputs = tiny("llava").train(), labelled("llava")
    pruner = Changed()
    vtc.compress(model, pruner)
    loss, plain = gradients(model, inputs)
    assert not pruner.seen[2].requires_grad
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again, checkpointed = gradients(model, inputs)
    assert torch.allclose(loss, again, atol=1e-6)
    same(plain, checkpointed, 1e-5)


@no_grad
def test_only_declared_sublayers_are_hooked_and_none_is_left_so() -> None:
    model = tiny("llava")
    layers = text_model(model).layers

    def hooked() -> list[tuple[int, str]]:
        return [(i, n) for i, x in enumerate(layers) for n in BLOCKS.values() if getattr(x, n)._forward_hooks]

    with vtc.compressed(model, Changed()):
        assert hooked() == [(1, "self_attn"), (1, "mlp"), (3, "self_attn"), (3, "mlp")]
    with vtc.compressed(model, "fastv(layer=3, keep=3)"):
        assert hooked() == []
    assert hooked() == []


@no_grad
def test_a_stops_own_signals_stand_for_the_methods() -> None:
    @dataclass(kw_only=True)
    class ByDepth(Changed):
        """Reads a layer that depends on the depth."""

        def stops(self, depth: int) -> tuple[vtc.Stop, ...]:
            return vtc.Stop("decoder", 4, 0.3, (DecoderTransition(depth - 5),)), vtc.Stop("decoder", 5, 0)

        def score(self, tokens: vtc.VisualTokens) -> Tensor:
            assert tokens.signals == (DecoderTransition(1),)
            with pytest.raises(ValueError, match="was not declared"):
                tokens.read(DecoderTransition())
            return tokens.read(*tokens.signals)[..., 0]

    model = tiny("llava")
    with vtc.compressed(model, ByDepth()):
        model(**prompt("llava", "one").inputs)
        assert [(s.layer, len(s.kept[0])) for s in model.vtc.report.steps] == [(4, 5), (5, 0)]


def test_layers_that_are_built_otherwise_are_refused_and_left_alone() -> None:
    model = tiny("llava")
    layer = text_model(model).layers[3]
    layer.feed_forward = layer.mlp
    del layer.mlp
    with pytest.raises(NotImplementedError, match="LlamaDecoderLayer has no 'mlp', so what its mlp does to tokens"):
        vtc.compress(model, Changed())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"DecoderTransition.block must be 'attention' or 'mlp', got 'norm'"):
        DecoderTransition(block="norm")
    with pytest.raises(ValueError, match=r"DecoderTransition.over must be 'sequence' or 'span', got 'all'"):
        DecoderTransition(over="all")

    @dataclass(kw_only=True)
    class Late(Changed):
        """Reads a layer that comes later."""

        signals = (DecoderTransition(3),)

    with pytest.raises(ValueError, match=r"reads DecoderTransition\(layer=3.*not there yet"):
        vtc.compress(tiny("llava"), Late())
