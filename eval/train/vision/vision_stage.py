"""Stage 1: the CLIP tower learns from per-patch heads and from captions."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import CLIPModel

from vtc.eval.train.basics import attention
from vtc.eval.train.basics.images import TrainingImage, draw_easy, draw_scene, training_rng
from vtc.eval.train.basics.loop import Place, rate_factor, run_steps
from vtc.eval.train.basics.optimizer import MixedOptimizer
from vtc.eval.train.basics.recipe import Recipe
from vtc.eval.train.scenes.palette import ALL_COLORS, ALL_SHAPES, LETTERS
from vtc.eval.train.scenes.render import IGNORE
from vtc.eval.train.scenes.vocabulary import PAD_ID, build_tokenizer

from .heads import PatchHeads, stack_labels
from .tower import build_clip, encode, to_patches, whiten_patches

PHRASES = (*(f"{c} {s}" for c in ALL_COLORS for s in ALL_SHAPES), *LETTERS)
_CAPTION_WORDS = 8
_WHITENING_IMAGES = 24
_MAX_SCALE = 60.0


def train_vision(recipe: Recipe, place: Place) -> CLIPModel:
    """Train the tower and its text side, or load them where the stage is complete.

    Parameters
    ----------
    recipe : Recipe
        The whole recipe.
    place : Place
        Where the run lives.
    """
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    clip = build_clip(recipe.vision, tokenizer.get_vocab_size())
    whiten_patches(clip, to_patches(_first_images(recipe)))
    attention.register()
    clip.vision_model.set_attn_implementation(attention.NAME)
    heads = PatchHeads(recipe.vision.width)
    presence = nn.Parameter(torch.tensor([2.0, -6.0]))
    extra = nn.ParameterDict({"presence": presence})
    parameters = [*clip.parameters(), *heads.parameters(), presence]
    matrices = [p for p in clip.vision_model.encoder.layers.parameters() if p.ndim == 2]
    optimizer = MixedOptimizer(
        parameters,
        matrices,
        recipe.vision.learning_rate,
        recipe.vision.matrix_learning_rate,
        place.ranks,
    )

    def train_step(step: int) -> dict[str, float]:
        images, rng = _draw_images(recipe, step, place.ranks.index)
        patches = to_patches(np.stack([image.pixels for image in images]))
        contrast = step % recipe.vision.contrast_every == 0
        with torch.autocast("cpu", torch.bfloat16):
            hidden = encode(clip.vision_model, patches, recipe.vision.layers - 1)
            loss, figures = heads(hidden[:, 1:], patches, [image.labels for image in images])
            figures.update(phrase=float("nan"), caption=float("nan"))
            if contrast:
                extra_loss, found = _contrast(clip, tokenizer, hidden, images, presence, rng)
                loss = loss + extra_loss
                figures.update(found)
        factor = rate_factor(step, recipe.vision.steps, recipe.vision.warmup)
        optimizer.step(loss, factor)
        return {"loss": loss.item(), **figures}

    parts = {"clip": clip, "heads": heads, "extra": extra, "optimizer": optimizer}
    run_steps(place, "vision", recipe.vision.steps, train_step, parts)
    return clip


def _first_images(recipe: Recipe) -> np.ndarray:
    rng = training_rng(recipe.seed, "whitening", 0, 0)
    images = [draw_scene(rng, recipe.vision.density) for _ in range(_WHITENING_IMAGES)]
    return np.stack([image.pixels for image in images])


def _draw_images(recipe: Recipe, step: int, rank: int) -> tuple[list[TrainingImage], random.Random]:
    rng = training_rng(recipe.seed, "vision", step, rank)
    if step % recipe.vision.easy_every == recipe.vision.easy_every - 1:
        return [draw_easy(rng) for _ in range(recipe.vision.images_per_rank)], rng
    images = [draw_scene(rng, recipe.vision.density) for _ in range(recipe.vision.images_per_rank)]
    return images, rng


def _contrast(
    clip: CLIPModel,
    tokenizer: Tokenizer,
    hidden: Tensor,
    images: Sequence[TrainingImage],
    presence: Tensor,
    rng: random.Random,
) -> tuple[Tensor, dict[str, float]]:
    """Match patches to phrases, images to the phrases they contain, and images to captions."""
    hidden = clip.vision_model.encoder.layers[-1](hidden, None)
    joint = clip.visual_projection(clip.vision_model.post_layernorm(hidden)).float()
    joint = F.normalize(joint, dim=-1)
    captions = [_caption(image, rng) for image in images]
    text = _embed_text(clip, tokenizer, [*PHRASES, *captions])
    phrases, sentences = text[: len(PHRASES)], text[len(PHRASES) :]
    scale = clip.logit_scale.exp().clamp(max=_MAX_SCALE)
    labels = [image.labels for image in images]
    color, shape = stack_labels(labels, "color"), stack_labels(labels, "shape")
    letter = stack_labels(labels, "letter")
    named = len(ALL_COLORS) * len(ALL_SHAPES)
    pair = torch.where((color >= 0) & (shape >= 0), color * len(ALL_SHAPES) + shape, IGNORE)
    similarity = joint[:, 1:] @ phrases.T * scale
    loss = torch.zeros(())
    known = pair >= 0
    hit = float("nan")
    if known.any():
        logits = similarity[..., :named][known]
        hit = (logits.argmax(-1) == pair[known]).float().mean().item()
        loss = loss + 0.5 * F.cross_entropy(logits, pair[known])
    if (letter >= 0).any():
        known = letter >= 0
        loss = loss + 0.5 * F.cross_entropy(similarity[..., named:][known], letter[known])
    shown = torch.zeros(len(images), len(PHRASES))
    for index, names in enumerate(_phrases_of(image) for image in images):
        shown[index, [PHRASES.index(name) for name in names]] = 1.0
    logits = joint[:, 0] @ phrases.T * presence[0].exp() + presence[1]
    loss = loss + 4.0 * F.binary_cross_entropy_with_logits(logits, shown)
    match = joint[:, 0] @ sentences.T * scale
    own = torch.arange(len(images))
    loss = loss + 0.25 * (F.cross_entropy(match, own) + F.cross_entropy(match.T, own))
    return loss, {"phrase": hit, "caption": (match.argmax(-1) == own).float().mean().item()}


def _embed_text(clip: CLIPModel, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    rows = [tokenizer.encode(f"{text}</s>").ids for text in texts]
    longest = max(len(row) for row in rows)
    tokens = torch.tensor([row + [PAD_ID] * (longest - len(row)) for row in rows])
    mask = (tokens != PAD_ID).long()
    pooled = clip.text_model(input_ids=tokens, attention_mask=mask).pooler_output
    return F.normalize(clip.text_projection(pooled).float(), dim=-1)


def _phrases_of(image: TrainingImage) -> list[str]:
    """List the phrases that are true of an image."""
    if image.scene is not None:
        names = {f"{e.color} {e.shape}" for e in image.scene.entities}
        return sorted(names | {e.label for e in image.scene.of_kind("lettered")})
    if image.easy is not None and image.easy.color and image.easy.shape:
        return [f"{image.easy.color} {image.easy.shape}"]
    return []


def _caption(image: TrainingImage, rng: random.Random) -> str:
    names = _phrases_of(image)
    return ", ".join(rng.sample(names, min(_CAPTION_WORDS, len(names))))
