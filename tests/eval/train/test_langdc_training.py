"""``vtc train langdc``: a stage for the captioner, then the rest; and the clips that the bundled model is shown."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from bench_world import world
from processors import qwen, qwen_video
from rich.console import Console
from safetensors.torch import load_file
from transformers import LlamaConfig
from zoo import tiny

import vtc
from vtc.eval.tasks.media.frames import Frames
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.train.compressor import first_captioner as first_captioner_module
from vtc.eval.train.compressor.answered_questions import Collator
from vtc.eval.train.compressor.first_captioner import _llama, first_captioner
from vtc.eval.train.compressor.options import CompressorOptions, check_options
from vtc.eval.train.compressor.train_job import asked_of, run_training
from vtc.eval.train.scenes.clips import FRAMES, clip_questions, sample_clip
from vtc.eval.train.scenes.vocabulary import UNKNOWN_ID, build_tokenizer
from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.prompts import make_row
from vtc.models.layout.model_parts import locate

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def short_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A captioner that has learnt nothing seldom ends."""
    monkeypatch.setattr(first_captioner_module, "LONGEST", 8)


def options(output: Path, **more: Any) -> CompressorOptions:
    model, data = world()
    given = {"steps": 4, "batch_size": 2, "save_every": 2, "device": "cpu", "rate": 3e-3, "lm_rate": 1e-3}
    return CompressorOptions("langdc", str(model), data, output=output, **{**given, **more})


def moved(a: Path, b: Path) -> set[str]:
    before, after = (load_file(p / "compressor.safetensors") for p in (a, b))
    return {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}


def test_a_captioner_learns_captions_and_then_the_rest_learns_with_it(tmp_path: Path) -> None:
    run_training(options(tmp_path / "untrained", stage="align", steps=1, rate=1e-30), QUIET)
    run_training(options(tmp_path / "captions", stage="caption", steps=9), QUIET)
    losses = [row["loss"] for row in json.loads((tmp_path / "captions" / "report.json").read_text())["history"]]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert moved(tmp_path / "untrained", tmp_path / "captions") == {"captioner", "look"}
    assert not (tmp_path / "captions" / "model.safetensors").exists()
    run_training(options(tmp_path / "whole", weights=str(tmp_path / "captions"), steps=2), QUIET)
    assert moved(tmp_path / "captions", tmp_path / "whole") == {"post"}
    start, end = (load_file(p / "model.safetensors") for p in (world()[0], tmp_path / "whole"))
    changed = {name for name in end if not torch.equal(start[name].float(), end[name].float())}
    assert any("projector" in name for name in changed)
    assert any("language" in name for name in changed)
    assert not any("vision" in name for name in changed)
    model = vtc.load(tmp_path / "whole")
    assert [p.name for p in model.vtc.pipeline] == ["langdc"]


def test_a_resumed_captioner_is_the_whole_runs(tmp_path: Path) -> None:
    run_training(options(tmp_path / "whole", stage="caption"), QUIET)
    with pytest.raises(KeyboardInterrupt):
        run_training(options(tmp_path / "parts", stage="caption", stop_after=2), QUIET)
    run_training(options(tmp_path / "parts", stage="caption"), QUIET)
    assert moved(tmp_path / "whole", tmp_path / "parts") == set()
    histories = [json.loads((tmp_path / n / "report.json").read_text())["history"] for n in ("whole", "parts")]
    assert histories[0] == histories[1]


def test_a_new_captioner_is_a_copy_of_a_small_llama_and_else_a_new_one() -> None:
    parts = locate(load_model(str(world()[0]), "cpu").model)
    sizes, weights = first_captioner(parts, 6, 3, 0)
    assert sizes["captioner"]["num_hidden_layers"] == len(parts.layers)
    assert sizes["before"] == [1]
    assert (sizes["behind"], sizes["end"], sizes["pad"]) == ([6], 3, 0)
    assert torch.equal(weights["captioner.model.norm.weight"], parts.lm.norm.weight)
    assert "look.first.weight" in weights
    text = parts.lm.config.get_text_config()
    for other in ({"attention_bias": True}, {"hidden_act": "gelu"}, {"model_type": "qwen2"}):
        changed = LlamaConfig(**{**text.to_dict(), **other})
        changed.model_type = other.get("model_type", "llama")
        assert _llama(parts.lm, changed) is None


def test_what_can_not_be_trained_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--stage caption trains the captioner of langdc and nothing else"):
        check_options(CompressorOptions("tokenflex", stage="caption"))
    with pytest.raises(ValueError, match="not compressor,lm of langdc"):
        check_options(CompressorOptions("langdc", stage="caption", train=["compressor", "lm"]))
    with pytest.raises(ValueError, match="the bundled evaluation set"):
        run_training(CompressorOptions("langdc", tasks=["color"]), QUIET)
    _, data = world()
    tasks = load_tasks(data)
    many = [replace(q, media=("i0", "i1", "i2", "i0", "i1")) for q in tasks.questions]
    loaded = load_model(str(world()[0]), "cpu")
    with vtc.compressed(loaded.model, "langdc", weights="untrained") as model:
        batch = Collator(loaded.processor, tasks)(many[:1])
        model(**batch)
        network = model.vtc.pipeline[0].built
        model.vtc.pipeline[0].use(network, model.vtc.pipeline[0].sizes)
        network.taught = batch["labels"][:, -2:]
        with pytest.raises(ValueError, match="these 1 questions show 2 segments"):
            model(**batch)


def test_models_that_take_videos_are_given_clips_as_videos() -> None:
    processor, tasks = qwen(tf.Qwen2VLProcessor, qwen_video()), asked_of(CompressorOptions("langdc", limit=2))
    asked, model = tasks.questions[:2], tiny("qwen2_vl")
    batch = Collator(processor, tasks)(asked)
    for i, question in enumerate(asked):
        row = make_row(processor, model.config, Frames.of(tasks.visuals(question)), question)
        shown = batch["input_ids"][i][batch["attention_mask"][i].bool()]
        assert torch.equal(shown[: len(row.ids)], row.ids), "the prompt is the one that is answered"
    with vtc.compressed(model, "langdc", keep=8, weights="untrained"):
        assert model(**batch).loss.isfinite()
        assert {span.modality for span in model.vtc.report.spans} == {"video"}


def test_clips_show_what_their_captions_list_and_ask_about_nothing_else() -> None:
    tokenizer = build_tokenizer()
    counts = []
    for seed in range(60):
        clip = sample_clip(random.Random(seed))
        assert clip == sample_clip(random.Random(seed))
        names = [(e.kind, e.label) for e in clip.shown if e.kind == "lettered"]
        assert len(clip.frames) == FRAMES
        assert len(set(names)) == len(names), "letters are unique"
        ids = tokenizer.encode(clip.caption, add_special_tokens=False).ids
        assert UNKNOWN_ID not in ids
        plates = sum(e.kind == "plate" for e in clip.shown)
        assert len(ids) == 3 * len(clip.shown) + plates, "three words a thing, and a number has two digits"
        counts.append(len(clip.shown))
        listed = clip.caption.split()
        for question in clip_questions(random.Random(seed), clip):
            asked = question.text.rstrip("?").split()
            about = asked[1] if question.task == "exist" else asked[-1]
            assert (question.answer == "no") == (about not in listed)
        first, last = ({(e.kind, e.label, e.color): e.x for e in f.entities} for f in (clip.frames[0], clip.frames[-1]))
        assert all(last[k] < first[k] + 42 for k in first.keys() & last.keys()), "the camera goes right"
    assert min(counts) <= 2
    assert max(counts) >= 10


def test_without_data_captions_and_questions_are_about_the_same_clips() -> None:
    captions, questions = (asked_of(CompressorOptions("langdc", limit=3, stage=stage)) for stage in ("caption", "sft"))
    assert [q.task for q in captions.questions] == ["caption"] * 3
    assert {q.image_id for q in questions.questions} == {q.image_id for q in captions.questions}
    assert {len(q.media) for q in captions.questions} == {FRAMES}
    pictures = captions.visuals(captions.questions[0])
    assert [p.size for p in pictures] == [(336, 336)] * FRAMES
    assert captions.fingerprint != questions.fingerprint
