"""FocusLLaVA on the bundled model: ``OMP_NUM_THREADS=1 python benchmarks/trained/focusllava.py --out DIR``.

Every cell is a method at one count, as it comes or trained from the bundled weights, trainings with equal steps and the
same pictures and questions; all answer the whole bundled evaluation set. Cells of one group see as many visual tokens
in every decoder layer. A killed run goes on. ``--only`` does some cells, so that several processes can share the work;
``--table`` writes the table of what is there, ``--page`` into docs/trained.md too, with the logs of the trainings
beside this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asked_alone as work
import torch
from packed import Descent
from pictures import Evaluation, TrainingPictures, evaluation
from shared_cells import Place, accuracy, gap, keep_scores, parser_of, scores_of, tell, to_do
from torch import nn
from transformers import AutoModelForImageTextToText

import vtc
from vtc.bundled_files import bundled_model_path
from vtc.eval.statistics.paired import Questions
from vtc.pruners.base import Pruner
from vtc.pruners.focusllava import HIDDEN, RANK, FocusSamplers

TABLE = Place("<!-- focusllava table -->", "<!-- /focusllava table -->", "focus-*.jsonl")
RATE, LM_RATE, WIDTH = 1e-3, 4e-4, 192
SIZES = {"width": WIDTH, "hidden": HIDDEN, "rank": RANK}
PICTURES, ASKED = 2, 12  # of a step, and questions of a picture
PLAIN, BOTH = "pool(keep=128) + fastv(layer=2, keep=64)", {"keep": 64}
EYES, WORDS = {"keep": 80, "text": False}, {"keep": 64, "vision": False}


@dataclass(frozen=True)
class Cell:
    """A method with its parameters, its group, and what learns: the samplers, projector and language model, or both."""

    group: str
    pruner: str
    params: dict[str, Any] = field(default_factory=dict)
    samplers: bool = False
    lm: bool = False

    @property
    def learns(self) -> bool:
        """Whether anything does."""
        return self.samplers or self.lm


FOCUS = "focusllava"
CELLS = {
    "pool + fastv": Cell("both", PLAIN),
    "both samplers, untrained": Cell("both", FOCUS, BOTH),
    "both samplers": Cell("both", FOCUS, BOTH, samplers=True, lm=True),
    "both samplers, lm frozen": Cell("both", FOCUS, BOTH, samplers=True),
    "pool + fastv, lm trained": Cell("both", PLAIN, lm=True),
    "both samplers, untrained, lm trained": Cell("both", FOCUS, BOTH, lm=True),
    "pool": Cell("vision", "pool", {"keep": 80}),
    "vision alone, untrained": Cell("vision", FOCUS, EYES),
    "vision alone, lm frozen": Cell("vision", FOCUS, EYES, samplers=True),
    "fastv": Cell("text", "fastv", {"keep": 64}),
    "text alone, lm frozen": Cell("text", FOCUS, WORDS, samplers=True),
}
ORDER = ("both samplers, lm frozen", "pool + fastv", "both samplers, untrained", "both samplers",
         "pool + fastv, lm trained", "vision alone, lm frozen", "pool", "vision alone, untrained",
         "text alone, lm frozen", "fastv", "both samplers, untrained, lm trained")  # fmt: skip
FIRST = {"both": "pool + fastv", "vision": "pool", "text": "fastv"}  # what a group is compared with
TOKENS = {"both": "128, then 64", "vision": "80", "text": "576, then 64"}  # before layers 0 and 1, and 2 to 7


def named(cell: str) -> str:
    """A cell with its seed in the name of a file."""
    return f"focus-{cell.replace(' + ', '-and-').replace(',', '').replace(' ', '-').replace(':', '-')}"


def load() -> nn.Module:
    """The bundled model, whose tower gives back what it is given."""
    model: nn.Module = AutoModelForImageTextToText.from_pretrained(bundled_model_path(), dtype=torch.float32)
    work.given_features(model)
    return model.requires_grad_(False).eval()


def wrapped(cell: Cell) -> tuple[nn.Module, nn.Module | None]:
    """The model under a cell's method, and the samplers that it works with, if it has any."""
    model = load()
    if cell.pruner != FOCUS:
        vtc.compress(model, cell.pruner, **cell.params)
        return model, None
    network = FocusSamplers(**SIZES)
    [pruner] = vtc.parse(FOCUS, weights="untrained", **cell.params)
    assert isinstance(pruner, Pruner)
    pruner.use(network.requires_grad_(False), SIZES)
    vtc.compress(model, pruner)
    return model, network


def ready(folder: Path, name: str, seed: int, steps: int, pictures: TrainingPictures | None) -> nn.Module:
    """The wrapped model of a cell, trained where it learns."""
    cell = CELLS[name]
    torch.manual_seed(seed)
    model, network = wrapped(cell)
    if not cell.learns:
        return model
    assert pictures is not None
    parts: dict[str, Any] = {}
    fresh, language = [], []
    if cell.samplers and network is not None:
        parts["network"] = network
        fresh += network.parameters()
    if cell.lm:
        inner = model.model
        parts |= {"lm": inner.language_model, "head": model.lm_head, "projector": inner.multi_modal_projector}
        fresh += inner.multi_modal_projector.parameters()
        language += [*inner.language_model.parameters(), *model.lm_head.parameters()]
    for weight in (*fresh, *language):
        weight.requires_grad_(True)
    groups = [(some, rate) for some, rate in ((fresh, RATE), (language, LM_RATE)) if some]
    parts["optimizer"] = Descent(groups, steps)
    work.train(folder, named(f"{name}:{seed}"), steps, model, parts, lambda step: pictures.step(seed, step))
    return model.requires_grad_(False)


def table(folder: Path, asked: Evaluation) -> str:
    """Accuracies and differences to the first of each group, with intervals."""
    judge = Questions(asked.image_of, asked.task_of)
    runs = {name: scores_of(folder, named(f"{name}:0")) for name in CELLS}
    lines = ["| tokens | | learns | seeds | accuracy | against the first, points [95%] |", "|---" * 6 + "|"]
    for name, cell in CELLS.items():
        ours, theirs = runs[name], runs[FIRST[cell.group]]
        if not ours:
            continue
        against = gap(judge, ours, theirs) if name != FIRST[cell.group] and theirs else ""
        learns = ", ".join(["samplers"] * cell.samplers + ["projector, language model"] * cell.lm) or "nothing"
        seeds = len(ours) if cell.learns else ""
        mean = accuracy(judge, ours)
        lines.append(f"| {TOKENS[cell.group]} | {name} | {learns} | {seeds} | {mean} | {against} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, answer, write the table."""
    options = parser_of(__doc__ or "", 160).parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    stock = AutoModelForImageTextToText.from_pretrained(bundled_model_path(), dtype=torch.float32).eval()
    asked = evaluation(stock, options.out)
    if not (options.table or options.page):
        every = [f"{name}:{s}" for s in range(options.seeds) for name in ORDER if s == 0 or CELLS[name].learns]
        pictures = TrainingPictures(stock, options.out, PICTURES, ASKED)
        for one, file in to_do(options.out, options.only or every, named):
            name, seed = one.rsplit(":", 1)
            model = ready(options.out, name, int(seed), options.steps, pictures)
            keep_scores(file, one, work.answered(model, asked))
    tell(options, table(options.out, asked), TABLE)


if __name__ == "__main__":
    main()
