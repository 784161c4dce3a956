"""Tiny random checkpoints with processors, as files: what vLLM and transformers both load. Needs transformers only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# CPU attention wants heads of 32
TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
TOWER: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2}
WORDS = "describe the image in one word please answer yes or no what is the colour of this picture user assistant \n\n"
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
MROPE = {"rope_type": "default", "rope_theta": 10000.0}
QWEN = ("<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def tokenizer(*special: str, **names: Any) -> Any:
    """A byte-level tokenizer trained on a line of words, with these special tokens first."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=list(special), initial_alphabet=alphabet)
    made.train_from_iterator([WORDS] * 20, trainer)
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def text_of(t: Any, **more: Any) -> dict[str, Any]:
    """Settings of a text model for the tokenizer `t`."""
    return {
        **TEXT,
        "vocab_size": (len(t) + 63) // 64 * 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    } | more


def saved(folder: Path, model: Any, processor: Any, seed: int = 0) -> None:
    """Write a model with weights that make attention uneven, under the names of published checkpoints."""
    generator = torch.Generator().manual_seed(seed)
    plus_one = "gemma" in type(model).__name__.lower()
    for name, p in model.named_parameters():
        if p.dim() >= 2:
            p.data.normal_(0, 0.15 if "embed_tokens" in name else 1.5 / p.shape[-1] ** 0.5, generator=generator)
        elif "norm" in name and name.endswith("weight"):
            p.data.fill_(0.0 if plus_one and "vision" not in name else 1.0)
    model.generation_config.eos_token_id = None
    model.to(torch.float32).save_pretrained(folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    old, new = "vision_tower.", "vision_tower.vision_model."
    if model.config.vision_config.model_type in ("clip_vision_model", "siglip_vision_model"):
        # transformers 5 leaves a level out that vLLM needs
        weights = {n if new in n else n.replace(old, new): w for n, w in weights.items()}
    for name in (n for n in weights if ".mlp.experts." in n):  # published ones lie the other way round
        weights[name] = weights[name].transpose(1, 2).contiguous()
    save_file(weights, path, metadata={"format": "pt"})
    processor.save_pretrained(folder)


def _llava_like(
    folder: Path, config: type, model: type, processor: type, images: Any, vision: Any, **more: Any
) -> None:
    t = tokenizer("<pad>", "</s>", "<image>", "<video>", pad_token="<pad>", eos_token="</s>")
    image = t.convert_tokens_to_ids("<image>")
    strategy = more.get("vision_feature_select_strategy", "default")
    text = (tf.Qwen2Config if "video_token_id" in more else tf.LlamaConfig)(**text_of(t))
    built = config(vision_config=vision, text_config=text, image_token_id=image, **more)
    built.image_token_index = image
    cls = int(strategy == "default")
    extra = (
        {"num_image_tokens": 16} if "video_token_id" in more else {"patch_size": 14, "num_additional_image_tokens": cls}
    )
    if "video_token_id" in more:
        extra["video_processor"] = tf.LlavaOnevisionVideoProcessor(size={"height": 56, "width": 56})
    made = processor(
        image_processor=images, tokenizer=t, vision_feature_select_strategy=strategy, image_token="<image>", **extra
    )
    saved(folder, model(built), made)


def _clip() -> Any:
    return tf.CLIPVisionConfig(**TOWER, image_size=56, patch_size=14, projection_dim=64)


def llava(folder: Path) -> None:
    images = tf.CLIPImageProcessor(size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112})
    vision = tf.CLIPVisionConfig(**TOWER, image_size=112, patch_size=14, projection_dim=64)
    more = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    _llava_like(folder, tf.LlavaConfig, tf.LlavaForConditionalGeneration, tf.LlavaProcessor, images, vision, **more)


def llava_next(folder: Path) -> None:
    size = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    images = tf.LlavaNextImageProcessor(**size, image_grid_pinpoints=PINPOINTS)
    more = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "image_grid_pinpoints": PINPOINTS}
    cls = tf.LlavaNextForConditionalGeneration
    _llava_like(folder, tf.LlavaNextConfig, cls, tf.LlavaNextProcessor, images, _clip(), **more)


def llava_onevision(folder: Path) -> None:
    images = tf.LlavaOnevisionImageProcessor(size={"height": 56, "width": 56}, image_grid_pinpoints=PINPOINTS)
    vision = tf.SiglipVisionConfig(**TOWER, image_size=56, patch_size=14, vision_use_head=False)
    more = {
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": PINPOINTS,
        "video_token_id": 3,
    }
    cls = tf.LlavaOnevisionForConditionalGeneration
    _llava_like(folder, tf.LlavaOnevisionConfig, cls, tf.LlavaOnevisionProcessor, images, vision, **more)


def _qwen_like(folder: Path, kind: str, patch: int, vision: dict[str, Any], **text: Any) -> None:
    t = tokenizer(*QWEN, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    t.image_token, t.video_token = "<|image_pad|>", "<|video_pad|>"
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    start, end, image, video = (t.convert_tokens_to_ids(f"<|{name}|>") for name in names)
    ids = {"image_token_id": image, "video_token_id": video}
    ids |= {"vision_start_token_id": start, "vision_end_token_id": end}
    tower = {"num_heads": 2, "patch_size": patch, "spatial_merge_size": 2, "temporal_patch_size": 2, **vision}
    config = getattr(tf, f"{kind}Config")(text_config=text_of(t, **text), vision_config=tower, **ids)
    side = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2}
    limits = {"shortest_edge": (patch * 2) ** 2 * 4, "longest_edge": (patch * 2) ** 2 * 256}
    base = "Qwen3VL" if kind.startswith("Qwen3") else kind
    video_base = "Qwen3VL" if base == "Qwen3VL" else "Qwen2VL"
    video_processor = getattr(tf, f"{video_base}VideoProcessor")(**side)
    # alike for pictures and videos, as in published checkpoints: vLLM normalises both with the pictures' own
    same = {name: list(getattr(video_processor, name)) for name in ("image_mean", "image_std")}
    processor = getattr(tf, f"{base}Processor")(
        image_processor=tf.Qwen2VLImageProcessor(**side, size=limits, **same),
        tokenizer=t,
        video_processor=video_processor,
    )
    saved(folder, getattr(tf, f"{kind}ForConditionalGeneration")(config), processor)


def qwen2_vl(folder: Path) -> None:
    vision = {"depth": 3, "embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2}
    _qwen_like(folder, "Qwen2VL", 14, vision, rope_parameters={**MROPE, "mrope_section": [4, 6, 6]})


def qwen2_5_vl(folder: Path) -> None:
    vision = {"depth": 3, "hidden_size": 64, "intermediate_size": 96, "out_hidden_size": 128, "window_size": 56}
    vision |= {"fullatt_block_indexes": [1, 2], "tokens_per_second": 2}
    _qwen_like(folder, "Qwen2_5_VL", 14, vision, rope_parameters={**MROPE, "mrope_section": [4, 6, 6]})


DEEPSTACK = {"depth": 4, "hidden_size": 64, "intermediate_size": 96, "out_hidden_size": 128}
DEEPSTACK |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}  # type: ignore[dict-item]
INTERLEAVED = {**MROPE, "mrope_section": [6, 5, 5], "mrope_interleaved": True}


def qwen3_vl(folder: Path) -> None:
    _qwen_like(folder, "Qwen3VL", 16, DEEPSTACK, head_dim=32, rope_parameters=INTERLEAVED)


def qwen3_vl_moe(folder: Path) -> None:
    sparse = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "decoder_sparse_step": 1}
    sparse["norm_topk_prob"] = True  # vLLM reads it; transformers no longer writes it
    _qwen_like(folder, "Qwen3VLMoe", 16, DEEPSTACK, head_dim=32, rope_parameters=INTERLEAVED, **sparse)


def glm4v(folder: Path) -> None:
    marks = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")
    special = ("<|endoftext|>", "<|user|>", *marks, "<|image|>", "<|video|>")
    t = tokenizer(*special, eos_token="<|user|>", pad_token="<|endoftext|>")
    t.image_token, t.video_token = "<|image|>", "<|video|>"
    names = ("image_start", "image_end", "video_start", "video_end", "image", "video")
    ids = dict(zip((f"{n}_token_id" for n in names), map(t.convert_tokens_to_ids, special[2:]), strict=True))
    tower = {"num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "depth": 3}
    tower |= {"hidden_size": 64, "intermediate_size": 96, "out_hidden_size": 128, "image_size": 112}
    text = text_of(t, rope_parameters={**MROPE, "partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3]})
    config = tf.Glm4vConfig(text_config=text, vision_config=tower, **ids)
    side = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    limits = {"shortest_edge": 28**2 * 4 * 2, "longest_edge": 28**2 * 256 * 2}
    processor = tf.Glm4vProcessor(
        image_processor=tf.Glm4vImageProcessor(**side, size=limits),
        tokenizer=t,
        video_processor=tf.Glm4vVideoProcessor(**side),
    )
    saved(folder, tf.Glm4vForConditionalGeneration(config), processor)


def internvl(folder: Path) -> None:
    special = ("<pad>", "</s>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    names = dict(
        zip(("start_image_token", "end_image_token", "context_image_token", "video_token"), special[2:], strict=True)
    )
    t = tokenizer(*special, pad_token="<pad>", eos_token="</s>", extra_special_tokens=names)
    vision = tf.InternVLVisionConfig(**TOWER, image_size=[56, 56], patch_size=[14, 14])
    config = tf.InternVLConfig(
        vision_config=vision,
        text_config=tf.Qwen2Config(**text_of(t)),
        image_token_id=t.context_image_token_id,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    size = {"height": 56, "width": 56}
    images = tf.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = tf.InternVLProcessor(
        image_processor=images, tokenizer=t, video_processor=tf.InternVLVideoProcessor(size=size), image_seq_length=4
    )
    saved(folder, tf.InternVLForConditionalGeneration(config), processor)


def gemma3(folder: Path) -> None:
    special = ("<pad>", "<eos>", "<bos>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")
    newlines = ("\n", "\n\n", "\n\n\n", "\n\n\n\n")
    names = dict(zip(("boi_token", "eoi_token", "image_token"), special[3:], strict=True))
    t = tokenizer(
        *special, *newlines, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", extra_special_tokens=names
    )
    open_, close, image = map(t.convert_tokens_to_ids, special[3:])
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    text = tf.Gemma3TextConfig(
        **text_of(t), head_dim=32, query_pre_attn_scalar=32, sliding_window=64, layer_types=kinds
    )
    vision = tf.SiglipVisionConfig(**TOWER, image_size=112, patch_size=14, vision_use_head=False)
    config = tf.Gemma3Config(
        vision_config=vision,
        text_config=text,
        image_token_id=image,
        boi_token_index=open_,
        eoi_token_index=close,
        mm_tokens_per_image=16,
    )
    config.image_token_index = image
    images = tf.Gemma3ImageProcessor(size={"height": 112, "width": 112}, image_seq_length=16)
    saved(folder, tf.Gemma3ForConditionalGeneration(config), tf.Gemma3Processor(images, t, image_seq_length=16))


CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    f.__name__: f
    for f in (
        llava,
        llava_next,
        llava_onevision,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        qwen3_vl_moe,
        glm4v,
        internvl,
        gemma3,
    )
}
PLACEHOLDERS = {
    "llava": "<image>",
    "llava_next": "<image>",
    "llava_onevision": "<image>",
    "glm4v": "<|begin_of_image|><|image|><|end_of_image|>",
    "internvl": "<IMG_CONTEXT>",
    "gemma3": "<start_of_image>",
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), "<|vision_start|><|image_pad|><|vision_end|>"
    ),
}
