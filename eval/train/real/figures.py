"""What ``bundled-real`` answers of the bundled evaluation set: ``python -m vtc.eval.train.real.figures --out FILE``.

The language model reads a picture once for all of its questions; an answer is right where greedy decoding would give
exactly it. ``blind`` is the same model without any visual token, as in ``vtc.eval.train.bundled_model_figures``.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from rich.progress import track
from transformers import AutoModelForImageTextToText, AutoProcessor

from vtc.bundled_files import bundled_data, bundled_model_path
from vtc.eval.statistics.intervals import cluster_bootstrap
from vtc.eval.train.bundled_model_figures import answers_right
from vtc.eval.train.evaluation_set import Encoded, load_samples
from vtc.eval.train.scenes.build_evaluation_set import QUESTIONS_FILE, prior_accuracy

from .asking import wording_of

SHARES = {"unpruned": 1.0, "uniform, half": 0.5, "uniform, a quarter": 0.25, "blind": 0.0}
"""Row -> share of the visual tokens that are kept, evenly spaced."""


@torch.no_grad()
def measure(model_folder: Path, data: Path, every: int = 1) -> dict[str, Any]:
    """Accuracy per task with 95% intervals, of every share of :data:`SHARES`.

    Parameters
    ----------
    model_folder, data : Path
        The model and the evaluation set.
    every : int
        Ask about every so many-th picture only.

    Returns
    -------
    dict
        Row -> task -> ``[accuracy, low, high, questions]`` in percent (a bootstrap over pictures), beside ``prior``,
        which answers with the most frequent answer to the same question.
    """
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(model_folder)
    wording = wording_of(processor.tokenizer, model.config.image_seq_length)
    hits: dict[str, dict[str, list[tuple[str, bool]]]] = {row: defaultdict(list) for row in SHARES}
    for sample in track(load_samples(data)[::every], description="ask"):
        pixels = processor.image_processor(images=sample.image, return_tensors="pt")["pixel_values"]
        projected = model.get_image_features(pixel_values=pixels).pooler_output[0]
        image = Encoded(projected, projected.new_zeros(0), sample.questions)
        for row, share in SHARES.items():
            count = round(share * wording.patches)
            kept = ((torch.arange(count) + 0.5) * wording.patches / max(count, 1)).long()
            for question, right in zip(sample.questions, answers_right(model, image, kept, wording), strict=True):
                hits[row][question.task].append((sample.image_id, right))
    rows: dict[str, Any] = {row: {task: _interval(found) for task, found in of.items()} for row, of in hits.items()}
    rows["prior"] = prior_accuracy(pq.read_table(data / QUESTIONS_FILE).to_pylist())
    return rows


def _interval(answers: list[tuple[str, bool]]) -> list[float]:
    pictures, right = zip(*answers, strict=True)
    found = cluster_bootstrap([100.0 * hit for hit in right], pictures)
    return [round(value, 1) for value in found] + [len(right)]


def as_markdown(rows: dict[str, Any]) -> str:
    """One line a task: unpruned with its interval, pruned, blind, and what needs no model."""
    names = list(SHARES)
    lines = [f"| task | questions | {' | '.join(names)} | prior |", "| --- " * (len(names) + 3) + "|"]
    for task, (_, _, _, count) in rows["unpruned"].items():
        cells = [_cell(rows[name][task]) for name in names]
        lines.append(f"| {task} | {count} | {' | '.join(cells)} | {rows['prior'][task]} |")
    return "\n".join(lines) + "\n"


def _cell(found: list[float]) -> str:
    value, low, high, _ = found
    return f"{value} ({low} to {high})"


def main() -> None:
    """Parse the command line, ask, and write JSON and markdown."""
    parser = argparse.ArgumentParser(prog="python -m vtc.eval.train.real.figures", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; a .md file goes beside it")
    parser.add_argument("--every", type=int, default=1, help="ask about every so many-th picture only")
    options = parser.parse_args()
    rows = measure(bundled_model_path("bundled-real"), bundled_data(), options.every)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(as_markdown(rows))
    print(as_markdown(rows))


if __name__ == "__main__":
    main()
