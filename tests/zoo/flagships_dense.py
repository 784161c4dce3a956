"""Flagships without experts and recurrent layers, at their true sizes.

As the configuration classes of transformers have them by default: Molmo2-8B, PaddleOCR-VL, Muse Glimmer,
GLM-OCR, LightOnOCR and, but for rotary sections, GLM-4.1V and GLM-4.6V-Flash (9B). All others are written from memory
and may differ from the published files in a detail.
"""

from __future__ import annotations

from functools import partial

from .flagship import Flagship, mrope
from .flagship_pictures import AT_14, any_res, molmo2, row_ends, small_squares, tiles
from .sizes import LLAMA_7B, QWEN2_7B, SO400M

LLAMA3_8B = {**LLAMA_7B, "vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8}
COHERE2 = {"model_type": "cohere2", "num_key_value_heads": 8}
PE_G = {
    "embed_dim": 1536,
    "depth": 47,
    "num_heads": 16,
    "img_size": [448, 448],
    "global_pool": "",
    "use_post_transformer_norm": False,
    "init_values": 0.1,
    "ref_feat_shape": [32, 32],
    "class_token": False,
}


DENSE = {
    "glm-4.1v-9b": Flagship(
        "glm4v", 10.29, {"text_config": {"rope_parameters": mrope(8, 12, 12, theta=1e4, part=0.5)}}
    ),
    "glm-4.6v-flash-9b": Flagship(
        "glm46v", 10.29, {"text_config": {"rope_parameters": mrope(8, 12, 12, theta=5e5, part=0.5)}}, AT_14, 3
    ),
    "molmo2-8b": Flagship("molmo2", 8.70, {}, molmo2),
    "paddleocr-vl-0.9b": Flagship(
        "paddleocr_vl",
        0.80,
        {"text_config": {"rope_parameters": mrope(16, 24, 24, theta=5e5)}},
        partial(small_squares, 74, 54, 14),
        3,
    ),
    "qwen2.5-omni-7b": Flagship(
        "qwen2_5_omni_thinker",
        8.93,
        {
            "vision_config": {"hidden_size": 1280},
            "text_config": {**QWEN2_7B, "rope_parameters": mrope(16, 24, 24)},
        },
        AT_14,
        3,
    ),
    "granite-4-vision-3b": Flagship(
        "granite4_vision",
        4.25,
        {
            "vision_config": {**SO400M, "model_type": "siglip_vision_model", "image_size": 384, "patch_size": 16},
            "text_config": {
                "vocab_size": 100352,
                "hidden_size": 2560,
                "intermediate_size": 8192,
                "num_hidden_layers": 40,
                "num_attention_heads": 40,
                "num_key_value_heads": 8,
                "tie_word_embeddings": True,
            },
            "image_token_index": 100351,
            "vision_feature_select_strategy": "full",
            "downsample_rate": "4/8",
            "deepstack_layer_map": [[-19, 9], [-13, 6], [-7, 3], [-1, 0]],
            "image_grid_pinpoints": [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]],
        },
        any_res,
        run={"num_hidden_layers": 22},  # the last one that is fed is 21
    ),
    "command-a-vision-112b": Flagship(
        "cohere2_vision",
        111.88,
        {
            "vision_config": {**SO400M, "model_type": "siglip_vision_model", "image_size": 512, "patch_size": 16},
            "text_config": {
                **COHERE2,
                "hidden_size": 12288,
                "intermediate_size": 36864,
                "num_hidden_layers": 64,
                "num_attention_heads": 96,
            },
        },
        partial(tiles, 5, 512, 256),
    ),
    "aya-vision-8b": Flagship(
        "aya_vision",
        8.48,
        {
            "vision_config": {**SO400M, "model_type": "siglip_vision_model", "image_size": 364, "patch_size": 14},
            "text_config": {
                **COHERE2,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
            },
        },
    ),
    "ovis2-8b": Flagship(
        "ovis2",
        7.88,
        {
            "vision_config": {"vocab_size": 65536, "hidden_stride": 2, "image_size": 448},
            "text_config": {**QWEN2_7B, "model_type": "qwen2"},
            "vocab_size": 152064,
            "hidden_size": 3584,
        },
    ),
    "muse-glimmer-30b": Flagship("muse_glimmer", 29.78),
    "exaone-4.5-33b": Flagship(
        "exaone4_5",
        33.87,
        {
            "vision_config": {
                "depth": 28,
                "hidden_size": 2048,
                "intermediate_size": 5120,
                "out_hidden_size": 5120,
                "fullatt_block_indexes": [6, 13, 20, 27],
            },
            "text_config": {
                "model_type": "exaone4",
                "vocab_size": 153600,
                "hidden_size": 5120,
                "intermediate_size": 27392,
                "num_hidden_layers": 64,
                "num_attention_heads": 40,
                "num_key_value_heads": 8,
            },
        },
        AT_14,
    ),
    "hunyuan-ocr-1b": Flagship(
        "hunyuan_vl",
        1.00,
        {
            "vision_config": {"out_hidden_size": 1024},
            "text_config": {
                "vocab_size": 120818,
                "hidden_size": 1024,
                "intermediate_size": 3584,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "rope_parameters": mrope(16, 16, 16, 16, theta=1e4),
            },
        },
        row_ends,
        4,
    ),
    "videollama3-7b": Flagship(
        "video_llama_3",
        8.05,
        {"vision_config": {**SO400M, "patch_size": 14}, "text_config": {**QWEN2_7B, "model_type": "qwen2"}},
    ),
    "perception-lm-8b": Flagship(
        "perception_lm",
        9.79,
        {
            "vision_config": {
                "architecture": "vit_pe_core_gigantic_patch14_448",
                "do_pooling": False,
                "num_classes": 0,
                "model_args": PE_G,
            },
            "text_config": LLAMA3_8B,
            "projector_pooling_ratio": 2,
            "vision_use_cls_token": False,
        },
    ),
    "internvl3-38b": Flagship(
        "internvl",
        37.61,
        {
            "vision_config": {
                "hidden_size": 3200,
                "intermediate_size": 12800,
                "num_hidden_layers": 45,
                "num_attention_heads": 25,
                "use_qk_norm": True,
                "norm_type": "rms_norm",
            },
            "text_config": {
                "model_type": "qwen2",
                "vocab_size": 151674,
                "hidden_size": 5120,
                "intermediate_size": 27648,
                "num_hidden_layers": 64,
                "num_attention_heads": 40,
                "num_key_value_heads": 8,
            },
        },
        partial(tiles, 5, 448, 256),
    ),
    "glm-ocr": Flagship("glm_ocr", 0.81),
    "lightonocr-1b": Flagship("lighton_ocr", 1.01),
}
