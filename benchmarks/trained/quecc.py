"""QueCC on the bundled model: ``OMP_NUM_THREADS=1 python benchmarks/trained/quecc.py --out DIR``.

Windows of 6 x 6 and 24 x 24 patches (16 tokens and 1): the compressor with the question and without it, and average
pooling, each trained with projector and language model for as many steps on the same pictures and questions; and what
else was tried. A compressor begins with steps in which it learns to give what pooling gives behind the projector,
without the language model. All answer the whole bundled evaluation set. A killed run goes on. ``--only`` does some
cells, so that several processes can share the work; ``--table`` writes the table of what is there, ``--page`` into
docs/trained.md too, with the logs of the trainings beside this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import packed as work
import torch
from one_by_one import Shared, apart
from pictures import Evaluation, TrainingPictures, evaluation
from shared_cells import Place, accuracy, gap, keep_scores, parser_of, scores_of, tell, to_do
from torch import Tensor, nn
from torch.nn.functional import mse_loss, pad
from transformers import AutoModelForImageTextToText

from vtc.bundled_files import bundled_model_path
from vtc.eval.statistics.paired import Questions
from vtc.eval.train.language.language_stage import answer_logits
from vtc.eval.train.language.pack_questions import PackedQuestions
from vtc.eval.train.scenes.vocabulary import BOS_ID
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.quecc import QueryCompressor
from vtc.pruners.trained.windows import windows

TABLE = Place("<!-- quecc table -->", "<!-- /quecc table -->", "quecc-*.jsonl")
WIDTH, SIDE, HEADS, LM_RATE = 192, 24, 8, 4e-4
LEVELS = (4, 3, 4, 5, 5)  # layers before what the projector reads, and up to the method's four of the tower's five
PICTURES, ASKED, WARM = 3, 6, 300
SIDES = {16: 6, 1: 24}  # of a window, by the tokens that it gives


@dataclass(frozen=True)
class Cell:
    """Whether there is a compressor, whether it reads the question, and how it learns."""

    compressor: bool = True
    text: bool = True
    lm: bool = True
    warm: bool = True
    rate: float = 1e-3
    learns: bool = True


CELLS = {
    "pool, untrained": Cell(compressor=False, learns=False),
    "pool": Cell(compressor=False),
    "without the question": Cell(text=False),
    "with the question": Cell(),
    "with the question, rate 3e-4": Cell(rate=3e-4),
    "with the question, rate 3e-3": Cell(rate=3e-3),
    "with the question, no warm start": Cell(warm=False),
    "with the question, lm frozen": Cell(lm=False),
}
MAIN = ("pool", "without the question", "with the question")  # with all seeds


class Answers:
    """The model of a cell, and what it says of questions in rows of their own."""

    def __init__(self, cell: Cell, tokens: int):
        model: nn.Module = AutoModelForImageTextToText.from_pretrained(bundled_model_path(), dtype=torch.float32)
        self.model, self.cell = model.requires_grad_(False).eval(), cell
        side = SIDES[tokens]
        patches, centres = windows(Layout((Grid(SIDE, SIDE),)), side)
        self.patches, self.places = torch.from_numpy(patches), torch.from_numpy(centres)
        self.network = QueryCompressor(WIDTH, WIDTH, 4 * WIDTH, side, HEADS) if cell.compressor else None

    def tokens(self, shown: Shared, packed: PackedQuestions) -> Tensor:
        """What the language model is given, `[R, k, D]`."""
        if self.network is None:
            return self.pooled(shown)
        x, multi = shown.features.split((WIDTH, 4 * WIDTH), -1)
        seen = x[:, self.patches]  # [P, k, w, D]
        keys, values = self.network.key(multi)[:, self.patches], self.network.value(multi)[:, self.patches]
        rows = [y[shown.of].flatten(0, 1) for y in (seen, keys, values)]
        question = self.asked(packed).repeat_interleave(len(self.patches), 0) if self.cell.text else None
        there = torch.ones(rows[0].shape[:2], dtype=torch.bool)
        found = self.network.attend(*rows, question, there=there).unflatten(0, (-1, len(self.patches)))
        return self.project(found)

    def pooled(self, shown: Shared) -> Tensor:
        """The mean of each window behind the projector, as ``pool`` gives it, `[R, k, D]`."""
        return self.project(shown.features[..., :WIDTH])[:, self.patches].mean(2)[shown.of]

    def project(self, x: Tensor) -> Tensor:
        """See the model's projector."""
        found: Tensor = self.model.model.multi_modal_projector(x)
        return found

    @torch.no_grad()
    def asked(self, packed: PackedQuestions) -> Tensor:
        """What the language model makes of each question alone, `[R, D]`."""
        lengths = torch.tensor([spans[0][0] for spans in packed.spans])  # words before ASSISTANT
        ids = pad(packed.tokens[:, : int(lengths.max())], (1, 0), value=BOS_ID)
        hidden: Tensor = self.model.model.language_model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden[torch.arange(len(ids)), lengths]

    def says(self, shown: Any, packed: PackedQuestions, _: int) -> Tensor:
        """See ``packed.Says``."""
        return answer_logits(self.model, self.tokens(shown, packed), self.places, packed)

    def train(self, folder: Path, run: str, seed: int, steps: int, pictures: TrainingPictures) -> None:
        """Train what the cell says; a killed run goes on."""
        inner, cell = self.model.model, self.cell
        parts: dict[str, Any] = {"projector": inner.multi_modal_projector}
        parts |= {"network": self.network} if self.network is not None else {}
        fresh = [w for part in parts.values() for w in part.parameters()]
        if self.network is not None and cell.warm:
            self._warm(folder, run, seed, pictures)
        language = [*inner.language_model.parameters(), *self.model.lm_head.parameters()] if cell.lm else []
        parts |= {"lm": inner.language_model, "head": self.model.lm_head} if cell.lm else {}
        for weight in (*fresh, *language):
            weight.requires_grad_(True)
        groups = [(some, rate) for some, rate in ((fresh, cell.rate), (language, LM_RATE)) if some]
        parts["optimizer"] = work.Descent(groups, steps)
        work.train(folder, run, steps, parts, self.says, lambda step: apart(pictures.step(seed, step)))
        self.model.requires_grad_(False)

    def _warm(self, folder: Path, run: str, seed: int, pictures: TrainingPictures) -> None:
        """Let the compressor learn to give what pooling gives."""
        parts: dict[str, Any] = {"network": self.network}
        parts["optimizer"] = work.Descent([(parts["network"].parameters(), self.cell.rate)], WARM)

        def train_step(step: int) -> dict[str, float]:
            rows = apart(pictures.step(seed, step))
            shown, packed = rows.features.float(), work.pack(rows.questions)
            goal = self.pooled(shown)
            loss = mse_loss(self.tokens(shown, packed), goal)
            parts["optimizer"].step(loss, step)
            return {"loss": loss.item(), "of its variance": loss.item() / goal.var().item()}

        work.run(folder, f"{run}-warm", WARM, train_step, parts)


def named(cell: str) -> str:
    """A cell with its tokens and seed in the name of a file."""
    name, tokens, seed = cell.rsplit(":", 2)
    return f"quecc-{name.replace(',', '').replace(' ', '-')}-at-{tokens}-{seed}"


def table(folder: Path, asked: Evaluation) -> str:
    """Accuracies, and differences to the compressor without the question and to pooling, with intervals."""
    judge = Questions(asked.image_of, asked.task_of)
    runs = {(name, k): scores_of(folder, named(f"{name}:{k}:0")) for name in CELLS for k in SIDES}
    first = MAIN[:2]
    lines = [
        "| tokens | | seeds | accuracy | " + " | ".join(f"against {name}" for name in first) + " |",
        "|---" * 6 + "|",
    ]
    for (name, k), ours in runs.items():
        if ours:
            gaps = [gap(judge, ours, runs[f, k]) if f != name and runs[f, k] else "" for f in first]
            seeds = str(len(ours)) if CELLS[name].learns else ""
            lines.append(f"| {k} | {name} | {seeds} | {accuracy(judge, ours)} | " + " | ".join(gaps) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, answer, write the table."""
    options = parser_of(__doc__ or "", 400, "CELL:TOKENS:SEED").parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    stock = Answers(CELLS["pool"], 1).model
    asked = evaluation(stock, options.out, LEVELS)
    if not (options.table or options.page):
        seeds = {name: options.seeds if name in MAIN else 1 for name in CELLS}
        every = [f"{n}:{k}:{s}" for k in SIDES for s in range(options.seeds) for n in CELLS if s < seeds[n]]
        pictures = TrainingPictures(stock, options.out, PICTURES, ASKED, LEVELS)
        for one, file in to_do(options.out, options.only or every, named):
            name, tokens, seed = one.rsplit(":", 2)
            torch.manual_seed(int(seed))
            answers = Answers(CELLS[name], int(tokens))
            if CELLS[name].learns:
                answers.train(options.out, file.stem, int(seed), options.steps, pictures)
            keep_scores(file, one, work.answered(apart(asked), answers.says, at_once=48))
    tell(options, table(options.out, asked), TABLE)


if __name__ == "__main__":
    main()
