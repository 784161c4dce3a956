"""Mistakes in a method of somebody's own are said at its first selection, and wrong files before any model is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import METHODS, fits
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor
from zoo import FAMILIES, prompt, tiny

import vtc
from vtc.models.selection.report import Report
from vtc.pruners import check_returned_values as checked
from vtc.pruners.base import Merged
from vtc.pruners.primitives.projector import read_projector
from vtc.pruners.visual_tokens import VisualTokens

pytestmark = pytest.mark.usefixtures("no_grad")


def run(pruner: vtc.Pruner, family: str = "llava") -> Report:
    model = tiny(family)
    with vtc.compressed(model, pruner):
        model(**prompt(family, "ragged").inputs)
        return model.vtc.report


def selecting(choose: Any, **flags: Any) -> vtc.Pruner:
    body = {"name": "mine", "ragged": True, "select": lambda self, tokens, k: choose(tokens, k), **flags}
    return type("Mine", (vtc.Pruner,), body)(keep=3)


def scoring(score: Any) -> vtc.Pruner:
    return type("Mine", (vtc.ScorePruner,), {"name": "mine", "score": lambda self, tokens: score(tokens)})(keep=3)


def columns(tokens: VisualTokens, row: list[int]) -> Tensor:
    return torch.tensor([row] * len(tokens.counts))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("row", "said"),
    [([0, 1, 1], "got column 1 twice"), ([0, 1, 999], "got column 999"), ([-1, 0, 1], "got column -1")],
    ids=str,
)
def test_columns_twice_or_of_no_token(family: str, row: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=rf"mine\.select must return different columns from 0 to \d+, {said}"):
        run(selecting(lambda tokens, k: columns(tokens, row)), family)


def test_adaptive_choices_are_looked_at_too() -> None:
    with pytest.raises(ValueError, match="got column 2 twice"):
        run(selecting(lambda tokens, k: columns(tokens, [2, -1, 2]), adaptive_count=True))
    report = run(selecting(lambda tokens, k: columns(tokens, [2, -1, 4]), adaptive_count=True))
    assert {len(kept) for kept in report.steps[-1].kept} == {2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index, x: Merged(index, x[:, :-1]), r"Merged\.features must be \[\d+, 3, \d+\], got"),
        (lambda index, x: Merged(index, x[..., 1:]), r"Merged\.features must be \[\d+, 3, \d+\], got"),
        (lambda index, x: Merged(index, x, x[..., 0, None]), r"Merged\.size must be \[\d+, 3\], got"),
    ],
)
def test_merged_vectors_are_one_for_each_column(change: Any, said: str) -> None:
    def choose(tokens: VisualTokens, k: int) -> Merged:
        return change(columns(tokens, [0, 1, 2]), tokens.features[:, :3])

    with pytest.raises(ValueError, match=said):
        run(selecting(choose, merges=True))


@pytest.mark.parametrize(
    ("score", "error", "said"),
    [
        (lambda t: t.features.mean(), ValueError, r"one number for each token, \[\d+, \d+\] .*, got \[\]"),
        (lambda t: t.features.mean(1), ValueError, "one number for each token"),
        (lambda t: t.features[:, :1, 0], ValueError, "one number for each token"),
        (lambda t: t.features, ValueError, "one number for each token"),
        (lambda t: 1.0, TypeError, "tensor of real numbers, got float"),
        (lambda t: t.features[..., 0] * 1j, TypeError, "tensor of real numbers, got torch.complex64"),
        (lambda t: t.features[..., 0] * float("nan"), ValueError, "NaN for every token of a span"),
    ],
)
def test_scores_that_say_nothing(score: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=rf"mine\.score .*{said}"):
        run(scoring(score))


def test_scores_that_say_enough() -> None:
    """Whole numbers, truth values, and NaN at some tokens."""
    for score in (
        lambda t: t.ids,
        lambda t: t.ids > 2,
        lambda t: torch.where(t.ids > 2, t.ids.float(), float("nan")),
    ):
        assert {len(kept) for kept in run(scoring(score)).steps[-1].kept} == {3}


@pytest.mark.parametrize("setting", [s for s in METHODS if fits(s, "llava")], ids=str)
def test_our_own_methods_are_not_waited_for_on_a_device(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    [pruner] = vtc.parse(setting.pruner, keep=setting.keep, **setting.params)
    on_device, fake = torch.empty(2, device="meta"), FakeTensorMode()
    with fake:
        traced = torch.empty(2)
    assert checked.looked_at(pruner, torch.empty(2)), "on the CPU everybody is looked at"
    for x in (on_device, traced):
        assert not checked.looked_at(pruner, x)
        assert not checked.looked_at(selecting(None), x), "there is nothing to read"
    monkeypatch.setattr(checked, "readable", lambda x: True)  # as a GPU's tensors are
    assert not checked.looked_at(pruner, on_device)
    assert checked.looked_at(selecting(None), on_device), "a method from outside is looked at everywhere"


def wrong_files(folder: Path) -> dict[str, Any]:
    """Per file that a method takes: how it is named, with something else inside."""
    text, empty = folder / "file.json", folder / "folder"
    text.write_text(json.dumps({"sink": ["a"], "dead": [5]}))
    empty.mkdir()
    (empty / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return {
        "embedlens.classes": ("embedlens", {"classes": str(text)}),
        "explainer.weights": ("explainer", {"weights": str(text)}),
        "idpruner.scorer": ("idpruner", {"importance": "scorer", "scorer": str(text)}),
        "text_encoder": ("cdpruner", {"text_encoder": str(empty)}),
    }


@pytest.mark.parametrize("name", ["embedlens.classes", "explainer.weights", "idpruner.scorer", "text_encoder"])
@pytest.mark.parametrize("there", [True, False], ids=["wrong", "missing"])
def test_files_are_read_when_wrapping(name: str, there: bool, tmp_path: Path) -> None:
    method, params = wrong_files(tmp_path)[name]
    if not there:
        params = {k: v if v == "scorer" else str(tmp_path / "none") for k, v in params.items()}
    model = tiny("llava")
    with pytest.raises((ValueError, OSError), match=name):
        vtc.compress(model, method, keep=4, **params)
    assert not hasattr(model, "vtc"), "the model stays as it was"
    with pytest.raises((ValueError, OSError), match=name):  # and before a model is looked for
        vtc.load(tmp_path / "no model", method, keep=4, params=params)


def test_a_classes_file_nested_too_deep(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text('{"a":' * 100_000)
    with pytest.raises(ValueError, match=r"embedlens\.classes.*no JSON file"):
        vtc.compress(tiny("llava"), "embedlens", keep=4, classes=str(tmp_path / "deep.json"))


def test_projectors_whose_weights_wrap_others_are_refused() -> None:
    """As torchao's quantised ones do: they say that they hold floats."""
    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(TwoTensor(torch.ones(4, 4), torch.ones(4, 4)), requires_grad=False)
    with pytest.raises(NotImplementedError, match="quantised or offloaded weights"):
        read_projector(nn.Sequential(linear, nn.GELU(), nn.Linear(4, 4)), 1, 4)
