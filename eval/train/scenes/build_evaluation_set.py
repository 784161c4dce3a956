"""Rebuild the evaluation set: ``python -m vtc.eval.train.scenes.build_evaluation_set --out DIR``."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from . import easyvqa
from .questions import (
    Question,
    ask_color,
    ask_count,
    ask_exist,
    ask_more,
    ask_quadrant,
    ask_reading,
    ask_shape,
    ask_spatial,
)
from .render import compress, render
from .scene import DENSE, Scene, sample_scene

VERSION = "2.0.0"
SEED = 2027
NUM_SCENES = 280
NUM_EASY_IMAGES = 110
QUALITY = 82
QUESTIONS_PER_SCENE = 2
SCENE_TASKS = {
    "color": ask_color,
    "shape": ask_shape,
    "exist": ask_exist,
    "count": ask_count,
    "count_more": ask_more,
    "spatial": ask_spatial,
    "quadrant": ask_quadrant,
    "ocr": ask_reading,
}
"""Task of the evaluation set -> function that lists its questions about a scene."""
QUESTIONS_PER_EASY_IMAGE = 4
IMAGES_FILE, QUESTIONS_FILE, RECORD_FILE = "images.parquet", "questions.parquet", "dataset.json"
Row = dict[str, Any]

DESCRIPTIONS = {
    "color": "attribute: the colour of the object with a given letter (8 colours)",
    "shape": "attribute: the shape of the object with a given letter (6 shapes)",
    "exist": "existence (POPE-like): is a letter there (yes/no, half each)",
    "count": "counting: how often a kind of symbol is there (1 or 4)",
    "count_more": "counting: which of two kinds of symbols is there more often",
    "spatial": "spatial relation: the colour of the plate farthest to the left, right, top or bottom",
    "quadrant": "localisation: the quarter of the image in which a letter lies",
    "ocr": "number reading: the two-digit number of which the left digit is given",
    easyvqa.TASK: "outside data: easy-vqa 1.0, test split, original 64 px PNG files (MIT)",
}


def evaluation_scenes(count: int = NUM_SCENES, seed: int = SEED) -> list[Scene]:
    """Return the scenes of the evaluation set.

    Their random sources are named "evaluation/...", those of training "train/...".
    """
    return [sample_scene(random.Random(f"evaluation/{seed}/scene/{index}"), DENSE) for index in range(count)]


def build(folder: Path, seed: int = SEED) -> None:
    """Write images, questions and the record of the evaluation set.

    Parameters
    ----------
    folder : Path
        Where the three files go; same code and library versions give the same bytes.
    seed : int
        Another seed gives another set of the same kind: choices are made on one, figures
        reported on the bundled one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images, questions = _scene_rows(seed)
    easy_images, easy_questions = _easy_rows(seed)
    images, questions = images + easy_images, questions + easy_questions
    _write(folder / IMAGES_FILE, images)
    _write(folder / QUESTIONS_FILE, questions)
    record = _record(folder, questions, seed)
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")


def prior_accuracy(questions: Sequence[Row]) -> dict[str, float]:
    """Return per task the accuracy (%) of always giving a question text's most frequent answer.

    It is fitted on the evaluation set itself, leaving one out, so it sees no image.
    """
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    by_task: dict[str, Counter[str]] = defaultdict(Counter)
    for row in questions:
        by_text[row["question"]][row["answer"]] += 1
        by_task[row["task"]][row["answer"]] += 1
    hits: dict[str, list[bool]] = defaultdict(list)
    for row in questions:
        others = by_text[row["question"]] - Counter([row["answer"]])
        if not others:
            others = by_task[row["task"]] - Counter([row["answer"]])
        guess = others.most_common(1)[0][0] if others else ""
        hits[row["task"]].append(guess == row["answer"])
    return {task: round(100 * sum(h) / len(h), 1) for task, h in hits.items()}


def _scene_rows(seed: int = SEED) -> tuple[list[Row], list[Row]]:
    images, questions = [], []
    used: dict[str, Counter[str]] = defaultdict(Counter)
    for index, scene in enumerate(evaluation_scenes(seed=seed)):
        name = f"scene-{index:03d}"
        images.append({"image_id": name, "image": compress(render(scene), QUALITY)})
        rng = random.Random(f"evaluation/{seed}/questions/{index}")
        questions += _rows(name, _ask_evenly(rng, scene, used))
    return images, questions


def _ask_evenly(rng: random.Random, scene: Scene, used: dict[str, Counter[str]]) -> list[Question]:
    """Ask about a scene so that all answers of a task become equally frequent."""
    chosen: list[Question] = []
    for task, ask in SCENE_TASKS.items():
        pool = ask(rng, scene)
        rng.shuffle(pool)
        for _ in range(min(QUESTIONS_PER_SCENE, len(pool))):
            rarest = min(pool, key=lambda question: used[task][question.answer])
            pool.remove(rarest)
            used[task][rarest.answer] += 1
            chosen.append(replace(rarest, task=task))
    return chosen


def _easy_rows(seed: int) -> tuple[list[Row], list[Row]]:
    rng = random.Random(f"evaluation/{seed}/easyvqa")
    images, questions = [], []
    for image in rng.sample(easyvqa.load_split("test"), NUM_EASY_IMAGES):
        name = f"easyvqa-{image.path.stem}"
        images.append({"image_id": name, "image": image.path.read_bytes()})
        questions += _rows(name, _balanced(rng, image.questions))
    return images, questions


def _balanced(rng: random.Random, pool: Sequence[Question]) -> list[Question]:
    """One yes, one no and other questions, so that constant answers score low."""
    yes = [q for q in pool if q.answer == "yes"]
    no = [q for q in pool if q.answer == "no"]
    open_ended = [q for q in pool if q.answer not in ("yes", "no")]
    chosen = rng.sample(yes, min(1, len(yes))) + rng.sample(no, min(1, len(no)))
    missing = QUESTIONS_PER_EASY_IMAGE - len(chosen)
    return chosen + rng.sample(open_ended, min(missing, len(open_ended)))


def _rows(image: str, questions: Sequence[Question]) -> list[Row]:
    return [
        {
            "question_id": f"{image}-{number}",
            "task": question.task,
            "image_id": image,
            "question": question.text,
            "answer": question.answer,
        }
        for number, question in enumerate(questions)
    ]


def _write(path: Path, rows: list[Row]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")


def _record(folder: Path, questions: list[Row], seed: int) -> Row:
    counts = Counter(row["task"] for row in questions)
    prior = prior_accuracy(questions)
    return {
        "version": VERSION,
        "seed": seed,
        "licence": "Apache-2.0 (scenes); MIT (easy-vqa images and questions)",
        "sha256": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (IMAGES_FILE, QUESTIONS_FILE)
        },
        "tasks": {
            task: {
                "description": DESCRIPTIONS[task],
                "source": "easy-vqa 1.0 (PyPI)" if task == easyvqa.TASK else "vtc.eval.train.scenes",
                "questions": counts[task],
                "prior_accuracy": prior[task],
            }
            for task in DESCRIPTIONS
        },
    }


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(prog="python -m vtc.eval.train.scenes.build_evaluation_set", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=SEED, help="another set of the same kind")
    options = parser.parse_args()
    build(options.out, options.seed)


if __name__ == "__main__":
    main()
