"""A tiny random Qwen2.5-VL with its processor in a folder: what lmms-eval's batching backend loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as tf
from zoo.models import QWEN_TOWER

from vtc.bundled_files import bundled_model_path

TURNS = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}assistant:"
)
SPECIAL = {name: f"<|{name}|>" for name in ("vision_start", "vision_end", "image_pad", "video_pad")}
SIDE = 28  # pixels of a visual token: patches of 14, merged two by two


def save_qwen(folder: Path) -> Path:
    """A model whose images have as many tokens as they have squares of 28 pixels, and four decoder layers."""
    tokenizer = tf.AutoTokenizer.from_pretrained(bundled_model_path())
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL.values())})
    tokenizer.image_token, tokenizer.video_token = SPECIAL["image_pad"], SPECIAL["video_pad"]
    sizes: dict[str, Any] = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    pixels = {"size": {"shortest_edge": SIDE**2, "longest_edge": 100 * SIDE**2}}
    tf.Qwen2_5_VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(**sizes, **pixels), tokenizer=tokenizer,
        video_processor=tf.Qwen2VLVideoProcessor(**sizes), chat_template=TURNS,
    ).save_pretrained(folder)  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    tower = {
        **QWEN_TOWER, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "patch_size": 14,
        "window_size": 56, "fullatt_block_indexes": [1, 3],
    }  # fmt: skip
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    image, video, start, end = (tokenizer.convert_tokens_to_ids(SPECIAL[name]) for name in names)
    ids = {"image_token_id": image, "video_token_id": video, "vision_start_token_id": start, "vision_end_token_id": end}
    torch.manual_seed(0)
    config = tf.Qwen2_5_VLConfig(text_config=text, vision_config=tower, **ids)
    tf.Qwen2_5_VLForConditionalGeneration(config).eval().save_pretrained(folder)
    return folder
