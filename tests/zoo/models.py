"""Tiny models of transformers' own code with random, seeded fp32 weights: offline, milliseconds a forward.

Six decoder layers with grouped-query attention, four encoder layers. The weights are larger than a fresh model's, so
that attention is not uniform and a wrong mask or position shows in the logits.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from torch import nn

from .tokens import BOS, CLOSE, EOS, IMAGE, OPEN, PAD, VIDEO, VOCABULARY

DEPTH = 6
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
TOWER: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
PINPOINTS = [[28, 56], [56, 28], [56, 56]]


def build(cls: type, config: Any, impl: str, seed: int = 0) -> nn.Module:
    """An evaluation-mode model of `config` with attention implementation `impl`."""
    torch.manual_seed(seed)
    for part in (config, config.text_config, config.vision_config):
        part._attn_implementation = impl
    model = cls._from_config(config, attn_implementation=impl)
    if impl == "flex_attention":  # the decoder is what it's for; torch's CPU kernel can crash the process in a tower
        model.set_attn_implementation({"vision_config": "sdpa"})
    generator = torch.Generator().manual_seed(seed + 1)
    plus_one_norm = "gemma" in cls.__name__.lower()  # Gemma's norms (not its tower's) multiply by 1 + weight
    for name, p in model.named_parameters():
        if p.dim() >= 2:
            p.data.normal_(0, 0.15 if "embed_tokens" in name else 1.5 / p.shape[-1] ** 0.5, generator=generator)
        elif "norm" in name and name.endswith("weight"):
            p.data.fill_(0.0 if plus_one_norm and "vision" not in name else 1.0)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval()


def clip() -> tf.CLIPVisionConfig:
    return tf.CLIPVisionConfig(**TOWER, image_size=28, patch_size=7, projection_dim=32)


def siglip(image_size: int = 28) -> tf.SiglipVisionConfig:
    return tf.SiglipVisionConfig(**TOWER, image_size=image_size, patch_size=7, vision_use_head=False)


def dinov2() -> tf.Dinov2Config:
    sizes = {name: size for name, size in TOWER.items() if name != "intermediate_size"}
    return tf.Dinov2Config(**sizes, mlp_ratio=2, image_size=28, patch_size=7)


def pixtral_tower() -> tf.PixtralVisionConfig:
    return tf.PixtralVisionConfig(**TOWER, image_size=56, patch_size=7, head_dim=12)


def llava(impl: str = "sdpa") -> nn.Module:
    config = tf.LlavaConfig(
        vision_config=clip(),
        text_config=tf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return build(tf.LlavaForConditionalGeneration, config, impl)


def llava_siglip(impl: str = "sdpa") -> nn.Module:
    config = tf.LlavaConfig(
        vision_config=siglip(),
        text_config=tf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
    )
    return build(tf.LlavaForConditionalGeneration, config, impl)


def llava_dinov2(impl: str = "sdpa") -> nn.Module:
    """A DINOv2 tower of which the projector reads two layers side by side."""
    config = tf.LlavaConfig(
        vision_config=dinov2(),
        text_config=tf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        vision_feature_layer=[1, -2],
        vision_feature_select_strategy="default",
    )
    return build(tf.LlavaForConditionalGeneration, config, impl)


def llava_sliding(impl: str = "sdpa") -> nn.Module:
    """A text model whose every layer has a sliding window shorter than the prompt."""
    config = tf.LlavaConfig(
        vision_config=clip(),
        text_config=tf.MistralConfig(**TEXT, head_dim=16, sliding_window=14),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return build(tf.LlavaForConditionalGeneration, config, impl)


def pixtral(impl: str = "sdpa") -> nn.Module:
    """Pixtral-12B's shape: the LLaVA class on a Pixtral tower, images of any size."""
    config = tf.LlavaConfig(
        vision_config=pixtral_tower(),
        text_config=tf.MistralConfig(**TEXT, head_dim=16, sliding_window=None),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return build(tf.LlavaForConditionalGeneration, config, impl)


def mistral3(impl: str = "sdpa") -> nn.Module:
    config = tf.Mistral3Config(
        vision_config=pixtral_tower(),
        text_config=tf.MistralConfig(**TEXT, head_dim=16, sliding_window=None),
        image_token_id=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return build(tf.Mistral3ForConditionalGeneration, config, impl)


def llava_next(impl: str = "sdpa") -> nn.Module:
    config = tf.LlavaNextConfig(
        vision_config=clip(),
        text_config=tf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=PINPOINTS,
    )
    return build(tf.LlavaNextForConditionalGeneration, config, impl)


def llava_onevision(impl: str = "sdpa") -> nn.Module:
    config = tf.LlavaOnevisionConfig(
        vision_config=siglip(),
        text_config=tf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=PINPOINTS,
    )
    return build(tf.LlavaOnevisionForConditionalGeneration, config, impl)


def internvl(impl: str = "sdpa") -> nn.Module:
    config = tf.InternVLConfig(
        vision_config=tf.InternVLVisionConfig(**TOWER, image_size=[28, 28], patch_size=[7, 7]),
        text_config=tf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return build(tf.InternVLForConditionalGeneration, config, impl)


def _idefics(config_class: type, model_class: type, impl: str) -> nn.Module:
    config = config_class(
        vision_config={**TOWER, "image_size": 32, "patch_size": 4},
        text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE,
        scale_factor=2,
    )
    return build(model_class, config, impl)


def idefics3(impl: str = "sdpa") -> nn.Module:
    return _idefics(tf.Idefics3Config, tf.Idefics3ForConditionalGeneration, impl)


def smolvlm(impl: str = "sdpa") -> nn.Module:
    return _idefics(tf.SmolVLMConfig, tf.SmolVLMForConditionalGeneration, impl)


def gemma3(impl: str = "sdpa") -> nn.Module:
    text = tf.Gemma3TextConfig(
        **TEXT,
        head_dim=16,
        sliding_window=12,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    )
    config = tf.Gemma3Config(
        vision_config=siglip(56),  # 8 x 8 patches, averaged to 4 x 4 tokens
        text_config=text,
        image_token_id=IMAGE,
        boi_token_index=OPEN,
        eoi_token_index=CLOSE,
        mm_tokens_per_image=16,
    )
    return build(tf.Gemma3ForConditionalGeneration, config, impl)


QWEN_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": OPEN,
    "vision_end_token_id": CLOSE,
}
QWEN_TOWER = {"depth": 4, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}


def qwen2_vl(impl: str = "sdpa") -> nn.Module:
    tower = {**QWEN_TOWER, "embed_dim": 32, "mlp_ratio": 2, "hidden_size": 64}
    config = tf.Qwen2VLConfig(text_config={**TEXT, "rope_parameters": QWEN_ROPE}, vision_config=tower, **QWEN_IDS)
    return build(tf.Qwen2VLForConditionalGeneration, config, impl)


def qwen2_5_vl(impl: str = "sdpa") -> nn.Module:
    tower = {
        **QWEN_TOWER,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "window_size": 16,
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
    }
    config = tf.Qwen2_5_VLConfig(text_config={**TEXT, "rope_parameters": QWEN_ROPE}, vision_config=tower, **QWEN_IDS)
    return build(tf.Qwen2_5_VLForConditionalGeneration, config, impl)


def qwen3_vl(impl: str = "sdpa") -> nn.Module:
    tower = {
        **QWEN_TOWER,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1, 2],
    }
    text = {**TEXT, "head_dim": 16, "rope_parameters": QWEN_ROPE}
    config = tf.Qwen3VLConfig(text_config=text, vision_config=tower, **QWEN_IDS)
    return build(tf.Qwen3VLForConditionalGeneration, config, impl)
