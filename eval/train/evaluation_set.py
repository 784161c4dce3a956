"""Reading a bundled folder: the evaluation set and the model's own view of its images."""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from vtc.eval.train.scenes.build_evaluation_set import IMAGES_FILE, QUESTIONS_FILE
from vtc.eval.train.scenes.questions import Question

_BATCH = 8


@dataclass(frozen=True)
class Sample:
    """One image of the evaluation set with all its questions."""

    image_id: str
    image: Image.Image
    questions: list[Question]


@dataclass(frozen=True)
class Encoded:
    """What selectors see of one image: projected tokens and the class token's attention."""

    projected: Tensor
    attention: Tensor
    questions: list[Question]


def load_samples(folder: Path) -> list[Sample]:
    """Read the evaluation set.

    Parameters
    ----------
    folder : Path
        Holds the images and the questions as parquet files.
    """
    asked: dict[str, list[Question]] = defaultdict(list)
    for row in pq.read_table(folder / QUESTIONS_FILE).to_pylist():
        asked[row["image_id"]].append(Question(row["task"], row["question"], row["answer"]))
    samples = []
    for row in pq.read_table(folder / IMAGES_FILE).to_pylist():
        image = Image.open(io.BytesIO(row["image"])).convert("RGB")
        samples.append(Sample(row["image_id"], image, asked[row["image_id"]]))
    return samples


def load_model(folder: Path) -> LlavaForConditionalGeneration:
    """Load the model in float32 with attention weights available."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def encode_samples(model: LlavaForConditionalGeneration, folder: Path, samples: list[Sample]) -> list[Encoded]:
    """Encode images as the model itself does.

    Parameters
    ----------
    model : LlavaForConditionalGeneration
        From :func:`load_model`.
    folder : Path
        The model's folder, for its processor.
    samples : list of Sample
        What to encode.
    """
    processor = AutoProcessor.from_pretrained(folder).image_processor
    encoded = []
    for start in range(0, len(samples), _BATCH):
        group = samples[start : start + _BATCH]
        pixels = processor(images=[s.image for s in group], return_tensors="pt")["pixel_values"]
        output = model.model.vision_tower(pixels, output_hidden_states=True, output_attentions=True)
        features = output.hidden_states[-2][:, 1:]
        projected = model.model.multi_modal_projector(features)
        attention = output.attentions[-2][:, :, 0, 1:].mean(dim=1)
        for index, sample in enumerate(group):
            encoded.append(Encoded(projected[index], attention[index], sample.questions))
    return encoded
