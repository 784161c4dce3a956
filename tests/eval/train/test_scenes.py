"""The evaluation set is deterministic, right by construction and apart from the training data."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import vtc.eval
from vtc.eval.train.scenes import build_evaluation_set as build
from vtc.eval.train.scenes import easyvqa
from vtc.eval.train.scenes.questions import ASKERS, LATER_SHARES
from vtc.eval.train.scenes.render import patch_labels, render
from vtc.eval.train.scenes.scene import DENSE, Entity, Scene, sample_scene
from vtc.eval.train.scenes.vocabulary import UNKNOWN_ID, build_tokenizer

DATA = Path(vtc.eval.__file__).parent / "bundled" / "data"
SCENE_TASKS = set(build.SCENE_TASKS)
TOKENS_AT_5_PERCENT = 29


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return build.evaluation_scenes()


@pytest.fixture(scope="module")
def questions() -> list[dict[str, str]]:
    return pq.read_table(DATA / build.QUESTIONS_FILE).to_pylist()


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    rows = pq.read_table(DATA / build.IMAGES_FILE).to_pylist()
    return {row["image_id"]: row["image"] for row in rows}


def named(entities: list[Entity], label: str) -> Entity:
    (found,) = (e for e in entities if e.label == label)
    return found


def answer_again(scene: Scene, text: str) -> str:
    """Answer a question from the scene record; written apart from the question generator."""
    entities = list(scene.entities)
    plates = [e for e in entities if e.kind == "plate"]
    if match := re.fullmatch(r"what (color|shape) is (\w)\?", text):
        return str(getattr(named(entities, match[2]), match[1]))
    if match := re.fullmatch(r"where is (\w)\?", text):
        e = named(entities, match[1])
        return ("bottom" if e.y > 168 else "top") + "-" + ("right" if e.x > 168 else "left")
    if match := re.fullmatch(r"is (\w) in the image\?", text):
        return "yes" if any(e.label == match[1] for e in entities) else "no"
    if match := re.fullmatch(r"what number is on (\w+)\?", text):
        (plate,) = (e for e in plates if e.color == match[1])
        return plate.label
    if match := re.fullmatch(r"what number has left (\d)\?", text):
        (plate,) = (e for e in plates if e.label[0] == match[1])
        return plate.label
    kinds = [e.shape for e in entities if e.kind == "symbol"]
    if match := re.fullmatch(r"how many shapes are (\w+)\?", text):
        return str(kinds.count(match[1]))
    if match := re.fullmatch(r"which are many, (\w+) shapes or (\w+)\?", text):
        return match[1] if kinds.count(match[1]) > kinds.count(match[2]) else match[2]
    match = re.fullmatch(r"what color plate is (\w+)most\?", text)
    assert match, text
    key = {"left": lambda e: e.x, "right": lambda e: -e.x, "top": lambda e: e.y, "bottom": lambda e: -e.y}
    return min(plates, key=key[match[1]]).color


def test_every_answer_follows_from_the_scene(scenes, questions) -> None:
    checked = 0
    for row in questions:
        if row["task"] in SCENE_TASKS:
            scene = scenes[int(row["image_id"].removeprefix("scene-"))]
            assert answer_again(scene, row["question"]) == row["answer"], row
            checked += 1
    assert checked >= len(SCENE_TASKS) * 400


def test_bundled_images_show_the_recorded_scenes(scenes, images) -> None:
    for index in (0, 77, len(scenes) - 1):
        stored = np.asarray(Image.open(io.BytesIO(images[f"scene-{index:03d}"]))).astype(int)
        drawn = np.asarray(render(scenes[index])).astype(int)
        assert np.abs(stored - drawn).mean() < 10
    other = np.asarray(render(scenes[1])).astype(int)
    first = np.asarray(Image.open(io.BytesIO(images["scene-000"]))).astype(int)
    assert np.abs(first - other).mean() > 15


def test_scenes_hold_more_entities_than_tokens_at_5_percent(scenes) -> None:
    for scene in scenes:
        assert len(scene.entities) >= 33 > TOKENS_AT_5_PERCENT
        labels = [e.label for e in scene.of_kind("lettered")]
        assert len(set(labels)) == len(labels)
        colors = [e.color for e in scene.of_kind("plate")]
        assert len(set(colors)) == len(colors)
        owned = set(patch_labels(scene).owner.tolist())
        assert owned >= set(range(len(scene.entities))), "an entity covers no patch"


def test_generation_is_deterministic() -> None:
    first, second = (sample_scene(random.Random("a"), DENSE) for _ in range(2))
    assert first == second
    assert first.fingerprint() != sample_scene(random.Random("b"), DENSE).fingerprint()
    assert np.array_equal(np.asarray(render(first)), np.asarray(render(second)))


def test_rebuilding_gives_the_bundled_questions(tmp_path, questions) -> None:
    rows = build._scene_rows()[1]
    assert rows == [row for row in questions if row["task"] in SCENE_TASKS]


def test_training_scenes_are_not_evaluation_scenes(scenes) -> None:
    pytest.importorskip("torch")
    from vtc.eval.train.basics.images import training_rng

    evaluation = {scene.fingerprint() for scene in scenes}
    assert len(evaluation) == len(scenes)
    for stage in ("vision", "language", "align"):
        for step in range(150):
            rng = training_rng(0, stage, step, step % 2)
            assert sample_scene(rng, DENSE).fingerprint() not in evaluation


def test_easy_images_come_from_the_test_split_only(images) -> None:
    pytest.importorskip("easy_vqa")
    train = {hashlib.sha256(i.path.read_bytes()).digest() for i in easyvqa.load_split("train")}
    test = {hashlib.sha256(i.path.read_bytes()).digest() for i in easyvqa.load_split("test")}
    bundled = {hashlib.sha256(v).digest() for k, v in images.items() if k.startswith("easyvqa")}
    assert bundled
    assert bundled <= test
    assert not bundled & train


def test_answers_are_balanced(questions) -> None:
    answers = defaultdict(Counter)
    for row in questions:
        answers[row["task"]][row["answer"]] += 1
    limits = {
        "exist": 0.56,
        "count": 0.56,
        "count_more": 0.38,
        "color": 0.2,
        "shape": 0.25,
        "quadrant": 0.34,
        "spatial": 0.2,
        "ocr": 0.06,
    }
    for task, limit in limits.items():
        counts = answers[task]
        assert max(counts.values()) / sum(counts.values()) <= limit, (task, counts.most_common(2))


def test_record_matches_the_files(questions, images) -> None:
    record = json.loads((DATA / build.RECORD_FILE).read_text())
    for name, digest in record["sha256"].items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == digest
    counts = Counter(row["task"] for row in questions)
    assert {task: entry["questions"] for task, entry in record["tasks"].items()} == counts
    assert min(counts.values()) >= 400
    assert {row["image_id"] for row in questions} == set(images)
    assert len({row["question_id"] for row in questions}) == len(questions)
    assert sum(path.stat().st_size for path in DATA.iterdir()) <= 12e6


def test_vocabulary_covers_every_question_and_restores_answers(questions) -> None:
    tokenizer = build_tokenizer()
    for row in questions:
        assert UNKNOWN_ID not in tokenizer.encode(row["question"]).ids, row["question"]
        assert tokenizer.decode(tokenizer.encode(row["answer"]).ids) == row["answer"]


def test_training_asks_every_task_of_the_evaluation_set() -> None:
    asked = {ASKERS[name] for name in LATER_SHARES}
    assert asked >= set(build.SCENE_TASKS.values())
