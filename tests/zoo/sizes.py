"""Configurations at the published sizes: for models on ``meta`` or on the pretended GPU, never with weights.

Those of the last five families are written from memory and may differ from the published files in a detail; they serve
to wrap models of true scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import nn

LLAMA_7B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32064,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}
MISTRAL_7B = {
    **LLAMA_7B,
    "model_type": "mistral",
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "sliding_window": None,
}
QWEN2_7B: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
QWEN3_8B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
CLIP_L = {**LARGE, "model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "projection_dim": 768}
SIGLIP = {**SO400M, "model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14, "vision_use_head": False}


def _mrope(section: list[int], theta: float = 1e6) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": section}


def _llava() -> tuple[type, Any]:
    return tf.LlavaForConditionalGeneration, tf.LlavaConfig(vision_config=CLIP_L, text_config=LLAMA_7B)


def _llava_next() -> tuple[type, Any]:
    return tf.LlavaNextForConditionalGeneration, tf.LlavaNextConfig(vision_config=CLIP_L, text_config=MISTRAL_7B)


def _onevision() -> tuple[type, Any]:
    config = tf.LlavaOnevisionConfig(
        vision_config={**SIGLIP, "num_hidden_layers": 26}, text_config={"model_type": "qwen2", **QWEN2_7B}
    )
    return tf.LlavaOnevisionForConditionalGeneration, config


def _qwen2() -> tuple[type, Any]:
    config = tf.Qwen2VLConfig(
        text_config={**QWEN2_7B, "rope_parameters": _mrope([16, 24, 24])},
        vision_config={"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 3584},
    )
    return tf.Qwen2VLForConditionalGeneration, config


def _qwen2_5() -> tuple[type, Any]:
    tower = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "window_size": 112,
    }
    config = tf.Qwen2_5_VLConfig(text_config={**QWEN2_7B, "rope_parameters": _mrope([16, 24, 24])}, vision_config=tower)
    return tf.Qwen2_5_VLForConditionalGeneration, config


def _qwen3() -> tuple[type, Any]:
    tower = {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 4096,
        "deepstack_visual_indexes": [8, 16, 24],
    }
    config = tf.Qwen3VLConfig(
        text_config={**QWEN3_8B, "rope_parameters": _mrope([24, 20, 20], 5e6)}, vision_config=tower
    )
    return tf.Qwen3VLForConditionalGeneration, config


def _internvl() -> tuple[type, Any]:
    config = tf.InternVLConfig(
        text_config={"model_type": "qwen2", **QWEN2_7B},
        vision_config={**LARGE, "image_size": [448, 448], "patch_size": [14, 14]},
    )
    return tf.InternVLForConditionalGeneration, config


def _idefics3() -> tuple[type, Any]:
    config = tf.Idefics3Config(
        text_config={**LLAMA_7B, "intermediate_size": 14336, "num_key_value_heads": 8},
        vision_config={**SO400M, "image_size": 364, "patch_size": 14},
    )
    return tf.Idefics3ForConditionalGeneration, config


def _smolvlm() -> tuple[type, Any]:
    config = tf.SmolVLMConfig(
        text_config={**LLAMA_7B, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24},
        vision_config={**SO400M, "image_size": 384, "patch_size": 14},
    )
    return tf.SmolVLMForConditionalGeneration, config


def _gemma3() -> tuple[type, Any]:
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
    }
    config = tf.Gemma3Config(text_config=text, vision_config={**SIGLIP, "image_size": 896})
    return tf.Gemma3ForConditionalGeneration, config


def _mistral3() -> tuple[type, Any]:
    text = {
        **MISTRAL_7B,
        "vocab_size": 131072,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "head_dim": 128,
    }
    tower = {**LARGE, "model_type": "pixtral", "image_size": 1540, "patch_size": 14}
    return tf.Mistral3ForConditionalGeneration, tf.Mistral3Config(text_config=text, vision_config=tower)


SIZES: dict[str, Callable[[], tuple[type, Any]]] = {
    "llava-1.5-7b": _llava,
    "llava-v1.6-mistral-7b": _llava_next,
    "llava-onevision-qwen2-7b": _onevision,
    "qwen2-vl-7b": _qwen2,
    "qwen2.5-vl-7b": _qwen2_5,
    "qwen3-vl-8b": _qwen3,
    "internvl3-8b": _internvl,
    "idefics3-8b": _idefics3,
    "smolvlm2-2.2b": _smolvlm,
    "gemma-3-4b": _gemma3,
    "mistral-small-3.1-24b": _mistral3,
}


def on_meta(name: str) -> nn.Module:
    """The model `name` at its true size, without weights."""
    cls, config = SIZES[name]()
    with torch.device("meta"):
        return cls(config).eval()
