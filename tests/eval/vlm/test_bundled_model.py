"""The bundled model loads like any other, keeps its limits and answers its questions."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPModel

import vtc.eval
from vtc.pruners.trained.compressor import SHIPPED

BUNDLED = Path(vtc.eval.__file__).parent / "bundled"
TASKS = ("color", "shape", "exist", "count", "count_more", "spatial", "quadrant", "ocr", "easyvqa")
PER_TASK = 12
LEAST_ACCURACY = 75.0


@pytest.fixture(scope="module")
def model():
    loaded = AutoModelForImageTextToText.from_pretrained(BUNDLED / "model", dtype=torch.float32)
    return loaded.eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(BUNDLED / "model")


@pytest.fixture(scope="module")
def subset():
    rows = pq.read_table(BUNDLED / "data" / "questions.parquet").to_pylist()
    images = {row["image_id"]: row["image"] for row in pq.read_table(BUNDLED / "data" / "images.parquet").to_pylist()}
    chosen = []
    for task in TASKS:
        pool = [row for row in rows if row["task"] == task]
        for row in random.Random(task).sample(pool, PER_TASK):
            chosen.append((row, Image.open(io.BytesIO(images[row["image_id"]])).convert("RGB")))
    return chosen


def answer(model, processor, image: Image.Image, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    assert (inputs.input_ids == model.config.image_token_id).sum() == 576
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    new = output[0, inputs.input_ids.shape[1] :]
    return processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_it_is_a_genuine_llava_of_the_promised_size(model) -> None:
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert model.config.text_config.num_hidden_layers >= 8
    assert model.config.vision_config.image_size == 336
    assert model.config.vision_config.patch_size == 14
    assert sum(f.stat().st_size for f in (BUNDLED / "model").iterdir()) <= 16e6
    files = [file for file in BUNDLED.rglob("*") if file.is_file()]
    real = sum(file.stat().st_size for file in files if file.is_relative_to(BUNDLED / "real"))
    assert real <= 12e6
    assert sum(file.stat().st_size for file in files) - real <= 40e6


def test_it_answers_bundled_questions(model, processor, subset) -> None:
    torch.manual_seed(0)
    right = [answer(model, processor, image, row["question"]) == row["answer"] for row, image in subset]
    assert 100 * sum(right) / len(right) >= LEAST_ACCURACY


def test_it_looks_at_the_image(model, processor, subset) -> None:
    blank = Image.new("RGB", (336, 336), (128, 128, 128))
    open_ended = [row for row, _ in subset if row["task"] in ("color", "shape", "ocr", "quadrant")]
    right = [answer(model, processor, blank, r["question"]) == r["answer"] for r in open_ended]
    assert 100 * sum(right) / len(right) <= 40


def test_model_card_states_what_was_done() -> None:
    card = (BUNDLED / "model" / "README.md").read_text()
    for word in ("Apache-2.0", "easy-vqa", "seed", "python -m vtc.eval.train", "uniformly at random"):
        assert word in card


def test_the_model_fine_tuned_under_tokenflex_reads_few_tokens_better(model, processor, subset) -> None:
    tuned = vtc.load("bundled-tokenflex", keep=16, dtype=torch.float32)
    assert str(tuned.vtc.pipeline[0]) == "tokenflex(keep=16)"
    own = dict(tuned.named_parameters())
    for name, weight in model.named_parameters():
        assert ("vision_tower" in name) is torch.equal(weight, own[name]), name
    with vtc.compressed(model, "pool", keep=16):
        pooled = [answer(model, processor, image, row["question"]) == row["answer"] for row, image in subset]
    right = [answer(tuned, processor, image, row["question"]) == row["answer"] for row, image in subset]
    assert sum(right) >= sum(pooled)
    network = SHIPPED / "tokenflex-bundled.safetensors"
    assert sum(f.stat().st_size for f in (*(BUNDLED / "tokenflex").iterdir(), network)) <= 12e6
    with pytest.raises(ValueError, match=r"that comes with vtc was made for bundled-tokenflex, whose"):
        vtc.load("bundled", "tokenflex", keep=16)


def test_clip_side_shares_the_tower_and_matches_text(model) -> None:
    clip = CLIPModel.from_pretrained(BUNDLED / "clip", dtype=torch.float32).eval()
    # older transformers have one more module in the tower
    own = {n.removeprefix("vision_model."): w for n, w in model.model.vision_tower.state_dict().items()}
    for name, weight in clip.vision_model.state_dict().items():
        torch.testing.assert_close(weight, own[name], rtol=0, atol=0)
    assert (BUNDLED / "clip" / "tokenizer.json").exists()
