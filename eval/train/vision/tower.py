"""The CLIP tower: configuration, initialisation and its forward pass on uint8 images."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from vtc.eval.train.basics.recipe import VisionRecipe
from vtc.eval.train.scenes.palette import GRID, IMAGE_SIZE, NUM_PATCHES, PATCH_SIZE
from vtc.eval.train.scenes.vocabulary import BOS_ID, EOS_ID, PAD_ID

IMAGE_MEAN, IMAGE_STD = 0.5, 0.25
_WHITENED_DEVIATION = 0.5
_WHITENING_FLOOR = 0.01
_FREQUENCIES = (0.12, 2.2)
_LOCAL_STRENGTH = 2.2
_LOCAL_FREQUENCIES = 8
_NEIGHBOURS = (
    ((1, 0), (-1, 0), (0, 1), (0, -1), (0, 0)),
    ((1, 1), (-1, -1), (1, -1), (-1, 1), (0, 0)),
    ((2, 0), (-2, 0), (0, 2), (0, -2)),
)


def build_clip(recipe: VisionRecipe, vocabulary_size: int) -> CLIPModel:
    """Return a freshly initialised CLIP model.

    Parameters
    ----------
    recipe : VisionRecipe
        Sizes of both towers.
    vocabulary_size : int
        Number of tokens of the text side.
    """
    text = {
        "vocab_size": vocabulary_size,
        "hidden_size": recipe.text_width,
        "intermediate_size": recipe.text_width * 4,
        "num_hidden_layers": recipe.text_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 48,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        "projection_dim": recipe.joint_width,
    }
    vision = {
        "hidden_size": recipe.width,
        "intermediate_size": recipe.width * 4,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "projection_dim": recipe.joint_width,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=recipe.joint_width)
    model = CLIPModel._from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        embeddings = model.vision_model.embeddings
        embeddings.position_embedding.weight[1:] = _grid_waves(recipe.width) * 0.5
        embeddings.patch_embedding.weight.normal_(0, 0.02)
        for offsets, layer in zip(_NEIGHBOURS, model.vision_model.encoder.layers, strict=False):
            for head, offset in enumerate(offsets[: recipe.heads - 1]):
                _look_at_neighbour(layer.self_attn, head, offset)
    return model


@torch.no_grad()
def whiten_patches(model: CLIPModel, patches: Tensor) -> None:
    """Start the patch embedding as a whitening of real patches.

    Edges have little variance next to flat colour; whitened, the layers above see both alike.

    Parameters
    ----------
    model : CLIPModel
        Its patch embedding is overwritten.
    patches : Tensor
        Normalised patches [images, 576, 588] of some training images.
    """
    weight = model.vision_model.embeddings.patch_embedding.weight
    flat = patches.flatten(0, 1).double()
    flat = flat - flat.mean(dim=0)
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    values, vectors = values.flip(0)[: weight.shape[0]], vectors.flip(1)[:, : weight.shape[0]]
    scales = _WHITENED_DEVIATION / (values + _WHITENING_FLOOR * values.mean()).sqrt()
    weight.copy_((vectors * scales).T.reshape(weight.shape))


def to_patches(images: np.ndarray) -> Tensor:
    """Cut uint8 images [batch, 336, 336, 3] into normalised patches [batch, 576, 588]."""
    batch = images.shape[0]
    cut = images.reshape(batch, GRID, PATCH_SIZE, GRID, PATCH_SIZE, 3).transpose(0, 1, 3, 5, 2, 4)
    cut = np.ascontiguousarray(cut).reshape(batch, NUM_PATCHES, 3 * PATCH_SIZE**2)
    scale = 1.0 / (255 * IMAGE_STD)
    return torch.from_numpy(cut).float().mul_(scale).sub_(IMAGE_MEAN / IMAGE_STD)


def encode(vision_model: nn.Module, patches: Tensor, layers: int) -> Tensor:
    """Run the first ``layers`` encoder layers on patches; the class token comes first."""
    embeddings = vision_model.embeddings
    weight = embeddings.patch_embedding.weight
    hidden = F.linear(patches, weight.reshape(weight.shape[0], -1))
    position = embeddings.position_embedding.weight
    hidden = hidden + position[1:].to(hidden.dtype)
    first = (embeddings.class_embedding + position[0]).to(hidden.dtype)
    hidden = torch.cat([first.expand(hidden.shape[0], 1, -1), hidden], dim=1)
    hidden = vision_model.pre_layrnorm(hidden)
    for layer in vision_model.encoder.layers[:layers]:
        hidden = layer(hidden, None)
    return hidden


def _wave_frequencies(width: int) -> Tensor:
    low, high = _FREQUENCIES
    return torch.exp(torch.linspace(math.log(low), math.log(high), width // 4))


def _grid_waves(width: int) -> Tensor:
    """Sine and cosine of each patch's column, then of its row, at several frequencies."""
    row, column = torch.meshgrid(torch.arange(GRID).float(), torch.arange(GRID).float(), indexing="ij")
    waves = []
    for coordinate in (column, row):
        angle = coordinate.reshape(-1, 1) * _wave_frequencies(width)
        waves += [angle.sin(), angle.cos()]
    return torch.cat(waves, dim=1)


def _look_at_neighbour(attention: nn.Module, head: int, offset: tuple[int, int]) -> None:
    """Make a head attend to the patch at an offset, as in ConViT.

    With the sine and cosine position embedding a query that is the rotated key does this.
    """
    width = attention.embed_dim
    quarter, size = width // 4, width // attention.num_heads
    frequencies = _wave_frequencies(width)
    rows = min(_LOCAL_FREQUENCIES, size // 4)
    chosen = torch.linspace(quarter // 2, quarter - 1, rows).long().tolist()
    query, key = torch.zeros(size, width), torch.zeros(size, width)
    for index, frequency in enumerate(chosen):
        for axis, shift in enumerate(offset):
            row = 4 * index + 2 * axis
            sine = 2 * quarter * axis + frequency
            cosine = sine + quarter
            turn = float(frequencies[frequency]) * shift
            along, across = math.cos(turn) * _LOCAL_STRENGTH, math.sin(turn) * _LOCAL_STRENGTH
            key[row, sine] = key[row + 1, cosine] = _LOCAL_STRENGTH
            query[row, sine], query[row, cosine] = along, across
            query[row + 1, cosine], query[row + 1, sine] = along, -across
    part = slice(head * size, (head + 1) * size)
    for weight, wanted in ((attention.q_proj.weight, query), (attention.k_proj.weight, key)):
        weight[part] = wanted + 0.1 * weight[part]
