"""Stage 2: the projector is aligned, then it and the language model learn to answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, LlavaForConditionalGeneration

from vtc.eval.train.basics import attention
from vtc.eval.train.basics.images import TrainingImage, draw_scene, training_rng
from vtc.eval.train.basics.loop import Place, rate_factor, run_steps
from vtc.eval.train.basics.optimizer import MixedOptimizer
from vtc.eval.train.basics.recipe import Recipe
from vtc.eval.train.scenes.vocabulary import build_tokenizer
from vtc.eval.train.vision.tower import encode, to_patches

from .llava import bare_tower, build_llava
from .pack_questions import BUNDLED, NO_TARGET, PackedQuestions, Wording, pack
from .packed_llama import Watcher, run_packed
from .projector_alignment import Alignment, start_projector
from .question_batches import accuracies, answer_weights, choose_tokens, draw_batch


def train_language(recipe: Recipe, place: Place, clip: CLIPModel) -> LlavaForConditionalGeneration:
    """Train the projector and the language model around a frozen tower.

    Parameters
    ----------
    recipe : Recipe
        The whole recipe.
    place : Place
        Where the run lives.
    clip : CLIPModel
        The result of stage 1.
    """
    torch.manual_seed(recipe.seed + 1)
    attention.register()
    model = build_llava(recipe.language, clip, build_tokenizer().get_vocab_size())
    model.model.vision_tower.set_attn_implementation(attention.NAME)
    alignment = Alignment()
    align_projector(recipe, place, model, alignment)
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in model.model.language_model.layers.parameters() if p.ndim == 2]
    sizes = recipe.language
    optimizer = MixedOptimizer(trained, matrices, sizes.learning_rate, sizes.matrix_learning_rate, place.ranks)

    def train_step(step: int) -> dict[str, float]:
        rng = training_rng(recipe.seed, "language", step, place.ranks.index)
        images, asked = draw_batch(recipe, step, rng)
        features = tower_features(model, images)
        kept = choose_tokens(step, rng)
        with torch.autocast("cpu", torch.bfloat16):
            projected = model.model.multi_modal_projector(features)
            packed = pack(asked)
            logits = answer_logits(model, projected[:, kept], kept, packed)
        wanted = packed.targets[packed.targets != NO_TARGET]
        losses = F.cross_entropy(logits.float(), wanted, reduction="none")
        weights = answer_weights(packed, asked)[packed.targets != NO_TARGET]
        loss = (losses * weights).sum() / weights.sum()
        targets = alignment.targets([image.labels for image in images])
        embedding = model.model.language_model.embed_tokens.weight
        extra, figures = alignment(projected.flatten(0, 1), embedding, targets)
        factor = rate_factor(step, sizes.steps, sizes.warmup, sizes.hold)
        optimizer.step(loss + sizes.align_weight * extra, factor)
        scores = accuracies(packed, logits, asked)
        return {"loss": loss.item(), "position_r2": figures["position_r2"], **scores}

    run_steps(place, "language", sizes.steps, train_step, {"model": model, "optimizer": optimizer})
    return model


def align_projector(recipe: Recipe, place: Place, model: LlavaForConditionalGeneration, alignment: Alignment) -> None:
    """Train the projector alone on the alignment losses, on the features of a few images."""
    projector = model.model.multi_modal_projector
    path = place.folder / "align.pt"
    if path.exists():
        stored = torch.load(path, weights_only=True)
        if stored["step"] == recipe.align.steps:
            projector.load_state_dict(stored["parts"]["projector"])
            return
    rng = training_rng(recipe.seed, "align", 0, place.ranks.index)
    images = [draw_scene(rng, recipe.align.density) for _ in range(recipe.align.images)]
    groups = [images[i : i + 4] for i in range(0, len(images), 4)]
    features = torch.cat([tower_features(model, group).flatten(0, 1) for group in groups]).float()
    targets = alignment.targets([image.labels for image in images])
    start_projector(projector, features)
    if place.ranks.count > 1:
        _share(place, projector)
    optimizer = MixedOptimizer(list(projector.parameters()), [], recipe.align.learning_rate, 0.0, place.ranks)
    embedding = model.model.language_model.embed_tokens.weight.detach()

    def train_step(step: int) -> dict[str, float]:
        source = np.random.default_rng([recipe.seed, step, place.ranks.index])
        rows = torch.from_numpy(source.integers(0, len(features), recipe.align.tokens_per_step))
        chosen = {name: target[rows] for name, target in targets.items()}
        loss, figures = alignment(projector(features[rows]), embedding, chosen)
        optimizer.step(loss, rate_factor(step, recipe.align.steps, warmup=20))
        return {"loss": loss.item(), **figures}

    parts = {"projector": projector, "optimizer": optimizer}
    run_steps(place, "align", recipe.align.steps, train_step, parts)


def tower_features(model: LlavaForConditionalGeneration, images: Sequence[TrainingImage]) -> Tensor:
    """Return the penultimate features of the frozen tower, without the class token."""
    patches = to_patches(np.stack([image.pixels for image in images]))
    tower = bare_tower(model)
    layers = len(tower.encoder.layers) - 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return encode(tower, patches, layers)[:, 1:]


def answer_logits(
    model: LlavaForConditionalGeneration,
    projected: Tensor,
    kept: Tensor,
    packed: PackedQuestions,
    wording: Wording = BUNDLED,
    compiled: bool = False,
    watcher: Watcher | None = None,
) -> Tensor:
    """Return the logits at every position that has a target.

    Parameters
    ----------
    model : LlavaForConditionalGeneration
        The model.
    projected : Tensor
        Projected tokens [batch, kept, width].
    kept : Tensor
        Their indices among the image's, which give their positions.
    packed : PackedQuestions
        The questions.
    wording : Wording
        What they were packed with.
    compiled, watcher
        As :func:`run_packed` takes them.
    """
    language = model.model.language_model
    batch = projected.shape[0]
    words = language.embed_tokens(torch.tensor([wording.prefix] * batch))
    prefix = torch.cat([words, projected.to(words.dtype)], dim=1)
    before = len(wording.prefix)
    positions = torch.cat([torch.arange(before), kept + before]).expand(batch, -1)
    text = language.embed_tokens(packed.tokens)
    hidden = run_packed(language, prefix, positions, text, packed.positions, packed.bias, compiled, watcher)
    return model.lm_head(hidden[packed.targets != NO_TARGET])


def _share(place: Place, projector: torch.nn.Module) -> None:
    """Give all ranks the first rank's projector."""
    with torch.no_grad():
        for parameter in projector.parameters():
            if not place.ranks.is_first:
                parameter.zero_()
            place.ranks.sum_(parameter)
