"""Signals at the input and decoder stages against what the untouched eager model itself puts out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from zoo import prompt, tiny

import vtc
from vtc.pruners.signals import DecoderAttention, DecoderHidden, DecoderKeys, Projected, Signal, TextEmbeddings

pytestmark = pytest.mark.usefixtures("no_grad")


@dataclass(kw_only=True)
class Spy(vtc.Pruner):
    """Keeps the first tokens, and remembers what it read."""

    layer: int | None = 3
    asked: tuple[Signal, ...] = ()
    seen: dict[Any, Any] = field(default_factory=dict)

    ragged = True

    @property
    def stage(self) -> str:  # type: ignore[override]
        return "input" if self.layer is None else "decoder"

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        return self.asked

    def select(self, tokens: vtc.VisualTokens, k: int) -> torch.Tensor:
        for signal in self.asked:
            if not isinstance(signal, TextEmbeddings):
                self.seen[signal] = tokens.read(signal)
            if not isinstance(signal, (DecoderAttention, Projected)):
                self.seen["text", signal] = tokens.text(signal)
        self.seen |= {
            "valid": tokens.text_valid(),
            "after": tokens.text_valid(after=True),
            "features": tokens.features,
            "sample": tokens.sample,
            "ids": tokens.ids,
        }
        return torch.arange(k).expand(len(tokens.counts), -1)


def run(family: str, spec: Any, impl: str = "sdpa", shape: str = "ragged"):
    model = tiny(family, impl)
    with vtc.compressed(model, spec):
        model(**prompt(family, shape).inputs, use_cache=False)
        return model.vtc.report


def plain(family: str, shape: str = "ragged"):
    out = tiny(family, "eager")(
        **prompt(family, shape).inputs, use_cache=False, output_attentions=True, output_hidden_states=True
    )
    return out.attentions, out.hidden_states


def text_of(report, inputs, sample: int) -> list[int]:
    taken = {c for s in report.spans if s.sample == sample for c in s.columns.tolist()}
    return [c for c in range(inputs["input_ids"].shape[1]) if inputs["attention_mask"][sample, c] and c not in taken]


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_decoder_attention_hidden_states_and_text(family, impl):
    last, text, every = (DecoderAttention(queries=q) for q in ("last", "text", "all"))
    early, hidden = DecoderAttention(layer=0), DecoderHidden(layer=1)
    spy = Spy(keep=3, asked=(last, text, every, early, hidden, DecoderHidden()))
    report, inputs = run(family, spy, impl), prompt(family, "ragged").inputs
    attention, states = plain(family)
    for row, span in enumerate(report.spans):
        columns, b = span.columns, span.sample
        mine = text_of(report, inputs, b)
        real = spy.seen["valid"][b]
        close(spy.seen[last][row][:, 0], attention[2][b, :, -1, columns])
        close(spy.seen[early][row][:, 0], attention[0][b, :, -1, columns])
        close(spy.seen[text][row][:, real], attention[2][b][:, mine][:, :, columns])
        valid = inputs["attention_mask"][b].bool()
        close(spy.seen[every][row][:, valid], attention[2][b][:, valid][:, :, columns])
        close(spy.seen[hidden][row], states[2][b, columns])
        close(spy.seen["features"][row], states[3][b, columns])
        close(spy.seen["text", hidden][b][real], states[2][b, mine])
        behind = spy.seen["after"][row]
        assert int(behind.sum()) == sum(c > int(columns[-1]) for c in mine)


def test_keys_are_rotated_and_not_repeated():
    keys = DecoderKeys()
    spy = Spy(keep=3, asked=(keys,))
    report = run("llava", spy)
    model, inputs = tiny("llava"), prompt("llava", "ragged").inputs
    found = model(**inputs, use_cache=True).past_key_values.layers[2].keys  # the cache holds them
    for row, span in enumerate(report.spans):
        close(spy.seen[keys][row], found[span.sample][:, span.columns].transpose(0, 1).flatten(1))
    assert spy.seen[keys].shape[-1] == found.shape[1] * found.shape[-1]


def test_embeddings_at_the_input_and_behind_it():
    for layer in (None, 2):
        spy = Spy(keep=3, layer=layer, asked=(Projected(), TextEmbeddings()))
        report, inputs = run("llava", spy), prompt("llava", "ragged").inputs
        embeddings = plain("llava")[1][0]
        for row, span in enumerate(report.spans):
            close(spy.seen[Projected()][row], embeddings[span.sample, span.columns])
        words = tiny("llava").get_input_embeddings()(inputs["input_ids"])
        for b in range(3):
            mine = text_of(report, inputs, b)
            close(spy.seen["text", TextEmbeddings()][b][spy.seen["valid"][b]], words[b, mine])


def test_a_signal_taken_before_an_earlier_step_follows_the_tokens():
    """The attention of layer 0 is read at layer 3, after another method dropped half of the tokens at layer 1."""
    early = DecoderAttention(layer=0)
    spy = Spy(keep=3, asked=(early,))
    report = run("llava", [vtc.parse("random(layer=1, keep=0.5)")[0], spy])
    attention, _ = plain("llava")
    for row, (span, kept) in enumerate(zip(report.spans, report.steps[0].kept, strict=True)):
        assert spy.seen["ids"][row].tolist() == kept.tolist()
        close(spy.seen[early][row][:, 0], attention[0][span.sample, :, -1, span.columns[kept]])


def test_only_what_is_declared_is_computed_and_read():
    model = tiny("llava")
    with vtc.compressed(model, "random(layer=3, keep=3)"):
        assert all("_vtc_tap" not in layer.self_attn.__dict__ for layer in model.model.language_model.layers)
    with vtc.compressed(model, "fastv(layer=3, keep=3)"):
        tapped = [i for i, x in enumerate(model.model.language_model.layers) if "_vtc_tap" in x.self_attn.__dict__]
        assert tapped == [2]
        assert model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="queries must be"):
        DecoderAttention(queries="some")


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() < 1e-4
