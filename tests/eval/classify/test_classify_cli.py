"""``vtc bench`` with a classifier: what it takes and refuses, CLIP zero-shot, and the bundled digits end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from classify_world import CLASSES, classify_world, save_clip, save_pictures, save_timm
from result_rows import read_all
from torch.nn.functional import normalize

from vtc.bundled_files import bundled_digits_path
from vtc.commands.main import main
from vtc.eval.classify.classifier import load_classifier, zero_shot
from vtc.eval.classify.classifier_costs import count_flops
from vtc.eval.classify.classifier_job import ClassifyOptions, run_bench
from vtc.eval.classify.pictures import class_names, load_pictures
from vtc.eval.classify.sources import split_source
from vtc.eval.vlm.pruning_settings import UNPRUNED


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    model, data = classify_world()
    code, out, err = run(
        capsys, "bench", "--model", f"timm:{model}", "--data", data, "--pruners", "tome", "--keep", "0.5", "--limit", 6,
        "--seeds", 1, "--no-timing", "--device", "cpu", "--output", tmp_path / "out",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "6 pictures (a fixed choice from 12), 3 classes matched to 3 outputs by sorted order" in out
    assert "random (as tome)" in out
    assert "images/s" not in out
    about = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert about["kind"] == "classifier"
    assert about["command"].startswith("vtc bench --model timm:")
    assert about["configuration"]["classes"] == {name: i for i, name in enumerate(CLASSES)}
    assert len(read_all(tmp_path / "out" / "results.jsonl")) == 3 * 6


BAD: dict[str, tuple[object, ...]] = {
    "--tasks does not apply: --model timm:VIT is a classifier": ("--data", "DATA", "--tasks", "pope"),
    "--workers does not apply": ("--data", "DATA", "--workers", 2),
    "--max-new-tokens does not apply": ("--data", "DATA", "--max-new-tokens", 4),
    "--recipe does not apply": ("--data", "DATA", "--recipe", "tome-llava-1.5-7b"),
    "--shard does not apply": ("--data", "DATA", "--shard", "1/2"),
    "needs --data FOLDER": (),
    "--data: no such folder": ("--data", "nowhere"),
    "--match 'x' is unknown": ("--data", "DATA", "--match", "x"),
    "--on-error 'x' is unknown": ("--data", "DATA", "--on-error", "x"),
    "a bare ViT has no language model": ("--data", "DATA", "--pruners", "fastv"),
    "Did you mean 'tome'": ("--data", "DATA", "--pruners", "tme"),
    "out of range": ("--data", "DATA", "--keep", "0"),
    "dtype 'int8' is unknown": ("--data", "DATA", "--dtype", "int8"),
    "has 2 classes (ant, bee, ...), the model has 3 outputs": ("--data", "FEW"),
    "no labelled pictures in": ("--data", "VIT"),
}


@pytest.mark.parametrize("message", list(BAD))
def test_what_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, message: str):
    model, data = classify_world()
    few = tmp_path / "few"
    save_pictures(few, 1, CLASSES[:2])
    names = {"DATA": data, "VIT": model, "FEW": few}
    args = [names.get(str(a), a) for a in BAD[message]]
    code, _, err = run(capsys, "bench", "--model", f"timm:{model}", *args, "--output", tmp_path / "out")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert message.replace("timm:VIT", f"timm:{model}") in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("timm:", "names no model"),
        ("timm:./nowhere", "no such folder"),
        ("timm:vit_tiny_patch16_224@nowhere.safetensors", "no such file: nowhere.safetensors"),
        ("timm:no_such_vit", "can't load the model 'timm:no_such_vit'"),
        ("open_clip:ViT-B-32", "say which weights: open_clip:ViT-B-32@TAG or @FILE; there is openai"),
    ],
)
def test_models_that_cannot_be_had(capsys: pytest.CaptureFixture[str], model: str, message: str):
    code, _, err = run(capsys, "bench", "--model", model, "--data", classify_world()[1])
    assert code == 2
    assert message in err


def test_names_and_weights(tmp_path: Path):
    folder = save_timm(tmp_path / "v@1", names=True)  # a folder's name may have an @
    assert split_source(f"timm:{folder}") == ("timm", f"local-dir:{folder}", "")
    weights = tmp_path / "w.safetensors"
    weights.write_bytes((folder / "model.safetensors").read_bytes())
    assert split_source(f"timm:vit_x@{weights}") == ("timm", "vit_x", str(weights))
    assert split_source("open_clip:ViT-B-32@openai") == ("open_clip", "ViT-B-32", "openai")
    found = load_classifier(f"timm:{folder}", "cpu")
    assert found.names == list(CLASSES)
    assert not found.model.training
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}


def test_a_convolutional_network_is_no_vit(tmp_path: Path):
    import timm
    from safetensors.torch import save_file

    net = timm.create_model("resnet10t", num_classes=3)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet10t", "num_classes": 3}))
    with pytest.raises(NotImplementedError, match="is a ResNet, no VisionTransformer of timm"):
        load_classifier(f"timm:{tmp_path}", "cpu")


def test_clip_zero_shot(tmp_path: Path):
    """Class names become prompts, the text tower runs once and whole, the image tower is pruned."""
    folder, data = save_clip(tmp_path / "clip"), save_pictures(tmp_path / "set", 3, ("ant", "queen_bee"))
    clip = load_classifier(f"open_clip:{folder}", "cpu")
    assert "0x" not in str(clip.described)  # the same in every run
    model: Any = clip.model
    calls: list[int] = []
    model.transformer.register_forward_hook(lambda *_: calls.append(1))
    names = ["ant", "queen bee"]
    found = zero_shot(clip, names, ("a photo of a {}.", "a {}"))
    assert len(calls) == len(names)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = clip.tokenizer(["a photo of a queen bee.", "a queen bee"])
        bee = normalize(normalize(model.encode_text(tokens), dim=-1).mean(0), dim=-1)
        wanted = model.logit_scale.exp() * (normalize(model.encode_image(x), dim=-1) @ bee)
        torch.testing.assert_close(found.logits(x)[:, 1], wanted)
    d, n = 48, 17  # torch's fused attention layer must not hide its products from the counter
    blocks = 4 * (2 * n * d * (4 * d + 4 * d) + 4 * n * n * d)
    flops = 2 * 16 * 3 * 64 * d + blocks + 2 * d * 32 + 2 * 32 * len(names)
    assert count_flops(found, UNPRUNED, x[:1]) == flops
    assert torch.backends.mha.get_fastpath_enabled()
    summary = run_bench(
        ClassifyOptions(f"open_clip:{folder}", data, ["tome"], (0.5,), output=tmp_path / "out", timing=0, device="cpu")
    )
    about = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert about["configuration"]["prompts"] == ["a photo of a ant.", "a photo of a queen bee."]
    pruned = next(line for line in summary if line.method == "tome")
    assert (pruned.tokens_total, pruned.tokens_kept) == (16, 8)
    assert (pruned.flops_ratio or 1) < 1
    (data / "classes.json").write_text(json.dumps({"ant": "small black ant"}))
    run_bench(
        ClassifyOptions(f"open_clip:{folder}", data, ["tome"], (0.5,), output=tmp_path / "out", timing=0, device="cpu")
    )
    about = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert about["configuration"]["prompts"][0] == "a photo of a small black ant."
    assert len({row["config"] for row in read_all(tmp_path / "out" / "results.jsonl")}) == 2


def test_the_bundled_digits(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """The trained ViT on its held-out pictures: it reads them, and both methods are judged against random."""
    tasks = load_pictures(bundled_digits_path())
    assert class_names(tasks) == [str(i) for i in range(10)]
    training = json.loads((bundled_digits_path() / "training.json").read_text())
    assert len(tasks.questions) == training["held_out"] == 450
    code, out, err = run(
        capsys, "bench", "--model", "timm:digits", "--keep", "0.25", "--seeds", 1, "--no-timing",
        "--device", "cpu", "--output", tmp_path / "out",
    )  # fmt: skip
    assert (code, err) == (0, "")
    cells = {c["method"]: c for c in json.loads((tmp_path / "out" / "summary.json").read_text())["cells"]}
    assert cells["unpruned"]["mean"]["value"] > 0.95
    for method in ("tome", "zero_tprune"):
        cell = cells[method]
        assert cell["verdict"]
        assert cell["tokens_kept"] == 16
        assert cell["flops_ratio"] < 0.8
        assert cell["mean"]["value"] > cells[f"random (as {method})"]["mean"]["value"]
        assert f"{method} " in out
