"""Choices that do not depend on rounding: a contract of every method, and the command that measures it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from golden_support import Served, tokens_of
from places import ROOT
from properties import chosen
from torch import Tensor
from typer.testing import CliRunner

import vtc
from vtc.commands.main import app, main
from vtc.eval.stability import rounding_overlap as measured
from vtc.eval.stability.made_up_spans import Made, Sizes, picture, video
from vtc.eval.stability.rounding_overlap import LEAST, QUESTIONS, measure, overlap, stops_of, walk
from vtc.pruners.base import Pruner
from vtc.pruners.primitives.precision import exact, settled, wide
from vtc.pruners.vispruner import VisPruner

pytestmark = pytest.mark.usefixtures("no_grad")
TOKENS = 576
KEEP = 0.11


def cascading() -> list[str]:
    return [name for name in vtc.list_pruners() if measured.setting(name, KEEP).cascades]


@pytest.mark.share(2)
@pytest.mark.parametrize("name", vtc.list_pruners())
def test_contract_rounding_does_not_choose(name: str) -> None:
    """Float32 as float64, equal tokens or not; and, unless it says that it cascades, features off by 1e-6."""
    questions = [q for q, asked in QUESTIONS.items() if asked.promised]
    row = measure(name, TOKENS, KEEP, draws=2, questions=questions)
    assert not row.failed
    assert not row.broken, row.overlaps


@pytest.mark.parametrize("name", cascading())
def test_what_cascades_says_why(name: str) -> None:
    cls = vtc.pruner_class(name)
    assert "cascades" in (cls.__doc__ or "")
    [row] = json.loads(CliRunner().invoke(app, ["pruners", "--json", name]).output)
    assert row["cascades"] is True


def test_only_vispruner_cascades() -> None:
    assert cascading() == ["vispruner"]
    rows = json.loads(CliRunner().invoke(app, ["pruners", "--json"]).output)
    assert [row["name"] for row in rows if row["cascades"]] == cascading()


def in_float64(attention: Tensor, x: Tensor, keep: int = 64, step: int = 8) -> set[int]:
    """VisPruner written out, in float64."""
    order = attention.double().mean(0).argsort(descending=True, stable=True)
    top, rest = order[: keep // 2], order[keep // 2 :]
    x = x.double() / x.double().norm(dim=-1, keepdim=True)
    while len(rest) > keep - len(top):
        even, odd = rest[::2], rest[1::2]
        like = (x[even] @ x[odd].T).amax(-1)
        gone = min(step, len(rest) - keep + len(top))
        rest = torch.cat([even[like.argsort(descending=True, stable=True)[gone:]], odd])
    return set(torch.cat([top, rest]).tolist())


@pytest.mark.parametrize("seed", range(20))
def test_vispruner_keeps_what_float64_keeps(seed: int) -> None:
    """With cosines in float32 every fourth of these ended in another set, some 30 of 64 tokens apart."""
    g = torch.Generator().manual_seed(seed)
    x, attention = torch.randn(576, 1024, generator=g), torch.randn(16, 576, generator=g).softmax(-1)
    pruner = VisPruner(keep=64)
    source = Served(dict(zip(pruner.signals, (attention[None], x[None, :, None]), strict=True)))
    assert set(pruner.select(tokens_of(x[None], 64, source), 64)[0].tolist()) == in_float64(attention, x)


def test_the_contract_is_no_formality(monkeypatch: pytest.MonkeyPatch) -> None:
    """VisPruner as it was, in the dtype that it is given, breaks it."""
    monkeypatch.setattr("vtc.pruners.vispruner.exact_dtype", lambda device: None)
    monkeypatch.setattr("vtc.pruners.vispruner.decides_on_host", lambda x: False)
    row = measure("vispruner", TOKENS, 64, draws=16, questions=["float64"])
    assert row.broken == ["float64"]


def test_features_in_float64_stay_so() -> None:
    """A method that narrows what it is given would look the same in both and prove nothing."""
    x = torch.randn(3, dtype=torch.float64)
    assert wide(x) is x
    assert wide(x.half()).dtype == wide(x.float()).dtype == torch.float32
    assert exact(x.bfloat16()).dtype == torch.float64
    near = torch.tensor([[0.5, 0.0], [0.5 + 1e-9, 0.0]], dtype=torch.float64)
    [pruner] = vtc.parse("norm", keep=1)
    assert chosen(pruner, tokens_of(near, 1)) == [[1]], "1e-9 apart, which float32 can't tell"
    assert chosen(pruner, tokens_of(near.float(), 1)) == [[0]], "and there the lowest index wins"


def test_settled_numbers_are_equal_where_sums_are() -> None:
    values = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    forward, backward = values.cumsum(0)[-1], values.flip(0).cumsum(0)[-1]
    assert forward != backward
    scale = values.abs().sum()
    assert settled(forward.clone(), scale) == settled(backward.clone(), scale)
    assert abs(settled(forward.clone()) - forward) <= 2**-41
    single = torch.tensor([0.1, 0.2])
    assert settled(single) is single, "float32 has no bits to spare"


def test_overlap_is_the_share_in_common() -> None:
    ids = torch.arange(10)
    assert overlap(ids, ids.flip(0)) == 1.0
    assert overlap(ids, ids[:5]) == 0.5
    assert overlap(ids[:5], ids[5:]) == 0.0
    assert overlap(ids[:0], ids[:0]) == 1.0
    assert overlap(ids[:0], ids) == 0.0


def test_a_walk_goes_through_all_stops() -> None:
    made = Made(picture(64), Sizes(heads=2, encoder=8, decoder=8, head=4, text=3))
    for spec, kept in (("pyramiddrop", [32, 16, 8]), ("todre", [8, 8]), ("vtw", [0])):
        [pruner] = vtc.parse(spec, keep=None if spec != "todre" else 8)
        found = walk(pruner, made)
        assert [len(ids) for ids in found] == kept
        assert len(found) == len(stops_of(pruner))
        for before, after in itertools.pairwise(found):
            assert torch.isin(after, before).all()


def test_made_up_spans_are_drawn_by_seed_and_name() -> None:
    a, b = (Made(picture(16), seed=seed).features("input", None) for seed in (0, 1))
    assert not torch.equal(a, b)
    assert torch.equal(a, Made(picture(16), seed=0).features("input", None))
    assert not torch.equal(a, Made(picture(16), seed=0).features("decoder", 3))
    still = Made(video(6 * 144), copies=True).features("input", None).view(6, 144, -1)
    assert torch.equal(still[0], still[2])
    assert not torch.equal(still[2], still[3])
    twins = Made(picture(36), copies=True).features("input", None)
    assert len(twins.unique(dim=0)) < 15
    assert [picture(n).tokens for n in (576, 2880, 7)] == [576, 2880, 7]
    assert len(picture(2880).grids) == 2
    assert len(video(2880).grids) == 20


def test_the_command(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    given = ["stability", "--pruners", "norm, vispruner", "--tokens", "36", "--draws", "2", "--output", str(page)]
    found = CliRunner().invoke(app, given)
    assert found.exit_code == 0, found.output
    text = page.read_text()
    assert "| `norm` | 36 | 1.000 | 1.000 | 1.000 |" in text
    assert "cascades" in text.splitlines()[-3]
    assert "vtc stability --tokens 36 --keep 0.11 --draws 2" in text
    rows = json.loads(CliRunner().invoke(app, [*given[:-2], "--json"]).stdout)
    assert [row["method"] for row in rows] == ["norm", "vispruner"]
    assert all(len(row["overlaps"][q]) == 2 for row in rows for q in QUESTIONS)


def test_inside_a_model_in_three_precisions(tmp_path: Path) -> None:
    page, methods = tmp_path / "page.md", "uniform,cdpruner,fastv,zero_tprune,langdc"
    given = ["stability", "--model", "bundled", "--pruners", methods, "--draws", "2", "--output", str(page)]
    found = CliRunner().invoke(app, given)
    assert found.exit_code == 1  # langdc was asked for by name, and has no weights here
    lines = {x.split("`")[1]: x for x in page.read_text().splitlines() if x.startswith("| `")}
    assert lines["uniform"] == "| `uniform` | 576 | 1.000 | 1.000 | - |"
    assert "ValueError" in lines["langdc"]
    for name in ("cdpruner", "fastv", "zero_tprune"):
        exact, rounded = (float(cell.split()[0]) for cell in lines[name].split("|")[3:5])
        assert exact >= LEAST
        assert 0.3 < rounded <= 1
    assert "vtc stability --model bundled --keep 0.11 --draws 2" in page.read_text()


def test_a_choice_by_precision_shows_inside_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_dtype(self: Pruner, tokens: vtc.VisualTokens, k: int) -> Tensor:
        start = 0 if tokens.features.dtype == torch.float32 else k // 2
        return torch.arange(start, start + k)[None]

    monkeypatch.setattr("vtc.pruners.uniform.Uniform.select", by_dtype)
    given = ["stability", "--model", "bundled", "--pruners", "uniform", "--keep", "4", "--draws", "1", "--json"]
    [row] = json.loads(CliRunner().invoke(app, given).stdout)
    assert row["overlaps"] == {"in float64": [0.5], "in bfloat16": [0.5]}


def test_a_broken_promise_is_said_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_dtype(self: Pruner, tokens: vtc.VisualTokens, k: int) -> Tensor:
        start = 0 if tokens.features.dtype == torch.float32 else 8
        return torch.arange(start, start + k)[None]

    monkeypatch.setattr("vtc.pruners.uniform.Uniform.select", by_dtype)
    found = CliRunner().invoke(app, ["stability", "--pruners", "uniform", "--tokens", "16", "--keep", "4"])
    assert found.exit_code == 1
    assert f"below {LEAST}" in found.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--pruners", "nope"], "unknown pruner 'nope'"),
        (["--pruners", "norm + cls"], "is a pipeline of 2"),
        (["--pruners", ","], "--pruners is empty"),
        (["--tokens", "5x"], "--tokens must be ints >= 2"),
        (["--keep", "0"], "--keep=0 is out of range"),
        (["--draws", "0"], "draws"),
        (["--output", "no/such/page.md"], "--output: no such folder"),
        (["--model", "bundled", "--tokens", "576"], "--tokens makes up pictures"),
        (["--model", "no/such/model"], "no/such/model"),
    ],
)
def test_wrong_options_are_one_line(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["stability", *given])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said in error
    assert error.count("\n") == 1


def test_the_page_in_docs_has_every_method() -> None:
    text = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")
    for name in vtc.list_pruners():
        for n in (576, 2880):
            [line] = [x for x in text.splitlines() if x.startswith(f"| `{name}` | {n:,} |")]
            three = [float(cell.split()[0]) for cell in line.split("|")[3:6]]
            assert min(three[:2]) >= LEAST
            assert three[2] >= LEAST or "cascades" in line
