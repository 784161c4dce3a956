"""``vtc speed`` on tiny models: a real one, few layers of it, and a configuration alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bench_world import TOKENS, save_model, world
from command_line import run
from rich.console import Console

from vtc.eval.speed import speed_job
from vtc.eval.speed.options import SpeedOptions
from vtc.eval.speed.speed_job import run_speed

METHODS = ("random", "random(layer=2)", "flowcut")


def measured(model: Path, **more: Any) -> dict[str, Any]:
    given = {"pruners": METHODS, "keeps": (4,), "rounds": 3, "image": (56, 56)} | more
    return run_speed(SpeedOptions(model=str(model), **given), Console(quiet=True)).content


def rows(content: dict[str, Any]) -> dict[str, Any]:
    return {row["spec"]: row for row in content["rows"]}


@pytest.fixture(scope="module")
def model() -> Path:
    return world()[0]


@pytest.fixture(scope="module")
def whole(model: Path) -> dict[str, Any]:
    return measured(model)


@pytest.fixture
def config_only(model: Path, tmp_path: Path) -> Path:
    """Configuration and processor, no weights."""
    folder = tmp_path / "config-only"
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def test_every_figure_is_there(whole: dict[str, Any]):
    found = rows(whole)
    assert next(iter(found)) == "unpruned"
    assert not whole["about"]["random_weights"]
    for spec, row in found.items():
        parts = {"prefill", "tower", "decode"} | ({"selection"} if spec != "unpruned" else set())
        assert set(row["rounds"]) == parts
        assert all(len(times) == 3 and min(times) > 0 for times in row["rounds"].values())
        assert row["seconds"]["tower"] < row["seconds"]["prefill"]
        assert not row["extrapolated"]
        assert row["peak_memory"] > 0
        assert row["attained"]["low"] <= row["attained"]["value"] <= row["attained"]["high"]
        limit = row["limit"]
        v, s, f, t = (limit[n] for n in ("tower_share", "selection_share", "decoder_flops_ratio", "tower_flops_ratio"))
        assert limit["speed_up"] == pytest.approx(1 / (v * t + s + (1 - v) * f))
        assert row["of_limit"] == pytest.approx(row["attained"]["value"] / limit["speed_up"])
        assert row["of_attainable"] == pytest.approx(row["attained"]["value"] / row["attainable"]["value"])
    assert found["unpruned"]["visual_tokens"] == [TOKENS] * 4
    assert found["random(keep=4)"]["visual_tokens"] == [4] * 4
    assert found["random(keep=4, layer=2)"]["visual_tokens"] == [TOKENS, TOKENS, 4, 4]
    text = found["unpruned"]["text_tokens"]
    assert found["unpruned"]["kv_bytes"] == 4 * (text + TOKENS) * 2 * 2 * 8 * 4
    assert found["random(keep=4, layer=2)"]["kv_bytes"] == (4 * text + 2 * TOKENS + 2 * 4) * 2 * 2 * 8 * 4


def test_the_tower_of_methods_inside_it(whole: dict[str, Any]):
    inside = [row for row in whole["rows"] if row["tower"] is not None]
    assert [row["method"] for row in inside] == ["flowcut"]
    (row,) = inside
    assert row["limit"]["tower_flops_ratio"] < 1
    assert row["tower_limit"] == pytest.approx(1 / row["limit"]["tower_flops_ratio"])
    assert row["of_tower_limit"] == pytest.approx(row["tower"]["value"] / row["tower_limit"])
    assert row["seconds"]["selection"] > 0, "choosing inside the tower is timed"


def test_few_layers_stand_for_all(whole: dict[str, Any], config_only: Path):
    """What does not depend on the clock is exactly that of all layers."""
    found, all_layers = rows(measured(config_only, layers=3)), rows(whole)
    assert list(found) == list(all_layers)
    for spec, row in found.items():
        full = all_layers[spec]
        assert row["extrapolated"]
        assert row["layers"] == {"decoder": [3, 4], "tower": [3, 3]}
        assert row["visual_tokens"] == full["visual_tokens"]
        assert row["kv_bytes"] == full["kv_bytes"]
        for name in ("decoder_flops_ratio", "tower_flops_ratio"):
            assert row["limit"][name] == pytest.approx(full["limit"][name], rel=1e-9)


def test_times_are_extrapolated_exactly_where_layers_take_the_same(config_only: Path, monkeypatch: pytest.MonkeyPatch):
    """A clock of which every module call takes one tick: 4 layers of a whole model, and 2 of them."""
    ticks = iter(range(10**9))

    def ticking(device: Any) -> Any:
        from vtc.eval.cost.clocks import Clock

        return Clock("ticks", device, lambda: float(next(ticks)))

    monkeypatch.setattr(speed_job, "work_clock", ticking)
    given = {"pruners": ("random",), "tower_layers": 3}
    few, full = rows(measured(config_only, layers=2, **given)), rows(measured(config_only, layers=4, **given))
    for spec, row in few.items():
        assert not full[spec]["extrapolated"]
        # each layer that is there is a tick for itself and one for the gap behind it, which belongs to the rest
        gaps = 4 - 2
        assert row["seconds"]["prefill"] == full[spec]["seconds"]["prefill"] - gaps
        assert row["seconds"]["tower"] == full[spec]["seconds"]["tower"]


@pytest.mark.parametrize("what", ["folder with a processor", "config.json", "configuration alone"])
def test_a_configuration_is_enough(config_only: Path, what: str, tmp_path: Path):
    source = config_only
    if what == "config.json":
        source = config_only / "config.json"
    elif what == "configuration alone":
        source = tmp_path / "alone"
        source.mkdir()
        shutil.copy(config_only / "config.json", source)
    content = measured(source, pruners=("random",), batch=2)
    assert content["about"]["random_weights"]
    assert content["about"]["layers"] == {"decoder": [4, 4], "tower": [3, 3]}
    assert rows(content)["random(keep=4)"]["visual_tokens"] == [4] * 4
    assert rows(content)["unpruned"]["kv_bytes"] == 2 * 4 * content["about"]["prompt"][0] * 2 * 2 * 8 * 4, "batch 2"


def test_memory_decides_how_many_layers(config_only: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    from vtc.eval.check.tiny_model.config_source import config_of
    from vtc.eval.speed import true_shape

    config, device = config_of(str(config_only)), torch.device("cpu")

    def shape(free: int | None, **more: Any) -> Any:
        monkeypatch.setattr(true_shape, "free_memory", lambda _: free)
        return true_shape.plan_shape(config, device, torch.float32, **more)

    full = sum(p.numel() * 4 for p in shape(None).full.parameters())
    layer = sum(p.numel() * 4 for p in shape(None).full.model.language_model.layers[0].parameters())
    assert shape(None).text.picked == (0, 1, 2, 3)
    assert shape(int(full / true_shape.ROOM) + 1).missing == 0
    less = shape(int((full - layer) / true_shape.ROOM) + 1)
    assert (less.text.picked, less.missing) == ((0, 1, 2), layer)
    assert shape(None, layers=2).missing == 2 * layer
    with pytest.raises(ValueError, match=r"memory does not hold 1 \+ 1 layers .* \(--dtype bfloat16\)"):
        shape(layer)


def test_a_run_is_written_whole_and_read_again(model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    given = ("speed", model, "--pruners", "random", "--keep", "4", "--rounds", "3", "--image", "56x56")
    code, out, _ = run(capsys, *given, "--output", tmp_path / "old.json")
    assert code == 0
    assert "speed-up" in out
    assert "all 4 layers" in out
    old = json.loads((tmp_path / "old.json").read_text())
    for row in old["rows"]:  # as if everything had been ten times as fast
        row["rounds"] = {part: [0.1 * t for t in times] for part, times in row["rounds"].items()}
    (tmp_path / "old.json").write_text(json.dumps(old))
    code, out, _ = run(capsys, *given, "--compare", tmp_path / "old.json")
    assert code == 1
    assert "REGRESSION" in out
    code, out, _ = run(capsys, *given, "--compare", tmp_path / "old.json", "--json")
    assert code == 1
    assert any(c["regression"] for c in json.loads(out)["changes"])
    code, _, err = run(capsys, *given, "--batch", "2", "--compare", tmp_path / "old.json")
    assert code == 2
    assert "batch: 1 then, 2 now" in err


def test_the_table_says_what_is_extrapolated(config_only: Path, capsys: pytest.CaptureFixture[str]):
    given = ("--layers", 2, "--pruners", "random", "--keep", 4, "--rounds", 3, "--image", "56x56")
    code, out, _ = run(capsys, "speed", config_only, *given)
    assert code == 0
    assert "EXTRAPOLATED" in out
    assert out.count("2 of 4 *") == 2, "in every row"


def test_interrupted_nothing_is_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(speed_job.Measurement, "run", stopped)
    code, _, _ = run(capsys, "speed", model, "--output", tmp_path / "new.json")
    assert code == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--image", "big"), "--image 'big' must be WIDTHxHEIGHT in pixels from 1 to 65500, such as 1280x960"),
        (("--rounds", "1"), "--rounds 1 is too few"),
        (("--batch", "0"), "--batch must be an int >= 1, got 0"),
        (("--layers", "0"), "--layers must be an int >= 1, got 0"),
        (("--keep", "0"), "must be"),
        (("--pruners", "nonsense"), "nonsense"),
        (("--compare", "none.json"), "can't read none.json"),
        (("--output", "x.txt"), "--output must end in .json"),
        (("--data", "none"), "--data: no such folder: none"),
        (("--layers", "2", "--pruners", "random(layer=3)"), "--layers and --tower-layers say how many are measured"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line(model: Path, options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]):
    code, _, err = run(capsys, "speed", model, *options)
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, _, err = run(capsys, "speed", tmp_path)
    assert code == 2
    assert "has no config.json" in err
    code, _, err = run(capsys, "speed", "lava")
    assert code == 2
    assert "Near: " in err


def test_a_tower_without_a_class_token(tmp_path: Path):
    content = measured(save_model(tmp_path / "siglip", "siglip"), pruners=("zero_tprune",))
    (row,) = [row for row in content["rows"] if row["tower"] is not None]
    assert row["limit"]["tower_flops_ratio"] < 1


def test_few_tower_layers_stand_for_all(config_only: Path):
    """The tower's FLOPs are exact too, and what choosing multiplies is not among them."""
    file = config_only / "config.json"
    config = json.loads(file.read_text())
    config["vision_config"]["num_hidden_layers"] = 6
    file.write_text(json.dumps(config))
    given = {"pruners": ("random(at='vision', layer=1)", "zero_tprune(layer=1)")}
    full, few = rows(measured(config_only, **given)), rows(measured(config_only, tower_layers=4, **given))
    ratios = {row["limit"]["tower_flops_ratio"] for row in [*full.values(), *few.values()] if row["tower"]}
    assert min(ratios) == pytest.approx(max(ratios), rel=1e-9)
    assert max(ratios) < 1
    assert [row["layers"]["tower"] for row in few.values()] == [[4, 6]] * 3
    assert all(row["extrapolated"] for row in few.values())
