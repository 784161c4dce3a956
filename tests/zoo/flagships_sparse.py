"""Flagships with experts or recurrent layers at their true sizes, and those that are refused.

As the configuration classes of transformers have them by default: LFM3-VL-2B, ERNIE-4.5-VL-28B-A3B, Muse Spark,
MiniMax-M3, Llama 4 Scout, Mistral Large 4, Hy4, GLM-5.3-Flash, dots3-note, Inkling and Inkling 2; but for the tower's
output also Qwen3.5-9B and Qwen3.5-35B-A3B, but for its windows Step 3.7, and but for the indexer's sizes Qwen4. All
others are written from memory and may differ from the published files in a detail.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .flagship import Flagship, mrope
from .flagship_pictures import AT_14, AT_16, patches, radio, slices, small_squares, unpadded, views
from .sizes import SO400M

QWEN3_A3B: dict[str, Any] = {
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}
NEMOTRON = {"M": "linear_attention", "E": "moe", "*": "full_attention"}
NEMOTRON_LAYERS = [NEMOTRON[kind] for kind in "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"]


SPARSE = {
    "qwen3.5-9b": Flagship("qwen3_5", 9.41, {"vision_config": {"out_hidden_size": 4096}}, AT_16, 3),
    "qwen3.5-35b-a3b": Flagship("qwen3_5_moe", 35.11, {"vision_config": {"out_hidden_size": 2048}}),
    "qwen3-vl-30b-a3b": Flagship(
        "qwen3_vl_moe",
        31.07,
        {
            "vision_config": {"out_hidden_size": 2048},
            "text_config": {**QWEN3_A3B, "rope_parameters": mrope(24, 20, 20, theta=5e6)},
        },
        AT_16,
        3,
    ),
    "qwen3-omni-30b-a3b": Flagship(
        "qwen3_omni_moe_thinker",
        31.72,
        {
            "vision_config": {"out_hidden_size": 2048},
            "text_config": {**QWEN3_A3B, "vocab_size": 152064, "rope_parameters": mrope(24, 20, 20)},
            "audio_config": {
                "d_model": 1280,
                "encoder_layers": 32,
                "encoder_attention_heads": 20,
                "encoder_ffn_dim": 5120,
                "output_dim": 2048,
            },
        },
        AT_16,
        3,
    ),
    "glm-4.5v-106b": Flagship(
        "glm4v_moe",
        107.71,
        {
            "vision_config": {"out_hidden_size": 4096, "intermediate_size": 10944},
            "text_config": {"head_dim": 128, "rope_parameters": mrope(8, 12, 12, theta=1e4, part=0.5)},
        },
        AT_14,
        3,
    ),
    "kimi-k2.5": Flagship(
        "kimi_k25",
        1025.7,
        {
            "text_config": {
                "vocab_size": 163840,
                "num_attention_heads": 64,
                "num_key_value_heads": 64,
                "n_routed_experts": 384,
                "n_group": 1,
                "topk_group": 1,
                "first_k_dense_replace": 1,
            }
        },
        partial(small_squares, 74, 54, 14),
    ),
    "deepseek-ocr2-3b": Flagship(
        "deepseek_ocr2",
        3.39,
        {
            "vision_config": {
                "encoder_config": {
                    "hidden_size": 896,
                    "intermediate_size": 4864,
                    "num_hidden_layers": 24,
                    "num_attention_heads": 14,
                    "num_key_value_heads": 2,
                }
            },
            "text_config": {
                "vocab_size": 129280,
                "hidden_size": 1280,
                "intermediate_size": 6848,
                "moe_intermediate_size": 896,
                "num_hidden_layers": 12,
                "num_attention_heads": 10,
                "num_key_value_heads": 10,
                "n_shared_experts": 2,
                "num_experts_per_tok": 6,
                "mlp_layer_types": ["dense", *["sparse"] * 11],
            },
        },
        views,
        run=None,
    ),
    "minicpm-v-4.6": Flagship(
        "minicpmv4_6",
        1.30,
        {
            "image_token_id": 248056,
            "video_token_id": 248057,
            "tie_word_embeddings": True,
            "vision_config": {**SO400M, "image_size": 980, "patch_size": 14},
            "text_config": {
                "hidden_size": 1024,
                "intermediate_size": 3584,
                "num_hidden_layers": 24,
                "num_attention_heads": 8,
                "num_key_value_heads": 2,
                "linear_num_value_heads": 16,
            },
        },
        slices,
    ),
    "lfm2-vl-1.6b": Flagship(
        "lfm2_vl",
        1.61,
        {
            "vision_config": {**SO400M, "num_patches": 256},
            "text_config": {"hidden_size": 2048, "num_hidden_layers": 16, "full_attn_idxs": [2, 5, 8, 10, 12, 14]},
        },
        unpadded,
        run=None,
    ),
    "lfm3-vl-2b": Flagship("lfm3_vl", 1.92, {}, AT_16, run={"num_hidden_layers": 14}),
    "ernie-4.5-vl-28b-a3b": Flagship("ernie4_5_vl_moe", 29.40, {}, partial(patches, 74, 54, 3 * 14**2), 3),
    "nemotron-3-nano-omni-30b-a3b": Flagship(
        "nemotron_h_omni",
        32.26,
        {
            "image_token_id": 18,
            "video_token_id": 131081,
            "text_config": {
                "hidden_size": 2688,
                "layers_block_type": NEMOTRON_LAYERS,
                "num_key_value_heads": 2,
                "mamba_num_heads": 64,
                "intermediate_size": 1856,
                "moe_intermediate_size": 1856,
                "moe_shared_expert_intermediate_size": 3712,
                "n_routed_experts": 128,
                "num_experts_per_tok": 6,
            },
        },
        radio,
        run={"layers_block_type": NEMOTRON_LAYERS[:16]},
    ),
    "step-3.7-flash": Flagship(
        "step3p7",
        198.94,
        {
            "text_config": {
                "num_sliding_attention_heads": 96,
                "sliding_window": 512,
                "layer_types": ["sliding_attention" if i % 4 else "full_attention" for i in range(45)],
            }
        },
    ),
    "muse-spark-816b": Flagship("muse_spark", 822.04, {}, AT_14),
    "minimax-m3": Flagship("minimax_m3_vl", 448.05),
}
INDEXER = {"n_heads": 2, "kv_heads": 1, "head_dim": 256, "budget": 2048, "compress_ratio": 16}
REFUSED = {
    "llama-4-scout": Flagship("llama4", 108.22),
    "mistral-large-4": Flagship("mistral_large4", 1051.82),
    "hy4": Flagship("hy_v4_vl", 771.14),
    "qwen4-exp": Flagship("qwen4_exp", 67.79, {"text_config": {f"indexer_{k}": v for k, v in INDEXER.items()}}),
    "glm-5.3-flash": Flagship("glm5_next", 313.79),
    "dots3-note": Flagship("dots3_note", 287.31),
    "inkling": Flagship("inkling_mm_model", 1740.19),
    "inkling-2": Flagship("inkling2", 594.05),
}
