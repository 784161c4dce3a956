"""``vtc plan`` from end to end: figures, the sentence, warnings, and errors of one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from plan_world import bundled_config, planned

from vtc.bundled_files import bundled_model_path
from vtc.eval.plan.wording import sentence, warnings_of

BIG = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 8}


def rows(plan: dict[str, Any], batch: int) -> dict[Any, dict[str, Any]]:
    return {row["keep"]: row for row in plan["rows"] if row["batch"] == batch}


def test_figures_of_the_bundled_model(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, "--model", "bundled", "--keep", "0.25,64", "--batch", "1,8", "--text-tokens", 20)
    assert (plan["visual_tokens"], plan["text_tokens"], plan["dtype"]) == (576, 20, "bfloat16")
    found = rows(plan, 8)
    assert found.keys() == {None, 0.25, 64}
    assert [found[k]["visual_tokens"] for k in (None, 0.25, 64)] == [576, 144, 64]
    depth = len(found[None]["visual_tokens_per_layer"])
    per_token = found[None]["kv_bytes"] / (576 + 20)
    assert found[64]["kv_bytes"] == per_token * (64 + 20)
    assert found[64]["flops"]["tower"] == found[None]["flops"]["tower"]
    assert found[64]["flops"]["decoder"] < 0.25 * found[None]["flops"]["decoder"]
    for row in plan["rows"]:
        parts = [row["seconds"][p] for p in ("tower", "projector", "selection", "decoder", "head")]
        assert row["seconds"]["prefill"] == pytest.approx(sum(parts))
        assert len(row["visual_tokens_per_layer"]) == depth
    assert found[64]["largest_batch"] >= found[0.25]["largest_batch"] > found[None]["largest_batch"]


def test_a_small_model_on_a_large_card_gains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, "--model", "bundled", "--batch", "1", "--keep", "0.11")
    assert rows(plan, 1)[0.11]["speed_up"] < 1.02
    assert plan["sentence"].startswith("Pruning does not pay at batch 1 on h100: keep 0.11 makes the prefill ")
    assert "smaller pictures are no way round" in plan["sentence"]  # every picture is 336 x 336


def test_a_large_decoder_gains(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = bundled_config(tmp_path, **BIG)
    plan = planned(capsys, "--model", folder, "--batch", "1,32", "--gpu", "l4", "--keep", "0.25,0.11")
    found = rows(plan, 32)
    assert found[0.11]["speed_up"] > found[0.25]["speed_up"] > 2
    assert found[0.11]["token_speed_up"] > 1
    assert found[0.11]["turning"]["pays_from"] == 0.9
    assert plan["sentence"].startswith("Tower is ")
    assert "keep 0.11 gains at most " in plan["sentence"]


def test_dear_selection_is_warned_of(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = bundled_config(tmp_path, **BIG)
    asked = ("--model", folder, "--batch", "8", "--gpu", "a100", "--keep", "0.11", "--pruners")
    plan = planned(capsys, *asked, "uniform,divprune,dart(layer=3),vtw(layer=4)")
    by_name = {row["method"]: row for row in plan["rows"]}
    assert by_name["divprune"]["seconds"]["selection"] > by_name["uniform"]["seconds"]["selection"]
    assert any(w.startswith("divprune: the selection itself is dear: ") for w in plan["warnings"])
    assert not any(w.startswith("vtw") for w in plan["warnings"])
    layers = by_name["dart(layer=3)"]["visual_tokens_per_layer"]
    assert layers[:4] == [576, 576, 576, 63]
    assert by_name["vtw(layer=4)"]["visual_tokens_per_layer"][3:5] == [576, 0]
    assert by_name["vtw(layer=4)"]["keep"] is None


def test_inside_the_tower(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--model", "bundled", "--batch", "1", "--keep", "0.25", "--pruners", "random(at=vision, layer=2)")
    found = rows(planned(capsys, *asked), 1)
    assert found[0.25]["flops"]["tower"] < found[None]["flops"]["tower"]
    assert found[0.25]["visual_tokens"] == 144


def test_the_screen_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--model", "bundled", "--keep", "0.11", "--batch", "1")
    said = planned(capsys, *asked)["sentence"]
    code, out, _ = run(capsys, "plan", *asked)
    assert code == 0
    assert " ".join(said.split()) in " ".join(out.split())
    for words in ("576 visual tokens", "unpruned prefill by part", "NVIDIA H100 data sheet", "assumed to be attained"):
        assert words in out


def test_this_machine_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys, "--model", "bundled", "--gpu", "cpu", "--keep", "0.11", "--batch", "1")
    assert plan["device"]["assumed"].startswith("measured here with ")
    assert plan["dtype"] == "float32"
    assert rows(plan, 1)[0.11]["speed_up"] > 1.2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--gpu", "b300"], "--gpu 'b300' is unknown: allowed are h200, h100, a100, l4, cpu"),
        (["--keep", "1.5"], "--keep=1.5 is out of range"),
        (["--keep", "0"], "--keep=0 is out of range"),
        (["--keep", ","], "--keep is empty"),
        (["--batch", "0"], "--batch '0' must be numbers of requests >= 1"),
        (["--image", "big"], "--image 'big' must be WIDTHxHEIGHT in pixels"),
        (["--dtype", "int8"], "--dtype 'int8' is unknown: allowed are auto, float32, bfloat16, float16"),
        (["--pruners", "dartt"], "unknown pruner 'dartt'. Did you mean 'dart'"),
        (["--pruners", "dart + random(layer=3)"], "the methods of a pipeline say themselves what they keep"),
        (["--pruners", "dart(layer=99)"], "layer=99 is out of range"),
        (["--model", "llava"], "'llava' has a configuration but no processor"),
        (["--model", "no/such/folder"], "no such model: 'no/such/folder'"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], args: list[str], words: str) -> None:
    base = [] if "--model" in args else ["--model", "bundled"]
    code, out, err = run(capsys, "plan", *base, *args)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_a_configuration_without_a_processor_and_one_beside_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copy(bundled_model_path() / "config.json", tmp_path / "config.json")
    code, _, err = run(capsys, "plan", "--model", tmp_path / "config.json")
    assert code == 2
    assert "has a configuration but no processor" in err
    asked = ("--keep", "0.11", "--batch", "1", "--processor", bundled_model_path())
    assert planned(capsys, "--model", tmp_path / "config.json", *asked)["visual_tokens"] == 576


def test_words_are_functions_of_a_plan() -> None:
    """Both take a plan and nothing else, so that a script can say them."""
    from vtc.eval.plan.plan_job import PlanOptions, make_plan

    made = make_plan(PlanOptions("bundled", keep="0.5", batch="1", gpu="l4"))
    assert sentence(made).endswith(".")
    assert warnings_of(made) == []
