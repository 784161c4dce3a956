"""Files that methods read go into a saved folder under bare names, and a saved set-up reads none outside its folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import tiny_explainer
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from zoo import prompt, tiny

import vtc
from vtc.config import CONFIG_NAME
from vtc.eval.sweep.fingerprint import files_read
from vtc.eval.vlm.pruning_settings import make_cell
from vtc.pruners.primitives.vocabulary import SHIPPED as CALIBRATIONS
from vtc.pruners.registry import list_pruners, pruner_class
from vtc.pruners.trained.network_file import NAME

LORA = {"target_modules": r".*language_model.*\.(q_proj|v_proj)", "r": 2, "init_lora_weights": False}
PLAIN = """
import sys
from transformers import AutoModelForImageTextToText
model, told = AutoModelForImageTextToText.from_pretrained(sys.argv[1], output_loading_info=True)
assert not told["missing_keys"] and not told["unexpected_keys"], told
assert not any(name.split(".")[0] == "vtc" for name in sys.modules)
print(sum(p.detach().double().abs().sum().item() for p in model.parameters()))
"""


def live(family: str = "llava") -> Any:
    """A tiny model with a tokenflex that is being trained: its network is in no file."""
    model = vtc.compress(tiny(family), "tokenflex", keep=4, weights="untrained")
    with torch.no_grad():
        model(**prompt(family, "one").inputs)
    pruner = model.vtc.pipeline[0]
    network = pruner.network(None)
    with torch.no_grad():
        torch.manual_seed(5)
        for weight in network.parameters():
            weight.copy_(torch.randn_like(weight).mul(0.3).bfloat16())
    pruner.use(network, pruner.sizes)
    pruner.about = {"recipe": "none"}
    return model


def logits(model: Any, family: str = "llava") -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**prompt(family, "one").inputs).logits


def test_a_trained_network_is_saved_with_its_model_and_comes_back(tmp_path: Path) -> None:
    model, stock = live(), logits(tiny("llava"))
    before = logits(model)
    assert not torch.allclose(before, stock, atol=1e-3)
    model.save_pretrained(tmp_path / "a")
    saved = json.loads((tmp_path / "a" / CONFIG_NAME).read_text())
    assert saved["params"] == {"weights": NAME}
    with safe_open(tmp_path / "a" / NAME, "pt") as file:
        assert file.metadata()["recipe"] == "none"
    again = vtc.load(tmp_path / "a")
    assert torch.equal(logits(again), before)
    again.save_pretrained(tmp_path / "b")  # from file to file
    shutil.rmtree(tmp_path / "a")
    third = vtc.load(tmp_path / "b")
    assert torch.equal(logits(third), before)
    assert third.vtc.config.keep == 4
    third.save_pretrained(tmp_path / "b")  # over itself
    assert torch.equal(logits(vtc.load(tmp_path / "b")), before)
    assert torch.equal(logits(vtc.restore(third)), stock)
    third.save_pretrained(tmp_path / "b")  # the plain model over it: what belonged to the set-up is gone
    assert not {CONFIG_NAME, NAME} & {p.name for p in (tmp_path / "b").iterdir()}


def test_without_vtc_the_folder_is_the_plain_model(tmp_path: Path) -> None:
    model = live()
    model.save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", PLAIN, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    whole = sum(p.detach().double().abs().sum().item() for p in tiny("llava").parameters())
    assert float(done.stdout) == pytest.approx(whole, rel=1e-9)


def test_the_network_belongs_to_the_model_as_it_was_saved(tmp_path: Path) -> None:
    """A fine-tuned language model has another fingerprint, and the stock one is refused."""
    model = live()
    with torch.no_grad():
        for weight in model.model.language_model.parameters():
            weight.mul_(1.5)
    before = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(vtc.load(tmp_path)), before)
    with pytest.raises(ValueError, match=r"has other values than this model's.*vtc train tokenflex"):
        vtc.compress(tiny("llava"), "tokenflex", keep=4, weights=str(tmp_path))


def test_an_adapter_with_a_network(tmp_path: Path) -> None:
    tiny("llava").save_pretrained(tmp_path / "base")
    base = vtc.load(tmp_path / "base", "tokenflex", keep=4, params={"weights": "untrained"})
    logits(base)
    pruner, other = base.vtc.pipeline[0], live().vtc.pipeline[0]
    pruner.use(other.network(None), other.sizes)
    torch.manual_seed(3)
    model = get_peft_model(base, LoraConfig(**LORA))
    before = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    assert {"adapter_config.json", CONFIG_NAME, NAME} <= {p.name for p in (tmp_path / "adapter").iterdir()}
    assert torch.allclose(logits(vtc.load(tmp_path / "adapter")), before, atol=1e-4)


def test_a_hub_repository_brings_the_file(tmp_path: Path) -> None:
    model = live()
    before = logits(model)
    repository = tmp_path / "models--somebody--something"
    model.save_pretrained(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    again = vtc.load("somebody/something", cache_dir=str(tmp_path), local_files_only=True)
    assert torch.equal(logits(again), before)
    (repository / "snapshots" / "abc" / NAME).unlink()
    with pytest.raises(FileNotFoundError, match="no such file beside"):
        vtc.load("somebody/something", cache_dir=str(tmp_path), local_files_only=True)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "sub/x", "..", "", "C:\\x", "a\\b"])
@pytest.mark.parametrize("where", ["params", "text", "pipeline"])
def test_a_saved_set_up_names_no_other_file(name: str, where: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.safetensors").write_text("")
    said: dict[str, Any] = {"pruner": "explainer", "keep": 4, "params": {"weights": name}}
    if where != "params":
        text = f"explainer(keep=4, weights={name!r})"
        said = {"pruner": text if where == "text" else f"uniform(keep=8) + {text}"}
    (tmp_path / "folder" / CONFIG_NAME).write_text(json.dumps(said))
    with pytest.raises(ValueError, match="must be the name of a file beside it"):
        vtc.VTCConfig.from_pretrained(tmp_path / "folder")


def test_a_bare_name_means_the_folder_and_not_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(tiny_explainer(), tmp_path / "net.safetensors")
    (tmp_path / "folder").mkdir()
    said = {"pruner": "explainer", "keep": 4, "params": {"weights": "net.safetensors"}}
    (tmp_path / "folder" / CONFIG_NAME).write_text(json.dumps(said))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file beside"):
        vtc.VTCConfig.from_pretrained(tmp_path / "folder")
    assert vtc.VTCConfig(**said).pipeline()[0].weights == "net.safetensors"  # in Python any path


def test_files_of_every_method_go_along(tmp_path: Path) -> None:
    explainer, calibration = tiny_explainer(), str(next(CALIBRATIONS.glob("*.json")))
    text = f"embedlens(keep=6, classes={calibration!r}) + explainer(keep=4, weights={explainer!r})"
    config = vtc.VTCConfig(pruner=text)
    config.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {CONFIG_NAME, "explainer.safetensors", "embedlens.json"}
    lens, net = vtc.VTCConfig.from_pretrained(tmp_path).pipeline()
    assert Path(lens.classes).parent == Path(net.weights).parent == tmp_path
    assert Path(lens.classes).read_bytes() == Path(calibration).read_bytes()
    assert load_file(net.weights).keys() == load_file(explainer).keys()
    vtc.VTCConfig(pruner="uniform", keep=4).save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {CONFIG_NAME}


HEADS = {"format": "vtc hawk heads, version 1", "weights": [1.0, 2.0, 3.0, 4.0]}


def _around(folder: Path) -> str:
    """Methods around one that reads a file, and around one around it."""
    file = folder / "mine.json"
    file.write_text(json.dumps(HEADS))
    inner = f"first=hawk, first_params={{'weights': {str(file)!r}}}"
    return f"reroute(keep=0.5, {inner})"


def test_files_of_a_method_inside_another_one_go_with_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    text = _around(tmp_path / "a")
    vtc.VTCConfig(pruner=text).save_pretrained(tmp_path / "b")
    assert {p.name for p in (tmp_path / "b").iterdir()} == {CONFIG_NAME, "hawk.json"}
    shutil.rmtree(tmp_path / "a")
    (found,) = vtc.VTCConfig.from_pretrained(tmp_path / "b").pipeline()
    assert found.inner.heads(4) == (1.0, 2.0, 3.0, 4.0)
    model = vtc.compress(tiny("llava"), found)
    model.save_pretrained(tmp_path / "c")
    (again,) = vtc.load(tmp_path / "c").vtc.pipeline
    assert Path(again.first_params["weights"]) == tmp_path / "c" / "hawk.json"
    model.save_pretrained(tmp_path / "c")  # over itself
    vtc.restore(model).save_pretrained(tmp_path / "c")
    assert not {CONFIG_NAME, "hawk.json"} & {p.name for p in (tmp_path / "c").iterdir()}


@pytest.mark.parametrize("name", ["../mine.json", "/etc/hostname", "gone.json"])
def test_a_method_inside_another_one_reads_no_file_elsewhere_either(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(HEADS))
    file = tmp_path / "saved" / CONFIG_NAME
    file.parent.mkdir()
    inside = {"weights": name}
    for written in (
        {"pruner": f"reroute(keep=0.5, first=hawk, first_params={inside!r})"},
        {"pruner": "reroute", "keep": 0.5, "params": {"first": "hawk", "first_params": inside}},
        {"pruner": "reroute(first=hawk)", "keep": 0.5, "params": {"first_params": inside}},
    ):
        file.write_text(json.dumps(written))
        with pytest.raises((ValueError, FileNotFoundError), match=r"hawk.weights=.*beside"):
            vtc.VTCConfig.from_pretrained(file.parent)


def test_answers_of_another_file_inside_a_method_are_not_taken(tmp_path: Path) -> None:
    cell = make_cell(_around(tmp_path), None)
    before = files_read([cell])
    (tmp_path / "mine.json").write_text(json.dumps({**HEADS, "weights": [1.0] * 4}))
    assert before != files_read([cell])


def test_a_missing_file_inside_a_method_is_told_before_a_model_is_wrapped() -> None:
    with pytest.raises(FileNotFoundError, match=r"gone.json"):
        vtc.compress(tiny("llava"), "reroute", keep=0.5, first="hawk", first_params={"weights": "gone.json"})


def test_two_networks_in_one_pipeline_get_names_of_their_own(tmp_path: Path) -> None:
    model = live()
    model.save_pretrained(tmp_path / "one")
    first, second = tmp_path / "one" / NAME, tmp_path / "other.safetensors"
    with torch.no_grad():
        model.vtc.pipeline[0].network(None).out.weight.add_(1.0)
    second.write_bytes(model.vtc.pipeline[0].file_content("weights"))
    config = vtc.VTCConfig(pruner=f"tokenflex(keep=9, weights='{first}') + tokenflex(keep=4, weights='{second}')")
    config.save_pretrained(tmp_path / "both")
    found = [Path(p.weights).name for p in vtc.VTCConfig.from_pretrained(tmp_path / "both").pipeline()]
    assert found == [NAME, "compressor-2.safetensors"]


def test_files_are_parameters() -> None:
    for name in list_pruners():
        cls = pruner_class(name)
        assert set(cls.files) <= set(cls.__dataclass_fields__), name


def test_answers_of_another_network_in_the_same_folder_are_not_taken(tmp_path: Path) -> None:
    model = live()
    model.save_pretrained(tmp_path)
    cell = make_cell(f"tokenflex(weights='{tmp_path}')", 4)
    before = files_read([cell])
    with torch.no_grad():
        model.vtc.pipeline[0].network(None).out.weight.add_(1.0)
    model.save_pretrained(tmp_path)
    assert files_read([cell]) != before
