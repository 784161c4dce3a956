"""TokenFLEX on the bundled model: ``OMP_NUM_THREADS=1 python benchmarks/trained/tokenflex.py --out DIR``.

Every cell is a training from the bundled weights with equal steps and the same pictures and questions, or none; all
answer the whole bundled evaluation set at every count. A killed run goes on. ``--only`` does some cells, so that
several processes can share the work; ``--table`` writes the tables of what is there, ``--page`` into docs/trained.md
too, with the logs of the trainings beside this file.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import packed as work
import torch
from pictures import Evaluation, TrainingPictures, evaluation
from shared_cells import Place, accuracy, gap, keep_scores, parser_of, tell, to_do
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtc
from vtc.bundled_files import bundled_model_path
from vtc.config import CONFIG_NAME
from vtc.eval.files.atomic import write_atomic
from vtc.eval.statistics.paired import Questions
from vtc.eval.train.language.language_stage import answer_logits
from vtc.eval.train.language.pack_questions import PackedQuestions
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.tokenflex import FlexProjector, pooling
from vtc.pruners.trained.compressor import SHIPPED
from vtc.pruners.trained.network_file import network_bytes, read_network

COUNTS = (16, 36, 64, 144, 256)
TABLES = Place("<!-- tokenflex tables -->", "<!-- /tokenflex tables -->", "*.jsonl")
FIRST = (64, 16, 256, 36, 144)  # the order in which counts are answered
PATCHES, SIDE, WIDTH = 576, 24, 192
RATE, LM_RATE = 1e-3, 4e-4
PAPER = ((64, 0.2), (144, 0.3), (256, 0.5))
SMALL = ((16, 0.2), (36, 0.3), (64, 0.5))


@dataclass(frozen=True)
class Cell:
    """A training: the counts that are drawn with their shares, and whether the module is there."""

    counts: tuple[tuple[int, float], ...] = PAPER
    module: bool = True


CELLS = {
    "flexible 16-64": Cell(SMALL),
    "pool + lm 16-64": Cell(SMALL, module=False),
    "fixed 16": Cell(((16, 1.0),)),
    "fixed 36": Cell(((36, 1.0),)),
    "fixed 64": Cell(((64, 1.0),)),
    "flexible": Cell(),
    "pool + lm": Cell(module=False),
    "fixed 256": Cell(((256, 1.0),)),
}
UNTRAINED = "pool"


class Compressor:
    """The method on the tower's features, as ``tokenflex`` computes it inside the model."""

    def __init__(self, model: nn.Module, network: nn.Module | None):
        self.model, self.network = model, network
        layout = Layout(((Grid(SIDE, SIDE)),))
        found = {k: pooling(layout, PATCHES, k) for k in COUNTS}
        self.pool = {k: (torch.from_numpy(w).float(), torch.from_numpy(at)) for k, (w, at) in found.items()}

    def says(self, features: Tensor, packed: PackedQuestions, k: int) -> Tensor:
        """What the model says of pictures at `k` tokens, see ``packed.Says``."""
        return answer_logits(self.model, *self(features, k), packed)

    def __call__(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Tokens `[B, k, D]` of features `[B, 576, D]`, and their places `[k]`."""
        weights, places = self.pool[k]
        found = weights.to(features.dtype) @ self.model.model.multi_modal_projector(features)
        if self.network is not None:
            found = found + self.network((weights.to(features.dtype) @ features).float())
        return found, places


def named(cell: str) -> str:
    """A cell with its seed in the name of a file."""
    return cell.replace(" + ", "-and-").replace(" ", "-").replace(":", "-")


def count_at(cell: Cell, seed: int, step: int) -> int:
    """The count of one step."""
    drawn = random.Random(f"trained-study/{seed}/{step}/count")
    return drawn.choices([k for k, _ in cell.counts], [share for _, share in cell.counts])[0]


def load() -> nn.Module:
    """The bundled model."""
    model: nn.Module = AutoModelForImageTextToText.from_pretrained(bundled_model_path(), dtype=torch.float32)
    return model.requires_grad_(False).eval()


def trained(folder: Path, one: str, steps: int, pictures: TrainingPictures) -> Compressor:
    """The compressor of a cell with its seed, with its model; its folder is saved as ``vtc train`` would."""
    name, _, number = one.rpartition(":")
    cell, model, run, seed = CELLS[name], load(), named(one), int(number)
    torch.manual_seed(seed)
    network = FlexProjector(WIDTH, WIDTH, WIDTH) if cell.module else None
    compressor = Compressor(model, network)
    parts = {"lm": model.model.language_model, "head": model.lm_head, "projector": model.model.multi_modal_projector}
    parts |= {"network": network} if network is not None else {}
    fresh = [*parts["projector"].parameters(), *(network.parameters() if network is not None else ())]
    language = [*parts["lm"].parameters(), *parts["head"].parameters()]
    for weight in (*fresh, *language):
        weight.requires_grad_(True)
    parts["optimizer"] = work.Descent([(fresh, RATE), (language, LM_RATE)], steps)
    work.train(
        folder, run, steps, parts, lambda x, packed, step: compressor.says(x, packed, count_at(cell, seed, step)),
        lambda step: pictures.step(seed, step),
    )  # fmt: skip
    save(model, network, folder / run, {"study": name, "seed": str(seed), "steps": str(steps)})
    return compressor


def save(model: nn.Module, network: nn.Module | None, folder: Path, about: dict[str, str]) -> None:
    """The stock folder with the method and its network beside it."""
    with vtc.compressed(model, "tokenflex", keep=64, weights="untrained"):
        if network is not None:
            pruner = model.vtc.pipeline[0]
            pruner.use(network, {"source": WIDTH, "width": WIDTH, "hidden": WIDTH})
            pruner.about = about
        model.save_pretrained(folder)
    AutoProcessor.from_pretrained(bundled_model_path()).save_pretrained(folder)


def ship(folder: Path, run: str) -> None:
    """Put a trained cell among what comes with vtc, in bfloat16: a stock folder, and the network beside the methods."""
    model = AutoModelForImageTextToText.from_pretrained(folder / run, dtype=torch.bfloat16)
    place = bundled_model_path().parent / "tokenflex"
    model.save_pretrained(place)
    AutoProcessor.from_pretrained(folder / run).save_pretrained(place)
    config = json.loads((folder / run / CONFIG_NAME).read_text())
    write_atomic(place / CONFIG_NAME, json.dumps(config | {"params": {}}, indent=2) + "\n")
    (place / "model.safetensors").chmod(0o644)
    file = read_network(str(folder / run), "tokenflex")
    right = {k: json.loads((folder / f"{run}-at-{k}.json").read_text()).values() for k in COUNTS}
    figures = {k: f"{100 * sum(some) / len(some):.1f}" for k, some in right.items()}
    about = {**file.about, "model": "bundled-tokenflex", "percent answered at": json.dumps(figures)}
    (SHIPPED / "tokenflex-bundled.safetensors").write_bytes(network_bytes("tokenflex", file.weights, file.sizes, about))


def answer(folder: Path, run: str, compressor: Compressor, asked: Evaluation) -> None:
    """Answer the evaluation set at every count; what is there is not redone."""
    for k in FIRST:
        file = folder / f"{run}-at-{k}.json"
        if not file.exists():
            scores = work.answered(asked, lambda x, packed, _, k=k: compressor.says(x, packed, k))
            keep_scores(file, f"{run} at {k}", scores)


def table(folder: Path, asked: Evaluation) -> str:
    """Accuracies at every count, and differences to untrained pooling and to the control, with intervals."""
    judge = Questions(asked.image_of, asked.task_of)
    names = [UNTRAINED, *CELLS]
    runs = {
        (name, k): [json.loads(f.read_text()) for f in sorted(folder.glob(f"{named(name)}-[0-9]-at-{k}.json"))]
        for name in names
        for k in COUNTS
    }
    lines = []
    for reference in (None, *(name for name in (UNTRAINED, "pool + lm 16-64", "pool + lm") if runs[name, COUNTS[0]])):
        title = "accuracy" if reference is None else f"against {reference}, points [95%]"
        lines += ["", f"| {title} | seeds | " + " | ".join(map(str, COUNTS)) + " |", "|---" * (len(COUNTS) + 2) + "|"]
        for name in names:
            if name == reference or not runs[name, COUNTS[0]]:
                continue
            texts = []
            for k in COUNTS:
                ours, theirs = runs[name, k], runs.get((reference, k))
                if reference is None and ours:
                    texts.append(accuracy(judge, ours))
                elif ours and theirs:
                    texts.append(gap(judge, ours, theirs))
                else:
                    texts.append("")
            lines.append(f"| {name} | {len(runs[name, COUNTS[0]])} | " + " | ".join(texts) + " |")
    return "\n".join(lines[1:]) + "\n"


def main() -> None:
    """Train, answer, write the tables."""
    parser = parser_of(__doc__ or "", 220)
    parser.add_argument("--ship", metavar="RUN", help="a trained cell's folder under --out, for what comes with vtc")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.ship:
        ship(options.out, options.ship)
        return
    stock = load()
    asked = evaluation(stock, options.out)
    if not (options.table or options.page):
        every = [f"{UNTRAINED}:0", *(f"{name}:{seed}" for seed in range(options.seeds) for name in CELLS)]
        pictures = TrainingPictures(stock, options.out)
        for one, file in to_do(options.out, options.only or every, named):
            untrained = one == f"{UNTRAINED}:0"
            compressor = Compressor(stock, None) if untrained else trained(options.out, one, options.steps, pictures)
            answer(options.out, file.stem, compressor, asked)
    tell(options, table(options.out, asked), TABLES)


if __name__ == "__main__":
    main()
