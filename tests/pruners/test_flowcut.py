"""FlowCut: its schedule against a plain float64 loop, inside real towers, and its step in the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from contract_checks import batch_equals_one_by_one, pruned_equals_masked
from contracts import outcome
from fake import FakeDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from methods import NO_VISION_STAGE, Setting, asked
from torch import Tensor
from vision_tools import ready
from zoo import FAMILIES, prompt, tiny

import vtc
from vtc.models.layout.model_parts import locate
from vtc.models.tower.packed_segments import Segments
from vtc.models.tower.signals_from_attention import encoder_rows
from vtc.models.tower.tower_hooks import VisionSide
from vtc.pruners.base import Stop
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.primitives.flow import encoder_flow, flow_signals, kept_counts, shares
from vtc.pruners.signals import EncoderAttention, EncoderValues, Signal
from vtc.pruners.visual_tokens import SignalSource, VisualTokens

pytestmark = pytest.mark.usefixtures("no_grad")
TOWERS = [f for f in FAMILIES if f not in NO_VISION_STAGE]


# ---------------------------------------------------------------------- made-up signals


@dataclass
class Layers(SignalSource):
    """Attention, similarity and mean value of every layer and span: `[n]`, `[n]` and `[n, d]`."""

    given: list[list[tuple[Tensor, Tensor, Tensor]]]

    def read(self, signal: Signal, tokens: VisualTokens) -> Tensor:
        rows = []
        for i, span in enumerate(tokens.span):
            a, s, v = self.given[span][signal.layer]  # type: ignore[attr-defined]
            x = v[:, None] if isinstance(signal, EncoderValues) else s[:, None] if signal.of else a[:, None]
            found = x[tokens.ids[i].clamp(min=0)]
            rows.append(found.masked_fill((tokens.ids[i] < 0).view(-1, *[1] * (found.dim() - 1)), 0))
        found = torch.stack(rows)
        return found.transpose(1, 2) if isinstance(signal, EncoderAttention) else found


def drawn(sizes: list[int], layers: int, seed: int, dtype: torch.dtype = torch.float32) -> Layers:
    g = torch.Generator().manual_seed(seed)
    power = [1 + 3 * i / layers for i in range(layers)]  # ever more concentrated
    spans = [
        [(torch.rand(n, generator=g) ** p, torch.rand(n, generator=g), torch.randn(n, 4, generator=g)) for p in power]
        for n in sizes
    ]
    return Layers([[tuple(x.to(dtype) for x in layer) for layer in span] for span in spans])  # type: ignore[misc]


def simulate(pruner: Any, source: Layers, layouts: list[Layout], budgets: list[int], last: int) -> list[list]:
    """Run the stops as the host does: per stop the ids that each span keeps; spans that are done are left out."""
    ids = [torch.arange(layout.tokens) for layout in layouts]
    state: dict[str, Any] = {}
    history = []
    for stop in pruner.tower_stops(Stop("vision", None, 1), last):
        active = [i for i, (x, b) in enumerate(zip(ids, budgets, strict=True)) if b < len(x)]
        if active:
            now = torch.nn.utils.rnn.pad_sequence([ids[i] for i in active], batch_first=True, padding_value=-1)
            tokens = VisualTokens(
                features=torch.zeros(*now.shape, 1), ids=now, counts=[len(ids[i]) for i in active],
                budgets=[budgets[i] for i in active], layouts=[layouts[i] for i in active],
                sample=torch.tensor(active), order=[0] * len(active), span=active, stage="vision", layer=stop.layer,
                last=last, state=state, source=source,
            )  # fmt: skip
            found = pruner.select(tokens, max(tokens.budgets))
            assert found.dtype == torch.int64
            for row, i in zip(found, active, strict=True):
                columns = row[row >= 0]
                assert len(columns.unique()) == len(columns)
                assert bool((columns < len(ids[i])).all())
                assert len(columns) >= budgets[i]
                ids[i] = ids[i][columns.sort().values]
        history.append([x.tolist() for x in ids])
    return history


def slow(source: Layers, span: int, layout: Layout, budget: int, last: int, every: int = 2, history: float = 0.5,
         official: bool = False, semantic: bool = True) -> list[list[int]]:  # fmt: skip
    """One span, part by part, in float64."""
    part = layout.parts()
    n = len(part)
    ids = {p: np.flatnonzero(part == p) for p in sorted(set(part.tolist()))}
    exact = {p: budget * len(x) / n for p, x in ids.items()}
    target = {p: int(q + 1e-6) for p, q in exact.items()}
    by_remainder = sorted(exact, key=lambda p: (round(target[p] - exact[p], 5), ids[p][target[p]]))
    for p in by_remainder[: budget - sum(target.values())]:
        target[p] += 1
    importance: dict[int, np.ndarray] = {}
    steps = []
    for layer in reversed(range(last, 0, -every)):
        if sum(map(len, ids.values())) > budget:
            lost = {}
            for p, x in ids.items():
                for before in range(max(0, layer - every), layer):
                    a, s, v = (y.double().numpy()[x] for y in source.given[span][before])
                    flow = a / a.sum() + (s / s.sum() if semantic else 0)
                    now = flow * np.abs(v).sum(1)
                    importance[p] = history * importance[p] + (1 - history) * now if p in importance else now
                share = a / a.sum()
                entropy = -(share * np.log(np.where(share > 0, share, 1))).sum() / np.log(max(2, len(x)))
                surplus, left = len(x) - target[p], last - layer
                lost[p] = surplus if left == 0 else round(surplus / left**0.5 * (1 - entropy**2))
            for p, x in ids.items():
                kept = max(target[p], len(x) - (max(lost.values()) if official else lost[p]))
                best = np.sort(np.argsort(-importance[p], kind="stable")[:kept])
                ids[p], importance[p] = x[best], importance[p][best]
        steps.append(sorted(int(i) for x in ids.values() for i in x))
    return steps


def test_rounding_moves_no_count():
    """Of 2,880 tokens float32 sums move the number by about 1e-3, and some of these are that close to a half."""
    n, rows = 2880, 1000
    attention = 0.05 + torch.rand(rows, n, generator=torch.Generator().manual_seed(1))
    share = attention.double().numpy()
    share /= share.sum(1, keepdims=True)
    entropy = -(share * np.log(share)).sum(1) / np.log(n)
    sizes, target = torch.full((rows, 1), n).double(), torch.full((rows, 1), 320).double()
    for part in (None, torch.zeros(rows, n).long()):
        found = shares(attention.double(), part, 1)
        for left in (2, 4, 6):
            expected = n - np.round((n - 320) / left**0.5 * (1 - entropy**2))
            assert kept_counts(found, part, sizes, target, left)[:, 0].tolist() == expected.tolist()


LAYOUTS = [
    Layout((Grid(5, 6),)),
    Layout((Grid(4, 4, "frame"),) * 3),
    Layout((Grid(4, 4, "base"), Grid(6, 9, "mosaic", cuts=((2,), (4, 8))))),
]


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize(("last", "every"), [(8, 2), (7, 2), (9, 3), (6, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_the_schedule_is_the_formula_for_every_span_of_a_batch(seed, last, every, official):
    source = drawn([x.tokens for x in LAYOUTS], last, seed)
    budgets = [7, 20, 31]
    semantic = seed != 1
    pruner = vtc.parse("flowcut", keep=0.3, every=every, official=official, history=0.6, semantic=semantic)[0]
    found = simulate(pruner, source, LAYOUTS, budgets, last)
    for i, layout in enumerate(LAYOUTS):
        want = slow(source, i, layout, budgets[i], last, every, 0.6, official, semantic)
        assert [step[i] for step in found] == want
        assert len(want[-1]) == budgets[i]
        assert len({len(step) for step in want}) > 2, "cut in several steps"


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3)), min_size=1, max_size=3),
    st.floats(0.01, 1.0),
    st.integers(1, 6),
    st.integers(0, 9999),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.booleans(),
)
@settings(max_examples=50)
def test_the_end_is_exact_and_a_span_is_the_same_alone(shapes, keep, last, seed, dtype, equal):
    layouts = [Layout((Grid(r, c),) * parts) for r, c, parts in shapes]
    source = drawn([x.tokens for x in layouts], last, seed, dtype)
    if equal:  # duplicates
        source = Layers([[tuple(torch.ones_like(x) for x in layer) for layer in span] for span in source.given])
    budgets = [max(1, int(keep * x.tokens)) for x in layouts]
    pruner = vtc.parse("flowcut", keep=keep)[0]
    found = simulate(pruner, source, layouts, budgets, last)
    assert [len(x) for x in found[-1]] == budgets
    for i, layout in enumerate(layouts):
        alone = simulate(pruner, Layers([source.given[i]]), [layout], [budgets[i]], last)
        assert [step[0] for step in alone] == [step[i] for step in found]
        if equal and len(layout.grids) == 1:
            assert found[-1][i] == list(range(budgets[i])), "ties go to the lowest index"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_come_last(bad):
    source = drawn([30], 8, 0)
    for layer in source.given[0]:
        for x in layer:
            x[4] = bad
    found = simulate(vtc.parse("flowcut", keep=8)[0], source, [LAYOUTS[0]], [8], 8)
    assert len(found[-1][0]) == 8
    assert 4 not in found[-1][0]
    every = simulate(vtc.parse("flowcut", keep=8)[0], Layers([[tuple(torch.full_like(x, bad) for x in layer)
                     for layer in source.given[0]]]), [LAYOUTS[0]], [8], 8)  # fmt: skip
    assert every[-1][0] == list(range(8))


def test_concentrated_attention_cuts_early():
    """With all attention on one token everything above the target may go at once, with even attention nothing does."""
    even, sharp = torch.ones(30), torch.full((30,), 1e-6)
    sharp[3] = 1
    v = torch.randn(30, 4)
    for attention, first in ((even, 30), (sharp, 30 - round(22 / 6**0.5))):
        source = Layers([[(attention, torch.ones(30), v)] * 8])
        found = simulate(vtc.parse("flowcut", keep=8)[0], source, [LAYOUTS[0]], [8], 8)
        assert len(found[0][0]) == first
        assert len(found[-1][0]) == 8


# ---------------------------------------------------------------------- inside towers


@pytest.mark.parametrize("family", TOWERS)
@pytest.mark.parametrize("keep", [0.4, 3])
def test_the_final_count_is_exact_in_every_tower(family, keep):
    found = outcome(Setting("flowcut", keep), family, "ragged").report
    last = {3: [1, 3], 2: [2]}[found.steps[-1].layer]
    assert [step.layer for step in found.steps] == last
    assert [len(k) for k in found.steps[-1].kept] == [asked(keep, len(s.columns)) for s in found.spans]
    if len(last) == 2:
        some = [len(k) for k in found.steps[0].kept]
        assert all(a >= b for a, b in zip(some, map(len, found.steps[1].kept), strict=True))


@dataclass(kw_only=True)
class Reads(vtc.Pruner):
    """Reads the flow of an encoder layer at the input stage, and keeps the best."""

    name: ClassVar[str] = "reads"
    at: int | None = None
    ragged: ClassVar[bool] = True
    seen: ClassVar[list[Tensor]] = []

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        return flow_signals(self.at)

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        score = encoder_flow(tokens, self.signals)
        self.seen.append(score)
        return score.masked_fill(~tokens.valid, -1).sort(dim=1, descending=True, stable=True).indices[:, :k]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_can_be_read_behind_the_encoder(family):
    """By other methods too, also where the tower can't be pruned; at layer 0 it is what FlowCut's first cut uses."""
    model, inputs = tiny(family), prompt(family, "ragged").inputs
    Reads.seen.clear()
    with vtc.compressed(model, Reads(keep=3, at=0)):
        model(**inputs)
        kept = model.vtc.report.steps[0].kept
    assert Reads.seen[0].isfinite().all()
    assert (Reads.seen[0].amax(1) > 0).all()
    assert [len(k) for k in kept] == [3] * len(kept)
    if family in ("llava", "gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"):  # every picture is one part
        with vtc.compressed(model, First(keep=3)):
            model(**inputs)
            assert [k.tolist() for k in model.vtc.report.steps[0].kept] == [k.tolist() for k in kept]


class First(vtc.pruner_class("flowcut")):  # type: ignore[misc]
    """Only its last cut, before layer 1."""

    def tower_stops(self, stop: Stop, last: int) -> tuple[Stop, ...]:
        return (Stop("vision", 1, stop.keep),)

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        tokens.last = tokens.layer
        return super().select(tokens, k)


# ---------------------------------------------------------------------- in the decoder

BOTH = Setting("flowcut(layer=2, keep=0.3, tower=2)")


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_both_stages(family):
    pruned_equals_masked(BOTH, family, "ragged")
    batch_equals_one_by_one(BOTH, family, "ragged")
    report = outcome(BOTH, family, "ragged").report
    assert [s.stage for s in report.steps][-2:] == ["vision", "decoder"]
    for step, keep in ((report.steps[-2], 0.6), (report.steps[-1], 0.3)):
        assert [len(k) for k in step.kept] == [asked(keep, len(s.columns)) for s in report.spans]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_the_decoder_step_is_its_formula(family):
    eager, inputs = tiny(family, "eager"), prompt(family, "ragged").inputs
    plain = eager(**inputs, output_attentions=True, use_cache=True)
    values = plain.past_key_values.layers[1].values
    model = tiny(family)
    with vtc.compressed(model, "flowcut(layer=2, keep=4, tower=1000)"):
        model(**inputs)
        report = model.vtc.report
    assert [s.stage for s in report.steps if any(len(k) == 4 for k in s.kept)] == ["decoder"]
    for span, kept in zip(report.spans, report.steps[-1].kept, strict=True):
        rows = plain.attentions[1][span.sample, :, -1, span.columns]
        a = (rows / rows.sum(-1, keepdim=True)).mean(0)
        v, last = values[span.sample][:, span.columns], values[span.sample, :, -1]
        s = ((v * last[:, None]).sum(-1) / v.shape[-1] ** 0.5).softmax(-1).mean(0)
        score = (a + s) * v.mean(0).abs().sum(-1)
        assert kept.tolist() == sorted(score.topk(4).indices.tolist())


# ---------------------------------------------------------------------- what it says


def test_stops():
    pruner = vtc.parse("flowcut(keep=64)")[0]
    assert [s[:3] for s in pruner.stops(32)] == [("vision", None, 64)]
    assert [s.layer for s in pruner.tower_stops(pruner.stops(32)[0], 22)] == list(range(2, 23, 2))
    both = vtc.parse("flowcut(keep=0.2, layer=2)")[0].stops(32)
    assert [s[:3] for s in both] == [("vision", None, 0.4), ("decoder", 2, 0.2)]
    assert vtc.parse("flowcut(keep=320, layer=2, tower=2.5)")[0].stops(32)[0].keep == 800
    assert vtc.parse("flowcut(keep=0.7, layer=2)")[0].stops(32)[0].keep == 1.0


@pytest.mark.parametrize("family", NO_VISION_STAGE)
def test_families_without_a_vision_stage_refuse_it(family):
    with pytest.raises(NotImplementedError, match=r"flowcut.*use the input stage"):
        vtc.compress(tiny(family), "flowcut(keep=0.3)")


def test_a_tower_of_one_layer_is_refused():
    model = ready("llava")
    model.config.vision_feature_layer = 1
    pruner = vtc.parse("flowcut(keep=3)")[0]
    with pytest.raises(ValueError, match="at least two layers"):
        VisionSide(locate(model), [(pruner, s) for s in pruner.stops(6)])


@pytest.mark.parametrize(
    ("spec", "match"),
    [("every=0", "every"), ("history=1.0", "history"), ("tower=0.5", "tower"), ("every=1.5", "every")],
)
def test_bad_parameters_are_named(spec, match):
    with pytest.raises((ValueError, TypeError), match=rf"flowcut\.{match}="):
        vtc.parse(f"flowcut({spec}, keep=2)")


def test_it_depends_on_the_question_only_with_a_decoder_step():
    plain, both = vtc.parse("flowcut(keep=3)")[0], vtc.parse("flowcut(keep=3, layer=2)")[0]
    assert (plain.uses_text, both.uses_text) == (False, True)
    assert {s.part for s in plain.signals} == {"encoder"}
    assert {s.part for s in both.signals} == {"encoder", "decoder"}


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("llava_next", "sizes"),
        ("qwen2_5_vl", "sizes"),
        ("qwen2_vl", "video"),
        ("qwen2_5_vl", "video"),
        ("qwen3_vl", "video"),
    ],
)
def test_crops_of_every_size_and_frames(family, shape):
    setting = Setting("flowcut", 0.3)
    pruned_equals_masked(setting, family, shape)
    batch_equals_one_by_one(setting, family, shape)
    report = outcome(setting, family, shape).report
    for kept, span, layout in zip(report.steps[-1].kept, report.spans, report.layouts, strict=True):
        budget = asked(0.3, len(span.columns))
        assert len(kept) == budget
        part = layout.parts()[~layout.newline.numpy()]
        fair = np.bincount(part) * budget / layout.content
        assert (abs(np.bincount(layout.parts()[kept], minlength=len(fair)) - fair) < 1).all(), "in proportion"


def test_the_choice_itself_waits_for_nothing():
    """On the pretended GPU; the number kept is read by the host, once a cut."""
    gpu = FakeDevice()
    layout = LAYOUTS[2]
    n = layout.tokens
    source = Layers([[tuple(gpu.put(x) for x in layer) for layer in drawn([n], 4, 0).given[0]]])
    state: dict[str, Any] = {}
    ids = gpu.put(torch.arange(n)[None])
    pruner = vtc.parse("flowcut(keep=20)")[0]
    with gpu:
        for layer in (2, 4):
            tokens = VisualTokens(
                features=ids[..., None].float(), ids=ids, counts=[n], budgets=[20], layouts=[layout],
                sample=gpu.put(torch.zeros(1, dtype=torch.long)), order=[0], span=[0], stage="vision", layer=layer,
                last=4, state=state, source=source,
            )  # fmt: skip
            found = pruner.select(tokens, 20)
            assert found.device.type == "cuda"
            assert found.shape == (1, n)
        q = torch.zeros(1, 2, 9, 4, device="cuda")
        ends = torch.arange(9, device="cuda") // 3
        for segments in (None, Segments(ends, 3, 3), Segments(ends, 3, 3, [3, 3, 3])):
            for kind in ("mean", "mean of values", "cls of values", "mean values"):
                assert encoder_rows(kind, q, q, q, None, 0.5, segments).device.type == "cuda"
