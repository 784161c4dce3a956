"""``vtc export-vllm``: what it writes, the command that it prints, and what it refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from command_line import run

from vtc.integrations.vllm.export import export, row_for, settings_of

QWEN = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "hidden_size": 8}
LLAVA = {"architectures": ["LlavaForConditionalGeneration"], "vision_config": {"model_type": "clip_vision_model"}}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "my model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN))
    (folder / "model.safetensors").write_text("weights")
    return folder


def test_a_folder_is_linked_beside_a_configuration_with_two_entries_more(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "served"
    method = ("--pruner", "divprune", "--keep", "0.25", "--choice", "norm")
    code, printed, _ = run(capsys, "export-vllm", out, "--model", model, *method)
    assert code == 0
    config = json.loads((out / "config.json").read_text())
    settings = {"pruner": "divprune", "keep": 0.25, "choices": ["norm"]}
    assert config == {**QWEN, "architectures": ["VtcQwen2_5_VLForConditionalGeneration"], "vtc": settings}
    assert (out / "model.safetensors").is_symlink()
    assert (out / "model.safetensors").read_text() == "weights"
    assert shlex.split(printed) == ["vllm", "serve", str(out), "--video-pruning-rate", "1e-18"]
    assert json.loads((model / "config.json").read_text()) == QWEN  # the model itself is untouched


def test_it_can_be_written_again_and_copied(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "served"
    export(out, str(model), QWEN, settings_of("divprune", 0.25, (), ()))
    export(out, str(model), QWEN, settings_of("norm", 64, (), ()), copy=True)
    assert json.loads((out / "config.json").read_text())["vtc"] == {"pruner": "norm", "keep": 64}
    assert not (out / "model.safetensors").is_symlink()


def test_of_a_hub_id_only_what_overrides_need_is_written(tmp_path: Path) -> None:
    out = tmp_path / "a b"
    done = export(out, "llava-hf/llava-1.5-7b-hf", LLAVA, settings_of("divprune", 0.25, (), ()))
    written = json.loads((out / "hf_overrides.json").read_text())
    assert written == {
        "architectures": ["VtcLlavaForConditionalGeneration"],
        "vtc": {"pruner": "divprune", "keep": 0.25},
    }
    assert done.command == (f"vllm serve llava-hf/llava-1.5-7b-hf --hf-overrides \"$(cat '{out}/hf_overrides.json')\"")


def test_what_can_not_be_served_is_refused_in_words(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, words in (
        (["--pruner", "fastv", "--keep", "0.25"], "KV blocks"),
        (["--pruner", "divprune"], "must say how much"),
        (["--pruner", "divprune", "--keep", "0.25", "--choice", "dart"], "it can't run inside vLLM"),
    ):
        code, _, told = run(capsys, "export-vllm", tmp_path / "out", "--model", model, *arguments)
        assert code == 2
        assert words in told
        assert not (tmp_path / "out").exists()


def test_other_models_and_other_folders_are_left_alone(model: Path, tmp_path: Path) -> None:
    settings = settings_of("divprune", 0.25, (), ())
    with pytest.raises(ValueError, match="no row; it has LlavaForConditionalGeneration"):
        row_for({"architectures": ["LlamaForCausalLM"]}, "x")
    with pytest.raises(FileExistsError, match="not empty"):
        export(model, "a/b", QWEN, settings)
    with pytest.raises(NotImplementedError, match="Pixtral"):
        row_for({**LLAVA, "vision_config": {"model_type": "pixtral"}}, "x")
