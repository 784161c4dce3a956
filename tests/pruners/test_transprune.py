"""TransPrune: its formula written out on the untouched model, its schedule, and what each option reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from made_up import made_up, stops_of
from properties import chosen
from reference import baseline, hidden_per_layer, masked, text_model
from sublayer_states import sublayers
from zoo import FAMILIES, prompt, shapes_of, tiny

import vtc
from vtc.pruners.layout import Layout
from vtc.pruners.signals import AttentionAhead, DecoderTransition

pytestmark = pytest.mark.usefixtures("no_grad")
MODELS = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3")
THREE = "keep=0.3, layers=(2, 3, 5)"


def by_hand(family: str, shape: str, report: Any, alpha: float, over: str, absolute: bool, since: int) -> list[list]:
    """What each stop keeps of each span, one token after the other, from the untouched model behind the stops before.

    Tokens that are gone are hidden by masks there, so every layer has its full length and they are left out by hand.
    """
    model, inputs = tiny(family, "eager"), prompt(family, shape).inputs
    valid = inputs["attention_mask"].bool()
    batch, width = valid.shape
    positions = baseline(family, shape).positions[..., :width]
    kept = []
    for number, step in enumerate(report.steps):
        before = SimpleNamespace(spans=report.spans, steps=report.steps[:number])
        hidden = hidden_per_layer(before, batch, width, 6)
        with masked(model, hidden, valid), sublayers(model) as seen:
            out = model(**inputs, position_ids=positions, use_cache=False, output_attentions=True)
        kept.append([])
        for row, span in enumerate(report.spans):
            b, columns = span.sample, span.columns.tolist()
            ttv = dict.fromkeys(columns, 0.0)
            for layer in range(since, step.layer):
                present = [c for c in range(width) if valid[b, c] and not hidden[layer, b, c]]
                mates = present if over == "sequence" else [c for c in columns if c in present]
                for name in ("self_attn", "mlp"):
                    x, y = (states[b] for states in seen[layer, name])
                    cosine = {c: float(x[c] @ y[c] / (x[c].norm() * y[c].norm())) for c in mates}
                    turn = {c: 2.718281828459045 ** (1 - (abs(v) if absolute else v)) for c, v in cosine.items()}
                    for c in columns:
                        if c in turn:
                            ttv[c] += float(y[c].norm() / x[c].norm()) * turn[c] / sum(turn.values())
            texts = {c for s in report.spans if s.sample == b for c in s.columns.tolist()}
            behind = [t for t in range(columns[-1] + 1, width) if valid[b, t] and t not in texts]
            looks = out.attentions[step.layer][b].double().mean(0)
            iga = {c: float(looks[behind, c].mean()) if behind else 0.0 for c in columns}
            newline = report.layouts[row].newline.tolist()
            content = [
                i for i, c in enumerate(columns) if not newline[i] and valid[b, c] and not hidden[step.layer - 1, b, c]
            ]
            totals = [sum(of[columns[i]] for i in content) + 1e-8 for of in (ttv, iga)]
            score = {
                i: alpha * ttv[columns[i]] / totals[0] + (1 - alpha) * iga[columns[i]] / totals[1] for i in content
            }
            best = sorted(content, key=lambda i: -score[i])[: len(step.kept[row])]
            # where all content fits the host fills up with newlines, which belong to the sequence until they go
            best += [i for i in step.kept[row].tolist() if newline[i] and len(best) == len(content)]
            kept[-1].append(sorted(best))
    return kept


@pytest.mark.parametrize(
    ("family", "shape"),
    [(f, shape) for f in MODELS for shape in shapes_of(FAMILIES[f], ("ragged", "touching", "video"))],
)
def test_it_is_the_formula_at_every_stop(family: str, shape: str) -> None:
    """Grouped queries, left padding, samples with two pictures, newlines."""
    check(family, shape)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 1.0},
        {"alpha": 0.0},
        {"alpha": 0.8, "since": 0},
        {"over": "span"},
        {"over": "span", "absolute": True, "alpha": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl"])
def test_options(family: str, options: dict[str, Any]) -> None:
    check(family, "ragged", **options)


def check(
    family: str, shape: str, alpha: float = 0.5, over: str = "sequence", absolute: bool = False, since: int = 1
) -> None:
    model, inputs = tiny(family), prompt(family, shape).inputs
    spec = f"transprune({THREE}, alpha={alpha}, over={over}, absolute={absolute}, since={since})"
    with vtc.compressed(model, spec):
        model(**inputs)
        report = model.vtc.report
    assert [(step.stage, step.layer) for step in report.steps] == [("decoder", i) for i in (2, 3, 5)]
    found = [[kept.tolist() for kept in step.kept] for step in report.steps]
    assert found == by_hand(family, shape, report, alpha, over, absolute, since)


def test_the_options_choose_differently() -> None:
    model, inputs, chosen_by = tiny("llava"), prompt("llava", "ragged").inputs, {}
    for options in ("", ", alpha=1", ", alpha=0", ", absolute=True", ", over=span", ", since=0"):
        with vtc.compressed(model, f"transprune({THREE}{options})"):
            model(**inputs)
            chosen_by[options] = str([[k.tolist() for k in step.kept] for step in model.vtc.report.steps])
    assert len(set(chosen_by.values())) >= 5, chosen_by


# ---------------------------------------------------------------------- the schedule


def kept_at(spec: str, depth: int = 32, **params: Any) -> list[tuple[int, int | float]]:
    stops = vtc.parse(spec, **params)[0].stops(depth)
    assert {stop.stage for stop in stops} == {"decoder"}
    return [(stop.layer, stop.keep) for stop in stops]


def test_the_papers_schedule_by_default_by_fraction_and_by_count() -> None:
    assert kept_at("transprune") == [(7, 0.875), (9, 0.625), (12, 0.125)]
    by_fraction = kept_at("transprune", keep=0.125)
    assert [layer for layer, _ in by_fraction] == [7, 9, 12]
    assert [keep for _, keep in by_fraction] == pytest.approx([0.875, 0.625, 0.125])
    assert kept_at("transprune", keep=72) == [(7, 504), (9, 360), (12, 72)]
    assert kept_at("transprune", keep=0.5)[-1] == (12, 0.5)
    assert kept_at("transprune", keep=1.0) == [(7, 1.0), (9, 1.0), (12, 1.0)]
    assert kept_at("transprune(layers=(3, 8), ratios=(0.5, 0.25))", keep=0.0625) == [
        (3, pytest.approx(0.25)),
        (8, 0.0625),
    ]


def test_layers_are_scaled_to_the_depth_and_meet_in_a_shallow_decoder() -> None:
    assert kept_at("transprune", 28) == [(6, 0.875), (8, 0.625), (11, 0.125)]
    assert kept_at("transprune", 6) == [(1, 0.875), (2, 0.125)]
    assert kept_at("transprune", 2) == [(1, 0.125)]


def test_transitions_are_read_since_the_first_stop() -> None:
    def layers(spec: str, depth: int = 32) -> list[list[int | None]]:
        stops = vtc.parse(spec)[0].stops(depth)
        return [[s.layer for s in stop.reads or () if isinstance(s, DecoderTransition)][::2] for stop in stops]

    assert layers("transprune") == [[6], [6, 7, 8], [6, 7, 8, 9, 10, 11]]
    assert layers("transprune", 28) == [[5], [5, 6, 7], [5, 6, 7, 8, 9, 10]]
    assert layers("transprune(since=4, layers=(6, 7), ratios=(0.9, 0.5))") == [[4, 5], [4, 5, 6]]
    assert layers("transprune(alpha=0)") == [[], [], []]


def test_only_what_has_weight_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transitions alone look at no attention, attention alone at no sublayer's output."""
    from vtc.models.language import decoder_hooks as decoder

    counts = {"transition": 0, "rows": 0}

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            counts[name] += 1
            return function(*args, **more)

        return call

    monkeypatch.setattr(decoder, "capture_transition", counted("transition", decoder.capture_transition))
    monkeypatch.setattr(decoder, "attention_rows", counted("rows", decoder.attention_rows))
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    for alpha, expected in ((0.5, (8, 3)), (1.0, (8, 0)), (0.0, (0, 3))):
        counts.update(transition=0, rows=0)
        pruner = vtc.parse(f"transprune({THREE}, alpha={alpha})")[0]
        assert [type(s) for s in pruner.signals] == [DecoderTransition] * 2 * (alpha > 0) + [AttentionAhead] * (
            alpha < 1
        )
        with vtc.compressed(model, pruner):
            model(**inputs)
        assert tuple(counts.values()) == expected, alpha
        assert not any(m._forward_hooks for layer in text_model(model).layers for m in (layer.self_attn, layer.mlp))


# ---------------------------------------------------------------------- values that are not finite, bad parameters


@pytest.mark.parametrize("spec", ["transprune", "transprune(alpha=1)", "transprune(alpha=0)"])
def test_a_score_that_is_not_finite_is_the_lowest(spec: str) -> None:
    [pruner] = vtc.parse(spec, keep=0.5)
    spans = made_up(pruner, stops_of(pruner)[0], [Layout.line(9)], seed=1)
    for signal, rows in spans.reads.items():
        for i, bad in ((1, "nan"), (4, "inf"), (7, "-inf")):
            rows[0][(..., i) if signal.is_attention else i] = float(bad)
    spans.budgets = [6]
    assert sorted(chosen(pruner, spans.tokens())[0]) == [0, 2, 3, 5, 6, 8]


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("transprune(layers=(4, 2, 5))", r"layers=\(4, 2, 5\) must rise"),
        ("transprune(layers=())", "one at least"),
        ("transprune(layers=(4, 5))", "2 layers need as many ratios"),
        ("transprune(ratios=(0.5, 0.25))", "3 layers need as many ratios"),
        ("transprune(ratios=(0.5, 0.75, 0.2))", r"ratios=.* must fall"),
        ("transprune(ratios=(1.0, 0.75, 0.2))", "between 0 and 1"),
        ("transprune(ratios=(0.9, 0.75, 0))", "between 0 and 1"),
        ("transprune(alpha=1.5)", r"alpha=1.5 .*\[0, 1\]"),
        ("transprune(over=image)", "over must be 'sequence' or 'span', got 'image'"),
        ("transprune(since=1.5)", "since=1.5 .* an int or None"),
        ("transprune(keep=0)", "keep=0"),
    ],
)
def test_bad_parameters_are_named(spec: str, match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        vtc.parse(spec)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("transprune(since=1)", "since=1 must be below the first layer to prune before, 1"),
        ("transprune(since=-1)", "not there yet"),
        ("transprune(layers=(0, 2, 3))", "not there yet"),
        ("transprune(layers=(2, 3, 6))", "layer=6 is out of range"),
    ],
)
def test_what_does_not_fit_the_model_is_told_when_wrapping(spec: str, match: str) -> None:
    model = tiny("llava")
    with pytest.raises(ValueError, match=match):
        vtc.compress(model, spec)
    with vtc.compressed(model, "transprune(layers=(0, 2, 3), alpha=0)"):
        model(**prompt("llava", "one").inputs)
        assert [step.layer for step in model.vtc.report.steps] == [0, 2, 3]


def test_saved_and_read_back(tmp_path: Any) -> None:
    given = vtc.parse("transprune(layers=(1, 4), ratios=(0.7, 0.2), since=0, alpha=0.4, over=span, absolute=True)")
    vtc.VTCConfig.of(given).save_pretrained(tmp_path)
    assert vtc.VTCConfig.from_pretrained(tmp_path).pipeline() == given
    assert vtc.parse(vtc.format_pipeline(given)) == given
