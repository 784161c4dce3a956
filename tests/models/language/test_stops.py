"""``Stop(..., keep=0)``: all visual tokens leave at a layer; and methods that prune at several places."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from contract_checks import batch_equals_one_by_one, pruned_equals_masked
from contracts import TOLERANCE, outcome, same_report
from generating import beams, dialogue_of
from methods import Setting, asked, cells
from reference import greedy
from torch import Tensor
from versions import second_turn_shape
from zoo import FAMILIES, SPECIAL, prompt, tiny

import vtc
from vtc.pruners.base import Stop
from vtc.pruners.signals import AttentionAhead, DecoderAttention, EncoderKeys, Signal

pytestmark = pytest.mark.usefixtures("no_grad")


@dataclass(kw_only=True, eq=False)
class Leave(vtc.Pruner):
    """All visual tokens leave before decoder layer `layer`."""

    name: ClassVar[str] = "leave"
    layer: int = 4
    stage = "decoder"
    __hash__ = object.__hash__  # settings are cached

    def __str__(self) -> str:
        return f"leave{self.layer}"

    def stops(self, depth: int) -> tuple[Stop, ...]:
        return (Stop("decoder", self.layer, 0),)

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        raise AssertionError("not asked")


@dataclass(kw_only=True, eq=False)
class Stairs(vtc.Pruner):
    """Every `n / k`-th token at the input and at two layers, none behind; notes where it was asked."""

    name: ClassVar[str] = "stairs"
    steps: tuple[Stop, ...] = (
        Stop("input", None, 0.8),
        Stop("decoder", 1, 0.5),
        Stop("decoder", 3, 2),
        Stop("decoder", 5, 0),
    )
    asked: list[tuple[str, int | None, int]] = field(default_factory=list)
    ragged = True
    __hash__ = object.__hash__

    def __str__(self) -> str:
        return "stairs"

    def stops(self, depth: int) -> tuple[Stop, ...]:
        return self.steps

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        self.asked.append((tokens.stage, tokens.layer, k))
        rows = [torch.arange(b) * n // b for n, b in zip(tokens.counts, tokens.budgets, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


class Of(Setting):
    """The setting of a method that is not registered."""

    def __str__(self) -> str:
        return str(self.pruner)


LEAVE, AT_ONCE, STAIRS = Of(Leave()), Of(Leave(layer=0)), Of(Stairs())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "family", "shape"), cells([LEAVE, STAIRS], FAMILIES, "ragged", "text_row", "touching", "video")
)
def test_pruned_equals_masked(setting: Setting, family: str, shape: str) -> None:
    pruned_equals_masked(setting, family, shape)


@pytest.mark.parametrize(("setting", "family"), cells([AT_ONCE], FAMILIES))
def test_leaving_at_layer_0_equals_masked(setting: Setting, family: str) -> None:
    pruned_equals_masked(setting, family, "ragged")


@pytest.mark.parametrize(("setting", "family"), cells([LEAVE, STAIRS], FAMILIES))
def test_batch_equals_one_by_one(setting: Setting, family: str) -> None:
    batch_equals_one_by_one(setting, family, "text_row")


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_kept_and_the_report_says_so(family: str) -> None:
    pruned, valid = outcome(LEAVE, family, "ragged"), prompt(family, "ragged").inputs["attention_mask"]
    report = pruned.forward_report
    assert [(s.stage, s.layer) for s in report.steps] == [("decoder", 4)]
    assert [k.tolist() for k in report.steps[0].kept] == [[]] * len(report.spans)
    assert all(k.dtype == torch.int64 for k in report.steps[0].kept)
    assert report.tokens_kept == 0 < report.tokens_total
    assert report.tokens_per_layer == [report.tokens_total] * 4 + [0, 0]
    text = int(valid.sum(1).max()) - max(
        sum(len(s.columns) for s in report.spans if s.sample == b) for b in range(len(valid))
    )
    if family not in ("llava_sliding", "gemma3"):
        per_row = [
            int(valid[b].sum()) - sum(len(s.columns) for s in report.spans if s.sample == b) for b in range(len(valid))
        ]
        assert pruned.physical[4:] == [max(per_row)] * 2
        assert pruned.physical[:4] == [valid.shape[1]] * 4
        assert text <= max(per_row)


@pytest.mark.parametrize("family", FAMILIES)
def test_several_stops_of_a_method_are_asked_and_reported_one_by_one(family: str) -> None:
    model, pruner = tiny(family), Stairs()
    with vtc.compressed(model, pruner):
        model(**prompt(family, "ragged").inputs)
        report = model.vtc.report
    lengths = [len(s.columns) for s in report.spans]
    wanted = [[asked(stop.keep, n) for n in lengths] if stop.keep else [0] * len(lengths) for stop in pruner.steps]
    assert [(s.stage, s.layer) for s in report.steps] == [(s.stage, s.layer) for s in pruner.steps]
    assert [[len(k) for k in step.kept] for step in report.steps] == wanted
    places = [(stage, layer) for stage, layer, _ in pruner.asked]
    assert ("decoder", 5) not in places
    assert ("decoder", 1) in places
    assert (("decoder", 3) in places) == (max(lengths) > 4), "of four tokens two are left already"


@pytest.mark.parametrize("setting", [LEAVE, STAIRS], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_beams_and_a_second_turn(family: str, setting: Setting) -> None:
    model, inputs = tiny(family), prompt(family, second_turn_shape(family)).inputs
    with vtc.compressed(model, setting.pruner):
        cached, uncached = beams(model, inputs), beams(model, inputs, use_cache=False)
        assert torch.equal(cached.sequences, uncached.sequences)
        assert torch.allclose(cached.sequences_scores, uncached.sequences_scores, atol=TOLERANCE)
        first = model.generate(
            **inputs, max_new_tokens=5, do_sample=False, suppress_tokens=SPECIAL, return_dict_in_generate=True
        )
        dialogue, text = dialogue_of(inputs, first.sequences, [7, 8, 9])
        fresh = greedy(model, dialogue, 4)
        second = greedy(model, text, 4, past_key_values=first.past_key_values)
    assert torch.equal(second.tokens, fresh.tokens)
    assert (second.logits - fresh.logits).abs().max() < TOLERANCE


def test_what_comes_behind_an_exit_finds_nothing_left() -> None:
    model, inputs = tiny("llava"), prompt("llava", "ragged").inputs
    with vtc.compressed(model, Leave(layer=2)):
        alone = greedy(model, inputs, 4)
        report = model.vtc.report
    with vtc.compressed(model, [Leave(layer=2), vtc.parse("uniform(layer=4, keep=3)")[0], Leave(layer=5)]):
        assert torch.equal(greedy(model, inputs, 4).logits, alone.logits)
        assert [[len(k) for k in s.kept] for s in model.vtc.report.steps] == [[0] * 4] * 3
    with vtc.compressed(model, Leave(layer=2)):
        greedy(model, inputs, 4)
        assert same_report(model.vtc.report, report)


def test_zero_is_a_methods_word_and_only_in_the_decoder() -> None:
    model = tiny("llava")
    with pytest.raises(ValueError, match="keep=0 is out of range"):
        vtc.compress(model, "uniform", keep=0)
    for stage, layer in (("input", None), ("vision", 1)):
        with pytest.raises(ValueError, match=f"drops all visual tokens at the {stage} stage"):
            vtc.compress(model, Stairs(steps=(Stop(stage, layer, 0),)))
    for wrong in (-1, 1.5):
        with pytest.raises(ValueError, match="out of range"):
            vtc.compress(model, Stairs(steps=(Stop("decoder", 2, wrong),)))


class Mixed(Stairs):
    """Reads the encoder at the input and attention at a layer."""

    name = "mixed"
    signals = (EncoderKeys(), DecoderAttention())

    def select(self, tokens: vtc.VisualTokens, k: int) -> Tensor:
        for signal in self.signals_at(Stop(tokens.stage, tokens.layer, 1)):
            self.seen[tokens.layer, type(signal)] = tokens.read(signal)
        return super().select(tokens, k)

    seen: ClassVar[dict[tuple[int | None, type[Signal]], Tensor]] = {}


class MixedSaid(Mixed):
    """The same, and says what it reads where."""

    def signals_at(self, stop: Stop) -> tuple[Signal, ...]:
        return self.signals[:1] if stop.stage == "input" else self.signals[1:]


def test_each_stop_has_its_own_signals() -> None:
    model, steps = tiny("llava"), (Stop("input", None, 8), Stop("decoder", 3, 4))
    with pytest.raises(ValueError, match=r"decoder signals and can't prune at the input stage.*signals_at"):
        vtc.compress(model, Mixed(steps=steps))
    with vtc.compressed(model, MixedSaid(steps=steps)):
        model(**prompt("llava", "one").inputs)
    assert set(Mixed.seen) == {(None, EncoderKeys), (3, DecoderAttention)}
    assert Mixed.seen[3, DecoderAttention].shape == (1, 4, 1, 8)


def test_ahead_is_of_the_pruning_layer_only() -> None:
    class Ahead(Stairs):
        signals = (AttentionAhead(layer=2),)

    with pytest.raises(ValueError, match="layer"):
        vtc.compress(tiny("llava"), Ahead(steps=(Stop("decoder", 3, 4),)))
