"""A small configuration of the same architecture: few layers of every kind, small widths, short windows."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .layer_kinds import keep_layers
from .token_ids import VOCABULARY, renumber

DEPTH, TOWER_DEPTH = 6, 4
HEADS, HEAD_DIM = 4, 16
WIDTH = HEADS * HEAD_DIM
WINDOW = 12  # shorter than the prompts, so that it matters
NO_PART = (
    "dtype",
    "torch_dtype",
    "quantization_config",
    "transformers_version",
    "_name_or_path",
    "auto_map",
    "id2label",
    "label2id",
)

# name of a width -> what it becomes; the first pattern that fits
WIDTHS: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    (r"^vocab_size", lambda v: VOCABULARY),
    (r"^(sliding_window|attention_chunk_size)$", lambda v: min(v, WINDOW)),
    (r"^qk_(rope|nope)_head_dim$", lambda v: HEAD_DIM // 2),
    (r"lora_rank$", lambda v: HEAD_DIM),
    (r"^(moe_|shared_expert_).*intermediate_size", lambda v: 48),
    (r"(intermediate_size|ffn_dim|ffn_hidden_size)", lambda v: 96),
    (r"(num_experts|num_local_experts|n_routed_experts)$", lambda v: min(v, 4)),
    (r"(experts_per_tok(en)?|top_k_experts|moe_k|moe_topk)$", lambda v: min(v, 2)),
    (r"^(n_group|topk_group)$", lambda v: min(v, 2)),
    (r"^linear_num_(key|value)_heads$", lambda v: max(1, v // 8)),
)


def shrink(
    config: Any, geometry: Callable[[dict[str, Any]], None], depth: int = DEPTH, tower_depth: int = TOWER_DEPTH
) -> tuple[Any, list[int]]:
    """A small configuration.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the composite model; it stays as it is.
    geometry : callable
        Makes the pictures of a configuration (as a dict, in place) small: ``Kind.geometry``.
    depth, tower_depth : int
        Layers to keep of the decoder and of the vision tower, more where there are more kinds of layers.

    Returns
    -------
    small : PreTrainedConfig
        Of the same class.
    layers : list of int
        The decoder layers of `config` that it keeps.
    """
    small = config.to_dict()
    _clean(small)
    renumber(small)
    text, tower = small["text_config"], small.get("vision_config") or {}  # none: the kind of prompts says what it is
    text.setdefault("num_hidden_layers", config.get_text_config().num_hidden_layers)  # it may follow from a list
    layers = shrink_text(text, depth)
    _shrink_tower(tower, text["hidden_size"], tower_depth)
    fit_feature_layers(small, tower)
    # what a composite configuration repeats of its text model
    small.update({name: text[name] for name in ("hidden_size", "vocab_size") if isinstance(small.get(name), int)})
    geometry(small)
    return type(config).from_dict(small), layers


def completed(config: Any, defaults: Callable[[dict[str, Any]], None]) -> Any:
    """`config`, or where it leaves out what a model needs to see pictures, another one of its class.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the composite model; it stays as it is.
    defaults : callable
        Fills in (as a dict, in place) what only the family's kind of prompts knows: ``Kind.defaults``.
    """
    given = config.to_dict()
    if "vision_config" in given and given["vision_config"] is None:
        given["vision_config"] = type(config).sub_configs["vision_config"]().to_dict()
    defaults(given)
    return config if given == config.to_dict() else type(config).from_dict(given)


def _clean(config: dict[str, Any]) -> None:
    for name in NO_PART:
        config.pop(name, None)
    for value in config.values():
        if isinstance(value, dict):
            _clean(value)


def shrink_text(text: dict[str, Any], depth: int = DEPTH) -> list[int]:
    """Make a text model's configuration small, in place; gives the layers that it keeps."""
    layers = keep_layers(text, "num_hidden_layers", depth)
    heads, kv = text["num_attention_heads"], text.get("num_key_value_heads")
    odd = text.get("head_dim") is not None and text["head_dim"] * heads != text["hidden_size"]
    head_dim = 2 * HEAD_DIM if odd else HEAD_DIM  # heads that are wider together than the model stay so
    rotary, before = text.get("rotary_dim"), dict(text)
    for name, value in text.items():
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        rule = next((rule for pattern, rule in WIDTHS if re.search(pattern, name)), None)
        if rule is not None:
            text[name] = rule(value)
        elif name.endswith("head_dim"):
            text[name] = head_dim
        elif name.endswith("key_value_heads"):
            text[name] = HEADS if value == heads else min(value, HEADS // 2)
    if rotary is not None:
        text["rotary_dim"] = head_dim // 2
    if before.get("head_dim") is not None and before["head_dim"] == before.get(
        "qk_rope_head_dim"
    ):  # DeepSeek-V3 calls the part of a head that turns head_dim
        text["head_dim"] = text["qk_rope_head_dim"]
        text["qk_head_dim"] = text["qk_rope_head_dim"] + text["qk_nope_head_dim"]
    if text.get("query_pre_attn_scalar") is not None:
        text["query_pre_attn_scalar"] = head_dim
    text.update(hidden_size=WIDTH, num_attention_heads=HEADS)
    if kv is None and "num_key_value_heads" in text:
        text["num_key_value_heads"] = None
    for own in (text.get("per_layer_config") or {}).values():  # in the proportions that they had
        own.update({name: max(1, value * text[name] // before[name]) for name, value in own.items()})
    for name in ("rope_parameters", "rope_scaling"):
        _shrink_rope(text.get(name), head_dim)
    return layers


def _shrink_rope(rope: Any, head_dim: int) -> None:
    """Sections and factors to the small head; `rope` may hold one set of parameters or one per kind of layer."""
    if not isinstance(rope, dict):
        return
    for value in rope.values():
        _shrink_rope(value, head_dim)
    half = int(head_dim * (rope.get("partial_rotary_factor") or 1.0)) // 2
    if isinstance(rope.get("mrope_section"), (list, tuple)):
        rope["mrope_section"] = rescaled(list(rope["mrope_section"]), half)
    for name in ("short_factor", "long_factor"):
        if isinstance(rope.get(name), (list, tuple)):
            rope[name] = list(rope[name])[:half]


def rescaled(parts: list[int], total: int) -> list[int]:
    """`parts` in about the same proportions, each at least 1, adding up to `total`."""
    whole = sum(parts)
    exact = [p * total / whole for p in parts]
    new = [max(1, int(e)) for e in exact]
    while sum(new) < total:
        i = max(range(len(new)), key=lambda j: exact[j] - new[j])
        new[i] += 1
    while sum(new) > total:
        new[new.index(max(new))] -= 1
    return new


def _shrink_tower(tower: dict[str, Any], text_width: int, depth: int) -> None:
    if "depth" in tower:  # Qwen's: blocks of their own names
        keep_layers(tower, "depth", depth)
        tower["num_heads"] = HEADS
        # Qwen2-VL calls the text model's width hidden_size
        tower.update({"embed_dim": 32, "hidden_size": text_width} if "embed_dim" in tower else {"hidden_size": 32})
        if "out_hidden_size" in tower:
            tower["out_hidden_size"] = text_width
    elif "num_hidden_layers" in tower:  # not timm's, of which the kind of prompts says what is small
        keep_layers(tower, "num_hidden_layers", depth)
        tower.update(hidden_size=48, num_attention_heads=HEADS)
        if tower.get("head_dim") is not None:
            tower["head_dim"] = 48 // HEADS
        for name in ("out_features", "out_indices", "stage_names"):  # a backbone's (DINOv2): layers that are gone
            tower.pop(name, None)
    for name, width in (("intermediate_size", 64), ("projection_dim", 32)):
        if isinstance(tower.get(name), int):
            tower[name] = width


def fit_feature_layers(config: dict[str, Any], tower: dict[str, Any]) -> None:
    """Layers of the tower that features are read from: as far from its end as before, where it has as many."""
    depth = int(tower["depth"] if "depth" in tower else tower.get("num_hidden_layers", 0))
    if not depth:
        return

    def fit(layer: int) -> int:
        return max(layer, -depth) if layer < 0 else min(layer, depth)

    for name in ("vision_feature_layer", "vision_feature_layers"):
        layer = config.get(name)
        if isinstance(layer, int):
            config[name] = fit(layer)
        elif isinstance(layer, (list, tuple)):
            config[name] = [fit(one) for one in layer]
