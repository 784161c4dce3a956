"""``budget`` against one budget for all, at equal mean tokens: ``python benchmarks/budgets.py --output DIR``.

Two sets of drawn scenes on the bundled model. "busy": pictures with few, some and many things, a third each, one a
prompt. "age": three full pictures a prompt, the question about the last. What equals the means (the usual spread, the
keep of the newest) is found on other pictures or by arithmetic; the means that are printed were counted. Answers are
kept in ``DIR/answers.jsonl``; the same command goes on there. The table goes to ``docs/budgets.md``.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import track

import vtc
from vtc.eval.statistics.intervals import Interval, Resamples
from vtc.eval.sweep.answer import answer_plain
from vtc.eval.tasks.metrics import metric
from vtc.eval.tasks.questions import Question
from vtc.eval.train.scenes.build_evaluation_set import QUALITY, SCENE_TASKS
from vtc.eval.train.scenes.render import compress, render
from vtc.eval.train.scenes.scene import DENSE, Density, Scene, sample_scene
from vtc.eval.vlm.encode_once import encode
from vtc.eval.vlm.loading import Loaded, load_model
from vtc.eval.vlm.prompts import make_row
from vtc.pruners.budget import LEAST, MOST, spread_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "budgets.md"
FEW = Density(letters=(1, 3), plates=(1, 2), symbols=(0, 1))
SOME = Density(letters=(8, 12), plates=(2, 4), symbols=(1, 2))
KEEPS = {"busy": (63, 29, 14), "age": (63, 29)}
BUSY, DECAY, PICTURES = 2.0, 0.5, 3
Sample = tuple[Question, list[Image.Image]]


def opened(scene: Scene) -> Image.Image:
    """The picture of a scene, as the evaluation set has it."""
    return Image.open(io.BytesIO(compress(render(scene), QUALITY))).convert("RGB")


def samples(kind: str, count: int, seed: str) -> Iterator[Sample]:
    """Questions about `count` prompts, one of each task that the (last) picture has an answer for."""
    for index in range(count):
        rng = random.Random(f"budgets/{seed}/{kind}/{index}")
        densities = [(FEW, SOME, DENSE)[index % 3]] if kind == "busy" else [DENSE] * PICTURES
        scenes = [sample_scene(rng, density) for density in densities]
        pictures = [opened(scene) for scene in scenes]
        for task, ask in SCENE_TASKS.items():
            pool = ask(rng, scenes[-1])
            if pool:
                asked, name = rng.choice(pool), f"{kind}-{index}"
                yield Question(f"{name}-{task}", task, name, asked.text, asked.answer), pictures


@torch.no_grad()
def usual_spread(loaded: Loaded, count: int) -> float:
    """The spread at which `busy` leaves the mean budget of other pictures of the mix as it is."""
    spreads = []
    last = ""
    for question, pictures in samples("busy", count, "fit"):
        if question.image_id != last:
            pixels = loaded.processor.image_processor(images=pictures[0], return_tensors="pt")["pixel_values"]
            spread = spread_of(loaded.model.get_image_features(pixel_values=pixels).pooler_output[0])
            last = question.image_id
        spreads.append(spread)
    found, low, high = torch.stack(spreads), 0.01, 1.0
    for _ in range(40):
        usual = (low + high) / 2
        too_much = (found / usual).pow(BUSY).clamp(LEAST, MOST).mean() > 1
        low, high = (usual, high) if too_much else (low, usual)
    return round(usual, 4)


def cells(kind: str, usual: float) -> dict[str, str | None]:
    """Row of the table -> what is wrapped."""
    rows: dict[str, str | None] = {"unpruned": None}
    newest = PICTURES / sum(DECAY**age for age in range(PICTURES))
    for keep in KEEPS[kind]:
        rows[f"{keep}, one budget"] = f"divprune(keep={keep})"
        if kind == "busy":
            rows[f"{keep}, by busyness"] = f"budget(keep={keep}, first=divprune, busy={BUSY}, usual={usual})"
        else:
            sharp = round(newest * keep)
            rows[f"{keep}, by age"] = f"budget(keep={sharp}, first=divprune, busy=0, decay={DECAY})"
    return rows


def measure(loaded: Loaded, kind: str, count: int, rows: dict[str, str | None], file: Path) -> list[dict[str, Any]]:
    """Every row's answer to every question; what `file` has already is not asked again."""
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    have = {(line["kind"], line["row"], line["question"]) for line in done}
    with file.open("a") as stream, torch.no_grad():
        for question, pictures in track(list(samples(kind, count, "measure")), description=kind):
            missing = {row: spec for row, spec in rows.items() if (kind, row, question.question_id) not in have}
            if not missing:
                continue
            prompt = make_row(loaded.processor, loaded.model.config, pictures, question)
            encoded = [encode(loaded.model, prompt)]
            for row, spec in missing.items():
                if spec is None:
                    (found,) = answer_plain(loaded.model, loaded.processor, [prompt], encoded, 8)
                else:
                    with vtc.compressed(loaded.model, spec) as model:
                        (found,) = answer_plain(model, loaded.processor, [prompt], encoded, 8)
                line = {
                    "kind": kind,
                    "row": row,
                    "question": question.question_id,
                    "picture": question.image_id,
                    "task": question.task,
                    "right": metric(question.metric).score(question, found.text),
                    "tokens": found.measured.kept,
                }
                stream.write(json.dumps(line) + "\n")
                stream.flush()
                done.append(line)
    return [line for line in done if line["kind"] == kind and line["row"] in rows]


def table(kind: str, lines: list[dict[str, Any]]) -> str:
    """One line a row: mean tokens of a prompt, accuracy, and the paired difference to one budget for all."""
    names = list(dict.fromkeys(line["row"] for line in lines))
    scores = {name: {x["question"]: x["right"] for x in lines if x["row"] == name} for name in names}
    asked = {x["question"]: (x["picture"], x["task"]) for x in lines}
    draw = Resamples(*map(list, zip(*asked.values(), strict=True)))
    text = "| keep | tokens of a prompt | accuracy | against one budget, points |\n|---|---|---|---|\n"
    for name in names:
        tokens = [x["tokens"] for x in lines if x["row"] == name]
        values = [scores[name][q] for q in asked]
        beside = f"{name.split(',')[0]}, one budget"
        gap = ""
        if beside in scores and beside != name:
            found: Interval = draw.interval([scores[name][q] - scores[beside][q] for q in asked])
            gap = f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
        accuracy = draw.interval(values)
        text += f"| {name} | {sum(tokens) / len(tokens):.1f} | {100 * accuracy.value:.1f} | {gap} |\n"
    return text


def main() -> None:
    """Ask, print, and put both tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=60, help="of one picture; a third as many have three")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    loaded = load_model(None)
    usual = usual_spread(loaded, options.prompts)
    print(f"usual spread {usual}")
    text = PAGE.read_text() if PAGE.exists() else ""
    for kind, count in (("busy", options.prompts), ("age", options.prompts // PICTURES)):
        lines = measure(loaded, kind, count, cells(kind, usual), options.output / "answers.jsonl")
        found = table(kind, lines)
        print(found)
        begin, end = f"<!-- {kind} -->\n", f"<!-- /{kind} -->"
        if begin in text:
            text = text.split(begin)[0] + begin + found + end + text.split(end)[1]
    if text:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
