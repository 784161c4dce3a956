"""The figures of the bundled model: unpruned, blind, and with simple token selectors.

``python -m vtc.eval.train.bundled_model_figures --model DIR --data DIR --out FILE``
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from vtc.eval.train.language.language_stage import answer_logits
from vtc.eval.train.language.pack_questions import BUNDLED, NO_TARGET, Wording, pack
from vtc.eval.train.scenes.build_evaluation_set import QUESTIONS_FILE, prior_accuracy

from .evaluation_set import Encoded, encode_samples, load_model, load_samples

KEEPS = (0.5, 0.25, 0.11, 0.05)
NUM_TOKENS = 576
Row = dict[str, object]


def select_random(image: Encoded, count: int, rng: np.random.Generator) -> Tensor:
    """Keep tokens drawn uniformly."""
    return torch.from_numpy(np.sort(rng.permutation(NUM_TOKENS)[:count]))


def select_uniform(image: Encoded, count: int, rng: np.random.Generator) -> Tensor:
    """Keep evenly spaced tokens in raster order."""
    return ((torch.arange(count) + 0.5) * NUM_TOKENS / count).long()


def select_cls(image: Encoded, count: int, rng: np.random.Generator) -> Tensor:
    """Keep the tokens that the class token attends to most."""
    return image.attention.topk(count).indices.sort().values


def select_farthest(image: Encoded, count: int, rng: np.random.Generator) -> Tensor:
    """Keep tokens by farthest-point sampling under cosine distance."""
    unit = F.normalize(image.projected, dim=-1)
    chosen = [int((unit @ unit.mean(dim=0)).argmin())]
    nearest = 1 - unit @ unit[chosen[0]]
    for _ in range(count - 1):
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, 1 - unit @ unit[chosen[-1]])
        nearest[chosen] = -1.0
    return torch.tensor(sorted(chosen))


SELECTORS: dict[str, Callable[[Encoded, int, np.random.Generator], Tensor]] = {
    "random": select_random,
    "uniform": select_uniform,
    "cls": select_cls,
    "farthest": select_farthest,
}


@torch.no_grad()
def accuracy(
    model: LlavaForConditionalGeneration,
    images: Sequence[Encoded],
    selector: str,
    keep: float,
    seed: int = 0,
) -> Row:
    """Return the accuracy (%) per task when only some tokens are kept, at original positions.

    An answer is right if every token of it and the end token is the most likely one given the
    ones before, which is when greedy decoding gives exactly this answer.

    Parameters
    ----------
    model : LlavaForConditionalGeneration
        The model.
    images : sequence of Encoded
        Encoded evaluation images.
    selector : str
        A name of :data:`SELECTORS`; ``"none"`` keeps every token and ``"blind"`` no token.
    keep : float
        Share of the 576 tokens to keep.
    seed : int
        Seed of random selectors.
    """
    rng = np.random.default_rng(seed)
    count = round(NUM_TOKENS * keep)
    hits: dict[str, list[bool]] = defaultdict(list)
    for image in images:
        chosen = SELECTORS.get(selector)
        kept = chosen(image, count, rng) if chosen else torch.arange(count)
        for question, right in zip(image.questions, answers_right(model, image, kept), strict=True):
            hits[question.task].append(right)
    row: Row = {"selector": selector, "keep": keep, "tokens": count}
    scores = {task: 100 * sum(h) / len(h) for task, h in hits.items()}
    row["mean"] = round(sum(scores.values()) / len(scores), 1)
    row.update({task: round(score, 1) for task, score in scores.items()})
    return row


@torch.no_grad()
def answers_right(
    model: LlavaForConditionalGeneration, image: Encoded, kept: Tensor, wording: Wording = BUNDLED
) -> list[bool]:
    """Say for each question of an image whether it is answered exactly."""
    packed = pack([image.questions], wording)
    logits = answer_logits(model, image.projected[kept][None], kept, packed, wording)
    known = packed.targets[0] != NO_TARGET
    right = torch.zeros(known.shape, dtype=torch.bool)
    right[known] = logits.argmax(dim=-1) == packed.targets[0][known]
    return [bool(right[start:end].all()) for start, end in packed.spans[0]]


def evaluate(model_folder: Path, data_folder: Path, jobs: int = 1) -> list[Row]:
    """Return one row per selector and share of tokens kept.

    Parameters
    ----------
    model_folder, data_folder : Path
        The model and the evaluation set.
    jobs : int
        Number of single-threaded processes to spread the rows over.
    """
    prior = prior_accuracy(pq.read_table(data_folder / QUESTIONS_FILE).to_pylist())
    mean = round(sum(prior.values()) / len(prior), 1)
    rows: list[Row] = [{"selector": "prior", "keep": 0.0, "tokens": 0, "mean": mean, **prior}]
    cells = [("none", 1.0), ("blind", 0.0)]
    cells += [(selector, keep) for keep in KEEPS for selector in SELECTORS]
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, _load, (model_folder, data_folder)) as pool:
        rows += track(pool.imap(_score, cells, chunksize=1), total=len(cells), description="score")
    return rows


_LOADED: dict[str, Any] = {}


def _load(model_folder: Path, data_folder: Path) -> None:
    """Load the model and encode all images, once per process."""
    torch.set_num_threads(1)
    model = load_model(model_folder)
    _LOADED["model"] = model
    _LOADED["images"] = encode_samples(model, model_folder, load_samples(data_folder))


def _score(cell: tuple[str, float]) -> Row:
    return accuracy(_LOADED["model"], _LOADED["images"], *cell)


def as_markdown(rows: Sequence[Row]) -> str:
    """Format rows as a table."""
    columns = list(rows[-1])
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(str(row.get(column, "")) for column in columns) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the command line, evaluate and write JSON and markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; a .md file goes beside it")
    parser.add_argument("--jobs", type=int, default=1, help="processes to use")
    options = parser.parse_args()
    rows = evaluate(options.model, options.data, options.jobs)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(as_markdown(rows))
    print(as_markdown(rows))


if __name__ == "__main__":
    main()
