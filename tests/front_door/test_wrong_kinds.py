"""Values of a kind nobody meant, refused in one line that names them: parameters, layers, module paths, files."""

from __future__ import annotations

import copy
import csv
import json
import pickle
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from methods import METHODS, Setting, fits
from zoo import FAMILIES, prompt, shapes_of, tiny

import vtc
from vtc.eval.files.csv_file import plain_cell, write_rows
from vtc.eval.files.yaml_file import read_yaml
from vtc.eval.sweep.paper_recipes import load_recipe
from vtc.eval.sweep.results_store import AnswerStore, ResultStore, read_rows
from vtc.eval.tasks.reading.definition import read_definition
from vtc.pruners.check_parameter_kinds import KINDS
from vtc.pruners.untrusted_json import parse_json

no_grad = pytest.mark.usefixtures("no_grad")
STRANGE: list[Any] = [True, 1.0, "2", 3, None, (1.5,), (True,), {}, object()]
DEEP = 100_000


def strangers() -> list[Any]:
    """Every parameter of every method with every value that is not of its kind."""
    found = []
    for name in vtc.list_pruners():
        for f in fields(vtc.pruner_class(name)):
            kinds = [KINDS.get(part.strip()) for part in str(f.type).split("|")]
            if f.name != "keep" and None not in kinds:
                wrong = [v for v in STRANGE if not any(of(v) for of, _ in kinds if of)]
                found.append(pytest.param(name, f.name, wrong, id=f"{name}.{f.name}"))
    return found


@pytest.mark.parametrize(("name", "parameter", "wrong"), strangers())
def test_every_parameter_of_every_method_is_of_its_kind(name: str, parameter: str, wrong: list[Any]) -> None:
    assert wrong
    for value in wrong:
        with pytest.raises((TypeError, ValueError)) as refused:
            vtc.pruner_class(name)(keep=0.5, **{parameter: value})
        message = str(refused.value)
        assert message.startswith(f"{name}.{parameter}={value!r} is of the wrong kind")
        assert "must be" in message
        assert "\n" not in message


def test_what_is_declared_is_what_is_checked() -> None:
    """No method has a parameter that escapes: what KINDS does not know is listed here."""
    known = {"dict[str, Any] | None"}  # deep_random.first_params
    every = {str(f.type) for n in vtc.list_pruners() for f in fields(vtc.pruner_class(n))}
    assert {t for t in every if not all(part.strip() in KINDS for part in t.split("|"))} == known


def test_numbers_of_numpy_are_numbers() -> None:
    pruner = vtc.parse("random", keep=np.float32(0.5), layer=np.int64(2), seed=np.int32(3))[0]
    assert (type(pruner.layer), type(pruner.seed)) == (int, int)
    assert vtc.VTCConfig.of((pruner,)).to_dict()["params"] == {"layer": 2, "seed": 3}


@dataclass(kw_only=True)
class Somewhere(vtc.Pruner):
    """Prunes at a layer that nobody checked."""

    name = "somewhere"
    at: Any = None
    where: str = "decoder"

    def stops(self, depth: int) -> tuple[Any, ...]:
        return (vtc.pruners.base.Stop(self.where, self.at, self.keep),)

    def select(self, tokens: vtc.VisualTokens, k: int) -> torch.Tensor:
        return torch.arange(k).expand(len(tokens.counts), k)


@pytest.mark.parametrize("where", ["decoder", "vision"])
@pytest.mark.parametrize("layer", [True, 1.0, "2"])
def test_a_layer_is_an_int_whoever_gives_it(layer: Any, where: str) -> None:
    model = tiny("llava")
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3)
    with pytest.raises(TypeError, match=rf"somewhere: layer must be an int, got {layer!r}"):
        vtc.compress(model, Somewhere(keep=3, at=layer, where=where))
    with pytest.raises(TypeError, match=rf"somewhere: layer must be an int, got {layer!r}"):
        vtc.compress(vit, Somewhere(keep=3, at=layer, where=where))


@pytest.mark.parametrize("name", vtc.list_pruners())
@pytest.mark.parametrize("strange", ["name", "cls", "self", "params"])
def test_parameters_that_are_none(name: str, strange: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no parameter '{strange}'"):
        vtc.parse(f"{name}(keep=0.5, {strange}=1)")


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_that_can_not_be_what_they_are_named(family: str) -> None:
    model = tiny(family)
    name_of = {id(m): n for n, m in model.named_modules()}
    found = vtc.models.layout.model_parts.locate(model)
    paths = {part: name_of[id(getattr(found, part))] for part in ("core", "lm", "layers", "tower")}
    vtc.restore(vtc.compress(model, "random", keep=0.5, parts=paths))  # the right ones
    in_tower = next(n for n, m in found.tower.named_modules() if isinstance(m, torch.nn.ModuleList))
    for wrong in ({"layers": paths["core"]}, {"layers": paths["layers"] + ".0"}):
        with pytest.raises(ValueError, match=r"parts\['layers'\]=.* is no list of decoder layers"):
            vtc.compress(model, "random", keep=0.5, parts=wrong)
    with pytest.raises(ValueError, match=r"parts\['layers'\]=.* is not inside"):
        vtc.compress(model, "random", keep=0.5, parts={"layers": f"{paths['tower']}.{in_tower}"})
    with pytest.raises(ValueError, match=r"parts\['lm'\]=.* is not inside"):
        vtc.compress(model, "random", keep=0.5, parts={"lm": "lm_head", "layers": paths["layers"]})
    assert not hasattr(model, "vtc")


NESTED = {"vtc_config.json": '{"a":' * DEEP, "lists.json": "[" * DEEP, "closed.json": "[" * DEEP + "]" * DEEP}


@pytest.mark.parametrize("name", NESTED)
def test_deeply_nested_json_is_no_crash(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(NESTED[name])
    with pytest.raises(ValueError, match=r"no valid JSON"):
        vtc.VTCConfig.from_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match="too deep"):
        parse_json(NESTED[name])
    assert read_rows(tmp_path / name) == ([], 0)  # no whole line


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
YAML = {"deep": "[" * 1500, "keys": "a: " + "{b: " * 1500, "aliases": BOMB, "itself": "a: &a [*a]", "torn": "a: ["}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_explodes_is_told_in_a_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.yaml"
    path.write_text(YAML[name])
    for read in (read_yaml, read_definition, lambda p: load_recipe(str(p))):
        with pytest.raises(ValueError, match=r"too deep|not valid YAML|says more than") as refused:
            read(path)
        assert "\n" not in str(refused.value)
    path.write_text("a: &a [1, 2]\nb: *a\n")
    assert read_yaml(path) == {"a": [1, 2], "b": [1, 2]}


ROW = {"config": "c", "cell": "unpruned", "question_id": "1", "score": 1.0, "visual_total": 4, "visual_kept": 4,
       "visual_mean_per_layer": 4.0}  # fmt: skip
NO_ROWS: list[Any] = [
    [], 1, "text", None, {}, {"config": "c"}, {**ROW, "cell": ["unpruned"]}, {**ROW, "question_id": 1},
    {**ROW, "config": None},
]  # fmt: skip
NO_ANSWERS: list[Any] = [
    *({k: v for k, v in ROW.items() if k != name} for name in AnswerStore.numbers),
    *({**ROW, name: value} for name in AnswerStore.numbers for value in ("1", True, None, float("nan"), [1])),
]


def test_lines_that_are_no_rows_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    lines = ["[" * DEEP, '{"a":' * DEEP, "torn", *map(json.dumps, NO_ROWS)]
    path.write_text("\n".join([*lines, json.dumps(ROW)]) + "\n")
    assert ResultStore(path, "c").rows == {("unpruned", "1"): ROW}
    for line in NO_ANSWERS:
        path.write_text(json.dumps(line) + "\n")
        assert AnswerStore(path, "c").rows == {}, line
        path.write_text(json.dumps(line) + "\n" + json.dumps(ROW) + "\n")
        assert AnswerStore(path, "c").rows == {("unpruned", "1"): ROW}


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "=cmd|'/c calc'!A1", "＝1"]


def test_a_spreadsheet_runs_nothing(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{f"accuracy_{t}": 1, t: t, "number": -0.5} for t in FORMULAS]
    write_rows(tmp_path / "a.csv", [*rows, {"number": ""}])
    with open(tmp_path / "a.csv", newline="") as file:
        read = list(csv.reader(file))
    assert not any(cell.strip().startswith(tuple("=+@\t\r＝")) for line in read for cell in line)
    column = read[0].index("number")
    assert [line[column] for line in read[1:]] == ["-0.5"] * len(rows) + [""]
    assert len(read) == len(rows) + 2
    shown = [f"'{t}".replace("\r", " ") for t in FORMULAS]
    assert [line[read[0].index(t)] for t, line in zip(shown, read[1:], strict=False)] == shown
    assert [plain_cell(v) for v in ("gqa", "a=b", -1, -0.5, None, "")] == ["gqa", "a=b", -1, -0.5, None, ""]


def same(a: Any, b: Any) -> bool:
    """Whether two reports say the same."""
    alike = (str(a), a.tokens_per_layer, a.layouts, a.pictures) == (str(b), b.tokens_per_layer, b.layouts, b.pictures)
    spans = all(x[:3] == y[:3] and torch.equal(x.columns, y.columns) for x, y in zip(a.spans, b.spans, strict=True))
    steps = all(x[:2] == y[:2] and all(map(torch.equal, x.kept, y.kept)) for x, y in zip(a.steps, b.steps, strict=True))
    return alike and spans and steps


@no_grad
@pytest.mark.parametrize("family", FAMILIES)
def test_reports_are_pickled_and_copied_without_the_model(family: str) -> None:
    model = tiny(family)
    for setting in (s for s in METHODS if fits(s, family) and s.pruner in ("random", "globalcom2", "fastv", "pool")):
        for shape in shapes_of(FAMILIES[family], ("ragged", "video", "text")):
            with vtc.compressed(model, setting.pruner, keep=setting.keep, **setting.params):
                model(**prompt(family, shape).inputs)
                report = model.vtc.report
            data = pickle.dumps(report)
            assert len(data) < 100_000  # no features, no hooks
            fresh = pickle.loads(data)
            assert fresh.batch is None or fresh.batch.fed == {}
            assert same(fresh, report)
            assert same(copy.deepcopy(report), report)


@no_grad
def test_the_report_of_a_bare_vit_speaks_of_its_tower() -> None:
    net = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5).eval()
    with vtc.compressed(net, Setting("tome(at='vision', layer=4)").pruner, keep=0.5):
        net(torch.randn(1, 3, 64, 64))
        report = net.vtc.report
        assert "decoder" not in str(report) + repr(net.vtc)
    assert str(report) == "1 span, 16 visual tokens -> 8 (vision layer 4: 8)"
    assert same(pickle.loads(pickle.dumps(report)), report)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "resnet18", "convnext_atto", "mixer_s32_224"])
def test_other_models_of_timm_are_refused_in_words_for_them(name: str) -> None:
    net = timm.create_model(name, num_classes=5)
    with pytest.raises(NotImplementedError, match=r"\(of timm\) is neither .* VisionTransformer of timm or open_clip"):
        vtc.compress(net, "random(at='vision', layer=4)", keep=0.5)
