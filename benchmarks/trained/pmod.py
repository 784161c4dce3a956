"""p-MoD on the bundled model: ``OMP_NUM_THREADS=1 python benchmarks/trained/pmod.py --out DIR``.

The model as it is and fine-tuned, and the same under p-MoD's routers and under ``uniform`` at as many visual tokens on
average over the layers. Trainings have equal steps, pictures and questions; all answer the whole bundled evaluation
set. A killed run goes on. ``--only`` does some cells, so that several processes can share the work; ``--table`` writes
the table of what is there, ``--page`` into docs/trained.md too, with the logs of the trainings beside this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import packed as work
import packed_loans
import torch
from pictures import Evaluation, TrainingPictures, evaluation
from shared_cells import Place, accuracy, gap, keep_scores, parser_of, scores_of, tell, to_do
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from vtc.bundled_files import bundled_model_path
from vtc.eval.statistics.paired import Questions
from vtc.eval.train.language.language_stage import answer_logits
from vtc.eval.train.language.pack_questions import PackedQuestions
from vtc.pruners.pmod import PModRouters

TABLE = Place("<!-- pmod table -->", "<!-- /pmod table -->", "pmod-*.jsonl")
PATCHES, RATE, LM_RATE = 576, 1e-3, 4e-4
ALL, LOANS, SPREAD = "all tokens", "p-MoD", "uniform"


@dataclass(frozen=True)
class Cell:
    """Which visual tokens the layers process, and what learns: routers, projector and language model, or both."""

    tokens: str
    routers: bool = False
    lm: bool = False

    @property
    def learns(self) -> bool:
        """Whether anything does."""
        return self.routers or self.lm


CELLS = {
    "dense, trained": Cell(ALL, lm=True),
    "dense": Cell(ALL),
    "p-MoD, trained": Cell(LOANS, routers=True, lm=True),
    "p-MoD, routers untrained, lm trained": Cell(LOANS, lm=True),
    "p-MoD, untrained": Cell(LOANS),
    "uniform, trained": Cell(SPREAD, lm=True),
    "uniform": Cell(SPREAD),
}
FIRST = "dense, trained"


class Answers:
    """The model of a cell, and what it says of packed questions."""

    def __init__(self, cell: Cell):
        model: nn.Module = AutoModelForImageTextToText.from_pretrained(bundled_model_path(), dtype=torch.float32)
        self.model, self.cell = model.requires_grad_(False).eval(), cell
        config = model.config.text_config
        self.routers = PModRouters(config.hidden_size, config.num_hidden_layers).requires_grad_(cell.routers)
        depth = config.num_hidden_layers
        self.counts = packed_loans.counts_of(depth, PATCHES) if cell.tokens != ALL else [PATCHES] * depth
        mean = round(sum(self.counts) / depth)
        self.places = (torch.arange(mean) * PATCHES + PATCHES // 2) // mean  # the middle of equal parts

    def says(self, features: Tensor, packed: PackedQuestions, _: int) -> Tensor:
        """See ``packed.Says``."""
        projected = self.model.model.multi_modal_projector(features)
        if self.cell.tokens == LOANS:
            return packed_loans.answer_logits(self.model, projected, packed, self.routers)
        places = self.places if self.cell.tokens == SPREAD else torch.arange(PATCHES)
        return answer_logits(self.model, projected[:, places], places, packed)

    def train(self, folder: Path, run: str, seed: int, steps: int, pictures: TrainingPictures) -> None:
        """Train what the cell says; a killed run goes on."""
        inner, parts = self.model.model, {"routers": self.routers}
        fresh, language = [*self.routers.parameters()], []
        if self.cell.lm:
            parts |= {"lm": inner.language_model, "head": self.model.lm_head, "projector": inner.multi_modal_projector}
            fresh += inner.multi_modal_projector.parameters()
            language = [*inner.language_model.parameters(), *self.model.lm_head.parameters()]
            for weight in (*inner.multi_modal_projector.parameters(), *language):
                weight.requires_grad_(True)
        groups = [([w for w in some if w.requires_grad], rate) for some, rate in ((fresh, RATE), (language, LM_RATE))]
        whole: dict[str, Any] = {**parts, "optimizer": work.Descent([g for g in groups if g[0]], steps)}
        work.train(folder, run, steps, whole, self.says, lambda step: pictures.step(seed, step))
        self.model.requires_grad_(False)


def named(cell: str) -> str:
    """A cell with its seed in the name of a file."""
    return f"pmod-{cell.replace(',', '').replace(' ', '-').replace(':', '-')}"


def table(folder: Path, asked: Evaluation) -> str:
    """Accuracies and differences to the dense model trained as long, with intervals."""
    judge = Questions(asked.image_of, asked.task_of)
    runs = {name: scores_of(folder, named(f"{name}:0")) for name in CELLS}
    lines = [f"| | visual tokens a layer | seeds | accuracy | against {FIRST}, points [95%] |", "|---" * 5 + "|"]
    for name, cell in CELLS.items():
        if not runs[name]:
            continue
        counts = packed_loans.counts_of(8, PATCHES)
        mean = PATCHES if cell.tokens == ALL else sum(counts) / len(counts)
        against = gap(judge, runs[name], runs[FIRST]) if name != FIRST and runs[FIRST] else ""
        seeds = len(runs[name]) if cell.learns else ""
        lines.append(f"| {name} | {mean:.0f} | {seeds} | {accuracy(judge, runs[name])} | {against} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, answer, write the table."""
    options = parser_of(__doc__ or "", 600).parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    stock = Answers(CELLS["dense"]).model
    asked = evaluation(stock, options.out)
    if not (options.table or options.page):
        every = [f"{name}:{s}" for s in range(options.seeds) for name in CELLS if s == 0 or CELLS[name].learns]
        pictures = TrainingPictures(stock, options.out)
        for one, file in to_do(options.out, options.only or every, named):
            cell, seed = CELLS[one.rpartition(":")[0]], int(one.rpartition(":")[2])
            torch.manual_seed(seed)
            answers = Answers(cell)
            if cell.learns:
                answers.train(options.out, file.stem, seed, options.steps, pictures)
            keep_scores(file, one, work.answered(asked, answers.says))
    tell(options, table(options.out, asked), TABLE)


if __name__ == "__main__":
    main()
