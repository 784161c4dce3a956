"""The projector learns words for patches, then it and the matrices of low rank learn to answer."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vtc.eval.train.basics.images import training_rng
from vtc.eval.train.basics.loop import Place, rate_factor, run_steps
from vtc.eval.train.basics.optimizer import MixedOptimizer
from vtc.eval.train.language.language_stage import answer_logits
from vtc.eval.train.language.pack_questions import NO_TARGET, Wording, pack
from vtc.eval.train.language.question_batches import accuracies, answer_weights, choose_tokens
from vtc.real.assemble import build_model, build_processor

from .asking import wording_of
from .low_rank import LowRankLinear, add_low_rank, load_adapter
from .pictures import WHOLE, Box, FeatureStore, draw
from .recipe import RealRecipe
from .where_to_look import WhereToLook
from .words_of_patches import WordsOfPatches, start_projector


@dataclass
class Student:
    """The model with what is trained of it, and what it reads.

    Attributes
    ----------
    model, processor
        The stock model, its language model's matrices wrapped; the stock processor.
    added : dict of str to LowRankLinear
        The wrapped matrices by name.
    words : WordsOfPatches
        What projected tokens should say.
    wording : Wording
        How it is asked.
    """

    model: Any
    processor: Any
    added: dict[str, LowRankLinear]
    words: WordsOfPatches
    wording: Wording

    @property
    def projector(self) -> Any:
        """The stock two-layer projector."""
        return self.model.model.multi_modal_projector

    @property
    def grid(self) -> int:
        """Patches along a side of a picture."""
        return round(self.wording.patches**0.5)

    def trained(self) -> list[nn.Parameter]:
        """All trained parameters."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def parts(self) -> nn.ModuleDict:
        """What a checkpoint holds: none of the frozen weights."""
        lists = nn.ParameterList([p for module in self.added.values() for p in (module.down, module.up)])
        return nn.ModuleDict({"projector": self.projector, "low_rank": lists})

    @torch.no_grad()
    def encode(self, picture: Image.Image) -> Tensor:
        """The tower's features of the layers that the projector reads, side by side: ``[patches, width]``."""
        pixels = self.processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
        with torch.autocast("cpu", torch.bfloat16):
            states = self.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        return torch.cat([states[layer][0, 1:].float() for layer in self.model.config.vision_feature_layer], dim=-1)


def build_student(recipe: RealRecipe) -> Student:
    """The model before its training."""
    torch.manual_seed(recipe.seed)
    model, processor = build_model(), build_processor()
    model.requires_grad_(False)
    words = WordsOfPatches(processor.tokenizer, model.get_input_embeddings().weight)
    model.model.multi_modal_projector.requires_grad_(True)
    added = add_low_rank(model.model.language_model, recipe.rank)
    return Student(model, processor, added, words, wording_of(processor.tokenizer, model.config.image_seq_length))


def train_adapter(recipe: RealRecipe, place: Place, compiled: bool = False, start: Path | None = None) -> Student:
    """Run all parts; what is complete is read from its checkpoint.

    Parameters
    ----------
    recipe : RealRecipe
        The whole recipe.
    place : Place
        Where the run lives; it keeps the tower's features there too.
    compiled : bool
        Compile the language model's layers.
    start : Path, optional
        An adapter's file in the stead of all parts before the last.
    """
    student = build_student(recipe)
    shape = (recipe.scenes + recipe.easy, student.wording.patches, student.projector.linear_1.in_features)
    store = FeatureStore(place.folder / "features", shape, student.encode, lambda number: draw(recipe, number).open())
    if start is None:
        _align(recipe, place, student, store)
        _answer("real", recipe, place, student, store, compiled)
    else:
        load_adapter(student.projector, student.added, start)
    _answer("real-more", recipe.more(), place, student, store, compiled)
    return student


def _answer(part: str, recipe: RealRecipe, place: Place, student: Student, store: FeatureStore, compiled: bool) -> None:
    optimizer = MixedOptimizer(student.trained(), [], recipe.learning_rate, 0.0, place.ranks)

    def train_step(step: int) -> dict[str, float]:
        rng = training_rng(recipe.seed, part, step, 0)
        numbers = numbers_of(recipe, step)
        pictures = [draw(recipe, number) for number in numbers]
        scenes = pictures[0].scene is not None
        if scenes and step in range(*recipe.window_steps):
            kept, box = draw_window(rng, student.grid, recipe.window)
        else:
            kept, box = choose_tokens(step, rng, student.wording.patches), WHOLE
        asked = [picture.ask(rng, recipe.shares, box) for picture in pictures]
        packed = pack(asked, student.wording)
        features = store(numbers)[:, kept]
        seen, look = {}, None
        if scenes:
            labels = student.words.targets([picture.labels(student.grid) for picture in pictures])
            seen = {name: label.view(len(numbers), -1)[:, kept] for name, label in labels.items()}
            look = WhereToLook(packed, asked, student.wording, seen["letter"], student.model.config.text_config)
        with torch.autocast("cpu", torch.bfloat16):
            projected = student.projector(features)
            logits = answer_logits(student.model, projected, kept, packed, student.wording, compiled, look)
        known = packed.targets != NO_TARGET
        weights = answer_weights(packed, asked)[known]

        def answered(logits: Tensor) -> Tensor:
            losses = F.cross_entropy(logits.float(), packed.targets[known], reduction="none")
            return (losses * weights).sum() / weights.sum()

        loss = answered(logits)
        extra = looked = early = torch.zeros(())
        if look is not None:
            flat = {name: label.flatten() for name, label in seen.items()}
            extra, _ = student.words(projected.flatten(0, 1), flat)
            looked = look.loss()
            assert look.states is not None
            with torch.autocast("cpu", torch.bfloat16):
                early = answered(student.model.lm_head(student.model.model.language_model.norm(look.states[known])))
        whole = loss + recipe.align_weight * extra + recipe.look_weight * looked + recipe.early_weight * early
        optimizer.step(whole, rate_factor(step, recipe.steps, recipe.warmup))
        found = {"looked": looked, "early": early}
        figures = {"loss": loss.item()} | {name: x.item() if scenes else math.nan for name, x in found.items()}
        return figures | accuracies(packed, logits, asked)

    run_steps(place, part, recipe.steps, train_step, {"student": student.parts(), "optimizer": optimizer})


def numbers_of(recipe: RealRecipe, step: int) -> list[int]:
    """Which pictures a step shows: the scenes in order, round and round, and every few steps easy-VQA's."""
    easy_steps, every = step // recipe.easy_every, recipe.easy_every
    if step % every == every - 1:
        first = easy_steps * recipe.easy_per_step
        return [recipe.scenes + (first + i) % recipe.easy for i in range(recipe.easy_per_step)]
    begin, end = (min(step, bound) - min(step, bound) // every for bound in recipe.window_steps)  # steps with scenes
    of_windows = end - begin
    first = of_windows * recipe.windows_per_step + (step - easy_steps - of_windows) * recipe.scenes_per_step
    count = recipe.windows_per_step if step in range(*recipe.window_steps) else recipe.scenes_per_step
    return [(first + i) % recipe.scenes for i in range(count)]


def draw_window(rng: random.Random, grid: int, side: int) -> tuple[Tensor, Box]:
    """A square of `side` x `side` of the `grid` x `grid` patches, as their indices and as a part of the picture."""
    top, left = (rng.randint(0, grid - side) for _ in range(2))
    rows, columns = torch.arange(top, top + side), torch.arange(left, left + side)
    box = (left / grid, top / grid, (left + side) / grid, (top + side) / grid)
    return (rows[:, None] * grid + columns).flatten(), box


def _align(recipe: RealRecipe, place: Place, student: Student, store: FeatureStore) -> None:
    projector, words = student.projector, student.words
    numbers = [recipe.scenes - 1 - i for i in range(recipe.align_scenes)]
    features = store(numbers).flatten(0, 1)
    targets = words.targets([draw(recipe, number).labels(student.grid) for number in numbers])
    start_projector(projector, features[:: max(1, len(features) // 8192)], words.size)
    optimizer = MixedOptimizer(list(projector.parameters()), [], recipe.align_rate, 0.0, place.ranks)

    def train_step(step: int) -> dict[str, float]:
        source = np.random.default_rng([recipe.seed, step])
        rows = torch.from_numpy(source.integers(0, len(features), recipe.align_tokens))
        loss, figures = words(projector(features[rows]), {name: target[rows] for name, target in targets.items()})
        optimizer.step(loss, rate_factor(step, recipe.align_steps, warmup=min(20, recipe.align_steps)))
        return {"loss": loss.item(), **figures}

    run_steps(place, "real-align", recipe.align_steps, train_step, {"projector": projector, "optimizer": optimizer})
