"""A tiny random LLaVA with its processor, and tiny evaluation sets, in folders: what the benchmark's tests run on."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

from vtc.bundled_files import bundled_model_path
from vtc.eval.tasks.questions import Question
from vtc.eval.tasks.reading.parquet_set import save_tasks
from vtc.eval.vlm.loading import quiet_transformers

TOKENS = 16  # 56 px, patches of 14
QUESTIONS = {
    "color": ("what color is the circle?", "red"),
    "exist": ("is there a red square in the image?", "yes"),
    "count": ("how many circles are there?", "2"),
}


def png(seed: int, size: tuple[int, int] = (56, 56)) -> bytes:
    """A picture of random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(data, "PNG")
    return data.getvalue()


def save_model(folder: Path, tower: str = "clip") -> Path:
    """A random LLaVA with `TOKENS` visual tokens and four decoder layers; a SigLIP `tower` has no class token."""
    quiet_transformers()
    processor = AutoProcessor.from_pretrained(bundled_model_path())
    processor.image_processor.size = {"shortest_edge": 56}
    processor.image_processor.crop_size = {"height": 56, "width": 56}
    tokenizer = processor.tokenizer
    vision = {
        "model_type": f"{tower}_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": 56, "patch_size": 14,
    }  # fmt: skip
    text = {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "initializer_range": 0.4,
    }  # fmt: skip
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_id=image_token, image_seq_length=TOKENS,
            vision_feature_select_strategy="default" if tower == "clip" else "full",
        )
    )  # fmt: skip
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_data(folder: Path, images: int = 3) -> Path:
    """Three tasks, each with two questions per image."""
    pictures = {f"i{i}": png(i) for i in range(images)}
    questions = [
        Question(f"{image}-{task}-{turn}", task, image, text if turn == 0 else "what is " + text.split()[-1], answer)
        for image in pictures
        for task, (text, answer) in QUESTIONS.items()
        for turn in range(2)
    ]
    return save_tasks(folder, pictures, questions)


@lru_cache(maxsize=1)
def world() -> tuple[Path, Path]:
    """Folders of the model and of the evaluation set, made once per process."""
    import tempfile

    root = Path(tempfile.mkdtemp(prefix="vtc-bench-world-"))
    return save_model(root / "model"), save_data(root / "data")
