"""The LLaVA model: configuration, initialisation and its features."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vtc.eval.train.basics.recipe import LanguageRecipe
from vtc.eval.train.scenes.palette import ALL_COLORS, ALL_SHAPES, EXTREMES, LETTERS, NUM_PATCHES, QUADRANTS
from vtc.eval.train.scenes.vocabulary import BOS_ID, EOS_ID, IMAGE_ID, PAD_ID
from vtc.eval.train.vision.heads import POSITION_STEPS, POSITION_WIDTH

from .pack_questions import text_ids

EMBEDDING_RMS = 0.5
POSITION_AMPLITUDE = 1.5
IMAGE_MARKER, WORD_MARKER = POSITION_WIDTH, POSITION_WIDTH + 1
MARKER_VALUE = 2.0
"""Channels that at the start are constant on image tokens and on words, and zero on the others."""
_LOOKUP_STRENGTH = 1.4
_WORD_LOOKUP_STRENGTH = 0.9
_IMAGE_PREFERENCE = 3.2
_OFFSET_STRENGTH = 1.4
_OFFSET_FREQUENCIES = 4
_WORD_OFFSETS = (2, 1, 5)
_COPY_STRENGTH = 0.5
_LOOKUP_LAYERS = 5
_WORD_PLACES = {
    "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1),
    "leftmost": (-1, 0), "rightmost": (1, 0), "topmost": (0, -1), "bottommost": (0, 1),
    "top-left": (-1, -1), "top-right": (1, -1), "bottom-left": (-1, 1), "bottom-right": (1, 1),
}  # fmt: skip
"""Word -> direction in which the position channels of its embedding point at the start."""


def build_llava(recipe: LanguageRecipe, clip: CLIPModel, vocabulary_size: int) -> LlavaForConditionalGeneration:
    """Return a LLaVA model around a trained tower, its other parts freshly initialised.

    Parameters
    ----------
    recipe : LanguageRecipe
        Sizes of the language model.
    clip : CLIPModel
        The result of stage 1; its tower is copied.
    vocabulary_size : int
        Number of tokens.
    """
    text = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=recipe.width,
        intermediate_size=recipe.inner_width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    config = LlavaConfig(
        vision_config=clip.config.vision_config,
        text_config=text,
        image_token_id=IMAGE_ID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=NUM_PATCHES,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    bare_tower(model).load_state_dict(clip.vision_model.state_dict())
    model.model.vision_tower.requires_grad_(False)
    with torch.no_grad():
        _init_embeddings(model)
        _init_layers(model.model.language_model)
    return model


def bare_tower(model: LlavaForConditionalGeneration) -> nn.Module:
    """Return the vision transformer itself, which older transformers wrap once more."""
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower)


def word_ids(words: tuple[str, ...] | list[str]) -> Tensor:
    """Return the token id of each word as it appears after a space."""
    return torch.tensor([text_ids(word)[0] for word in words])


def digit_ids(first: bool) -> Tensor:
    """Return the token ids of the ten digits at the first or the second place of a number."""
    return torch.tensor([text_ids(f"{d}0" if first else f"1{d}")[0 if first else 1] for d in range(10)])


def _init_layers(model: nn.Module) -> None:
    """Scaled normal weights; in the first layers three heads look up tokens that are alike.

    A look-up head has equal query and key weights on its slowly rotating channels, so that a
    word attends to image tokens that are like it: one head in letter, one in colour and shape,
    one in anything. Output weights undo value weights, so that what is looked up is copied.
    """
    embedding = model.embed_tokens.weight
    letters = F.normalize(embedding[word_ids(LETTERS)], dim=-1)
    looks = F.normalize(embedding[word_ids((*ALL_COLORS, *ALL_SHAPES))], dim=-1)
    for index, layer in enumerate(model.layers):
        for name, weight in layer.named_parameters():
            if weight.ndim == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, 0, weight.shape[1] ** -0.5 * (0.5 if residual else 1.0))
        if index < _LOOKUP_LAYERS:
            _init_lookup(layer.self_attn, (letters, looks))


def _init_lookup(attention: nn.Module, word_sets: tuple[Tensor, ...]) -> None:
    """Set up the heads of one layer: half of them look up, the others read nearby words."""
    size, width = attention.head_dim, attention.q_proj.weight.shape[1]
    half, quarter = size // 2, size // 4
    slow = torch.tensor([*range(half - quarter, half), *range(size - quarter, size)])
    count = len(slow)
    heads = attention.q_proj.weight.shape[0] // size
    shared = [torch.randn(count, len(words)) @ words * (_WORD_LOOKUP_STRENGTH * count**-0.5) for words in word_sets]
    shared.append(torch.randn(count, width) * width**-0.5 * _LOOKUP_STRENGTH)
    looking = max(1, heads // 2)
    for head, weight in enumerate(shared[:looking]):
        attention.q_proj.weight[slow + head * size] = weight
        attention.k_proj.weight[slow + head * size] = weight
        _prefer_image(attention, head * size + half - 1)
    for head, offset in zip(range(looking, heads), _WORD_OFFSETS, strict=False):
        _read_word_before(attention, head * size, offset)
    nn.init.orthogonal_(attention.v_proj.weight)
    attention.o_proj.weight.mul_(0.5).add_(attention.v_proj.weight.T, alpha=_COPY_STRENGTH)


def _prefer_image(attention: nn.Module, row: int) -> None:
    """Make words look at image tokens rather than at themselves, through the marker channels."""
    for projection, marker in ((attention.q_proj, WORD_MARKER), (attention.k_proj, IMAGE_MARKER)):
        projection.weight[row] = 0.0
        projection.weight[row, marker] = _IMAGE_PREFERENCE


def _read_word_before(attention: nn.Module, start: int, offset: int) -> None:
    """Make a head of a word attend to the word ``offset`` places before it."""
    half = attention.head_dim // 2
    theta = attention.config.rope_parameters["rope_theta"]
    for channel in range(min(_OFFSET_FREQUENCIES, half)):
        angle = offset * theta ** (-channel / half)
        rows = (start + channel, start + channel + half)
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight[list(rows)] = 0.0
        attention.k_proj.weight[rows[0], WORD_MARKER] = _OFFSET_STRENGTH
        attention.q_proj.weight[rows[0], WORD_MARKER] = math.cos(angle) * _OFFSET_STRENGTH
        attention.q_proj.weight[rows[1], WORD_MARKER] = -math.sin(angle) * _OFFSET_STRENGTH


def _init_embeddings(model: LlavaForConditionalGeneration) -> None:
    embedding = model.model.language_model.embed_tokens.weight
    nn.init.normal_(embedding, 0, EMBEDDING_RMS)
    embedding[:, :POSITION_WIDTH] = 0.0
    embedding[:, IMAGE_MARKER] = 0.0
    embedding[:, WORD_MARKER] = MARKER_VALUE
    for word, (x, y) in _WORD_PLACES.items():
        code = torch.tensor([x] * POSITION_STEPS + [y] * POSITION_STEPS).float()
        embedding[text_ids(word)[0], :POSITION_WIDTH] = code * POSITION_AMPLITUDE * EMBEDDING_RMS
    model.lm_head.weight.copy_(embedding * embedding.shape[1] ** -0.5 / EMBEDDING_RMS)
    model.lm_head.weight[:, WORD_MARKER] = 0.0


assert set(_WORD_PLACES) >= {*QUADRANTS, *EXTREMES}
