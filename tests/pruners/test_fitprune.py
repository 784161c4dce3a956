"""FitPrune: its formula and recipes in plain numbers, and that what it reads is what eager attention gives."""

from __future__ import annotations

import json

import pytest
import torch
from methods import Setting
from properties import Spans, check_selection, chosen
from zoo import prompt, tiny
from zoo.models import DEPTH

import vtc
from vtc.pruners.fitprune import BY_PICTURE, BY_TEXT, DEFAULT, FORMAT, GONE
from vtc.pruners.primitives.budget_over_stops import between_recipes
from vtc.pruners.signals import DecoderAttention, TextEmbeddings

pytestmark = pytest.mark.usefixtures("no_grad")


def recipes_file(path, *recipes, **more):
    path.write_text(json.dumps({"format": FORMAT, "recipes": [{"kept": kept} for kept in recipes], **more}))
    return str(path)


def make(counts, budgets, texts, seed=0):
    """Spans with `texts` tokens of text behind each."""
    g = torch.Generator().manual_seed(seed)
    picture = [torch.rand(1, 1, n, generator=g) for n in counts]
    words = [torch.rand(1, t, n, generator=g) for t, n in zip(texts, counts, strict=True)]
    reads = {BY_PICTURE: picture, BY_TEXT: words}
    behind = {TextEmbeddings(): [torch.zeros(t, 1) for t in texts]}
    return Spans([torch.zeros(n, 1) for n in counts], budgets, reads, behind, stage="decoder", layer=1)


def test_the_formula_in_plain_numbers():
    [pruner] = vtc.parse("fitprune(keep=4)")
    spans = make([12, 7, 9], [4, 2, 3], (6, 6, 6))
    for i, n in enumerate((12, 7, 9)):
        picture, rows = spans.reads[BY_PICTURE][i][0, 0].double(), spans.reads[BY_TEXT][i][0].double()
        expected = [float(picture[j]) * sum(float(row[j]) for row in rows) for j in range(n)]
        assert pruner.score(spans.tokens())[i, :n].tolist() == pytest.approx(expected)
        best = sorted(range(n), key=lambda j: -expected[j])[: spans.budgets[i]]
        assert sorted(chosen(pruner, spans.tokens())[i]) == sorted(best)
    check_selection(pruner, spans)


def test_without_text_behind_the_picture_it_alone_ranks():
    spans = make([8], [3], (2,))
    tokens = spans.tokens()
    tokens.source.behind = torch.zeros(1, 2, dtype=torch.bool)
    score = vtc.parse("fitprune(keep=3)")[0].score(tokens)
    assert torch.equal(score, spans.reads[BY_PICTURE][0][:, 0])


@pytest.mark.parametrize("impl", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("at_once", [512, 5])
def test_what_it_reads_is_the_attention_of_the_layer(family, impl, at_once, monkeypatch):
    """Sums over queries of the largest head; rows of padding and of text are not the picture's."""
    monkeypatch.setattr("vtc.models.language.decoder_signals.AT_ONCE", at_once)
    heads = DecoderAttention(queries="visual")
    seen = {}

    class Look(vtc.Pruner):
        stage, layer, signals, uses_text = "decoder", 2, (BY_PICTURE, BY_TEXT, heads), True

        def select(self, tokens, k):
            seen.update({s: tokens.read(s) for s in self.signals}, behind=tokens.text_valid(after=True))
            return torch.arange(k).expand(len(tokens.counts), -1)

    given = prompt(family, "ragged").inputs
    maps = tiny(family, "eager")(**given, use_cache=False, output_attentions=True).attentions[1]
    model = tiny(family, impl)
    with vtc.compressed(model, Look(keep=2)):
        model(**given)
        report = model.vtc.report
    largest = maps.amax(1)
    for row, span in enumerate(report.spans):
        b, columns = span.sample, span.columns
        asking = torch.cat([s.columns for s in report.spans if s.sample == b])
        close(seen[BY_PICTURE][row, 0, 0], largest[b, asking][:, columns].sum(0))
        close(seen[heads][row, :, 0], maps[b][:, asking][:, :, columns].sum(1))
        other = {c for s in report.spans if s.sample == b for c in s.columns.tolist()}
        text = [c for c in range(int(columns[-1]) + 1, maps.shape[-1]) if c not in other]
        text = [c for c in text if given["attention_mask"][b, c]]
        close(seen[BY_TEXT][row, 0][seen["behind"][row]], largest[b, text][:, columns])


def close(a, b):
    assert a.shape == b.shape
    assert (a - b).abs().max() < 1e-4


def test_the_authors_lists_are_stops():
    for gone in GONE:
        left, wanted = 576, []
        for layer, drop in enumerate(gone[:31]):
            left -= drop
            wanted += [(layer + 1, left)] if drop else []
        [pruner] = vtc.parse("fitprune", keep=left)
        assert [(s.layer, s.keep) for s in pruner.stops(32)] == wanted
        [pruner] = vtc.parse("fitprune", keep=left / 576)
        assert [(s.layer, int(s.keep * 576 + 0.5)) for s in pruner.stops(32)] == wanted
    assert vtc.parse("fitprune")[0].stops(32)[-1].keep == DEFAULT


@pytest.mark.parametrize("keep", [1.0, 0.9, 0.4, 0.2, 0.03, 700, 600, 100, 20, 1])
@pytest.mark.parametrize("depth", [2, 5, 28, 32, 40])
@pytest.mark.parametrize("spec", ["fitprune", "fitprune(ratios=(0.7, 0.3))", "fitprune(tokens=64)"])
def test_shares_fall_to_keep(spec, depth, keep):
    if depth == 2 and "ratios" in spec:
        return
    stops = vtc.parse(spec, keep=keep)[0].stops(depth)
    kept = [s.keep for s in stops]
    assert kept[-1] == keep
    assert kept == sorted(kept, reverse=True)
    layers = [s.layer for s in stops]
    assert layers == sorted({*layers})
    assert 1 <= layers[0] <= layers[-1] < depth


def test_recipes_between_recipes():
    recipes = [(0.8, 0.4), (0.5, 0.2)]
    assert between_recipes(recipes, 0.3) == pytest.approx((0.65, 0.3))
    assert between_recipes(recipes, 0.4) == pytest.approx((0.8, 0.4))
    assert between_recipes(recipes[::-1], 0.7) == pytest.approx((0.9, 0.7))
    assert between_recipes(recipes, 1.0) == (1.0, 1.0)
    assert between_recipes(recipes, 0.04) == pytest.approx((0.25, 0.04))


def test_ratios_and_files(tmp_path):
    [pruner] = vtc.parse("fitprune(ratios=(0.9, 0.9, 0.25))")
    assert [(s.layer, s.keep) for s in pruner.stops(6)] == [(1, 0.9), (3, 0.25)]
    with pytest.raises(ValueError, match=f"ratios are {DEPTH}, and after the last of {DEPTH} layers nothing goes"):
        vtc.compress(tiny("llava"), "fitprune", ratios=(0.5,) * DEPTH)
    for bad in ("(0.2, 0.4)", "(1.0,)", "(0.5, 0.0)", "()"):
        with pytest.raises(ValueError, match=r"fitprune.ratios=.* must fall, in \(0, 1\]"):
            vtc.parse(f"fitprune(ratios={bad})")
    with pytest.raises(ValueError, match=r"fitprune.tokens=0 is out of range"):
        vtc.parse("fitprune(tokens=0)")
    file = tmp_path / "schedule.json"
    name = recipes_file(file, [0.8, 0.5], [0.4, 0.1])
    with pytest.raises(ValueError, match="both say what goes"):
        vtc.parse("fitprune", schedule=name, ratios=(0.5,))
    [pruner] = vtc.parse("fitprune", schedule=name, keep=0.3)
    assert [(s.layer, round(s.keep, 9)) for s in pruner.stops(3)] == [(1, 0.6), (2, 0.3)]
    with pytest.raises(ValueError, match=rf"of a decoder of 3 layers, and this one has {DEPTH}: .*vtc fitprune"):
        vtc.compress(tiny("llava"), pruner)
    for content, message in (
        ("[", "is no JSON"),
        ("{}", "was not written by"),
        (json.dumps({"format": FORMAT, "recipes": [{"kept": ["a"]}]}), "is damaged"),
        (json.dumps({"format": FORMAT, "recipes": [[0.5]]}), "is damaged"),
        (json.dumps({"format": FORMAT, "recipes": []}), "recipes of one length"),
        (json.dumps({"format": FORMAT, "recipes": [{"kept": [0.5]}, {"kept": [0.5, 0.4]}]}), "recipes of one length"),
        (json.dumps({"format": FORMAT, "recipes": [{"kept": [0.5, 0.6]}]}), "that fall, in"),
        (json.dumps({"format": FORMAT, "recipes": [{"kept": [float("nan")]}]}), "that fall, in"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            vtc.parse("fitprune", schedule=name)[0].check_files()
    with pytest.raises(FileNotFoundError, match="make one with 'vtc fitprune --output'"):
        vtc.parse("fitprune", schedule="gone.json")[0].check_files()


def test_runs_on_a_model_with_a_file_and_is_saved_with_it(tmp_path):
    name = recipes_file(tmp_path / "mine.json", [0.9] + [0.5] * (DEPTH - 2), [0.4] + [0.2] * (DEPTH - 2))
    setting = Setting("fitprune", 0.3, {"schedule": name})
    model = tiny("llava")
    with vtc.compressed(model, setting.pruner, keep=setting.keep, **setting.params):
        model(**prompt("llava", "ragged").inputs)
        report = model.vtc.report
        vtc.VTCConfig(pruner=f"fitprune(schedule={name!r})").save_pretrained(tmp_path / "saved")
        assert (tmp_path / "saved" / "fitprune.json").read_bytes() == (tmp_path / "mine.json").read_bytes()
    assert [len(kept) for kept in report.steps[-1].kept] == [setting.kept(len(s.columns)) for s in report.spans]
