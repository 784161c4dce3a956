"""A model of true layer shapes and random weights: ``python benchmarks/true_shape_model.py DIR [--model llava]``.

What a prefill costs is decided by the shapes of the layers, not by the weights. This writes a folder that transformers,
``vtc serve`` and vLLM load: as many layers of Qwen2.5-VL-3B (or LLaVA-1.5-7B) as asked for, its processor, and a
tokenizer of single bytes. Its answers mean nothing; it is there for ``vtc load-test``. With ``--config-only`` there are
no weights but all layers: what ``vtc plan`` and ``vtc speed`` need of the published model.

By default there are four layers of the language model and one of the tower: of a picture of 672 x 672 pixels (576
visual tokens) Qwen's language model has about two thirds of the prefill.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PATCH, MERGE = 14, 2
WORDS = 320  # of the vocabulary, where there are weights
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% elif 'image' in part['type'] %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'video' in part['type'] %}<|vision_start|><|video_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> Any:
    """A token a byte, and the special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *letters])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    t = tf.PreTrainedTokenizerFast(tokenizer_object=made, chat_template=TEMPLATE, **names)
    t.image_token, t.video_token = "<|image_pad|>", "<|video_pad|>"
    return t


def qwen(layers: int, tower_layers: int, words: int) -> tuple[Any, Any]:
    """Configuration and processor of Qwen2.5-VL-3B; pictures of any size."""
    t = byte_tokenizer()
    text = {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "num_hidden_layers": layers,
        "vocab_size": words,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision = {
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "depth": tower_layers,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31] if tower_layers == 32 else [tower_layers - 1],
    }
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    start, end, image, video = (t.convert_tokens_to_ids(f"<|{name}|>") for name in names)
    config = tf.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=True,
    )
    side = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    pixels = {
        "shortest_edge": 4 * 28**2,
        "longest_edge": (1280 if words == WORDS else 16384) * 28**2,
    }  # servers encode one at start
    processor = tf.Qwen2_5_VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(**side, size=pixels),
        tokenizer=t,
        video_processor=tf.Qwen2VLVideoProcessor(**side),
        chat_template=TEMPLATE,
    )
    return config, processor


def llava(layers: int, tower_layers: int, words: int) -> tuple[Any, Any]:
    """Configuration and processor of LLaVA-1.5-7B."""
    t = byte_tokenizer()
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "image_size": 336,
        "num_hidden_layers": tower_layers,
        "num_attention_heads": 16,
        "patch_size": PATCH,
        "projection_dim": 768,
    }
    text = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_hidden_layers": layers,
        "vocab_size": words,
        "max_position_embeddings": 4096,
    }
    image = t.convert_tokens_to_ids("<|image_pad|>")
    config = tf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=image)
    processor = tf.LlavaProcessor(
        tf.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        t,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<|image_pad|>",
        chat_template=TEMPLATE,
    )
    return config, processor


# what makes it, and the published layers of language model and tower, and vocabulary
MODELS: dict[str, tuple[Callable[[int, int, int], tuple[Any, Any]], tuple[int, int, int]]] = {
    "qwen": (qwen, (36, 32, 151936)),
    "llava": (llava, (32, 24, 32064)),
}


def write_config(folder: Path, name: str) -> None:
    """Configuration and processor with all layers, no weights."""
    make, published = MODELS[name]
    for part in make(*published):
        part.save_pretrained(folder)


def write(folder: Path, layers: int, tower_layers: int, seed: int, name: str = "qwen") -> None:
    """Model and processor."""
    config, processor = MODELS[name][0](layers, tower_layers, WORDS)
    torch.manual_seed(seed)
    model = tf.AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    count = sum(p.numel() for p in model.parameters())
    print(f"{folder}: {count / 1e6:,.0f} million weights, float32")


def main() -> None:
    """Read the options and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=MODELS, default="qwen")
    parser.add_argument("--layers", type=int, default=4, help="of the language model; the published one has 36 (32)")
    parser.add_argument("--tower-layers", type=int, default=1, help="the published one has 32 (24)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config-only", action="store_true", help="all layers, no weights")
    options = parser.parse_args()
    if options.config_only:
        write_config(options.folder, options.model)
    else:
        write(options.folder, options.layers, options.tower_layers, options.seed, options.model)


if __name__ == "__main__":
    main()
