"""What the plugin knows about each family: one row a model class of vLLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Flat = Callable[[Mapping[str, Any]], dict[str, list[int]]]
ARCHITECTURE = "Vtc{}"  # of a stock architecture's name


def _whole(n: int, item: Mapping[str, Any]) -> list[int]:
    """A picture is one span."""
    return [n]


def _tiles(name: str) -> Callable[[int, Mapping[str, Any]], list[int]]:
    """A picture is `name` crops, each a span of its own."""

    def spans(n: int, item: Mapping[str, Any]) -> list[int]:
        count = int(item[name].data)
        return [n // count] * count

    return spans


def _rows_a_picture(given: Mapping[str, Any]) -> dict[str, list[int]]:
    """Every argument has a row for each picture."""
    return {}


def _patches(given: Mapping[str, Any]) -> dict[str, list[int]]:
    """Pixels are patches, as many as the grids say."""
    return {"pixel_values": given["image_grid_thw"].prod(-1).tolist()}


def _crops(name: str) -> Flat:
    """Pixels are crops, as many as `name` says."""
    return lambda given: {"pixel_values": [int(n) for n in given[name]]}


@dataclass(frozen=True)
class Row:
    """A model class of vLLM.

    Attributes
    ----------
    stock : str
        The architecture whose class is extended, as it stands in checkpoints.
    module, model, processor : str
        Where vLLM has it, and the names of its classes there.
    tower : str
        The vision tower's name in it.
    rotary : bool
        Whether positions have several dimensions, so that pictures' tokens keep theirs.
    spans : callable
        Tokens of a picture, and its fields, to the tokens of each of its spans.
    flat : callable
        Arguments of a batch to how many rows each picture has in those that hold them one behind the other.
    cut_tower : bool
        Whether the tower is loaded only up to the layer that the projector reads.
    wrapped : bool
        Whether the processor puts a mark of its own behind a picture's placeholders.
    """

    stock: str
    module: str
    model: str
    processor: str
    tower: str = "vision_tower"
    rotary: bool = False
    spans: Callable[[int, Mapping[str, Any]], list[int]] = _whole
    flat: Flat = _rows_a_picture
    cut_tower: bool = False
    wrapped: bool = False

    @property
    def name(self) -> str:
        """The architecture that ``--hf-overrides`` names."""
        return ARCHITECTURE.format(self.stock)


def _qwen(stock: str, module: str, processor: str, model: str = "") -> Row:
    return Row(stock, module, model or stock, processor, tower="visual", rotary=True, flat=_patches)


ROWS: tuple[Row, ...] = (
    Row(
        "LlavaForConditionalGeneration",
        "llava",
        "LlavaForConditionalGeneration",
        "LlavaMultiModalProcessor",
        cut_tower=True,
    ),
    Row(
        "LlavaNextForConditionalGeneration",
        "llava_next",
        "LlavaNextForConditionalGeneration",
        "LlavaNextMultiModalProcessor",
        cut_tower=True,
    ),
    Row(
        "LlavaOnevisionForConditionalGeneration",
        "llava_onevision",
        "LlavaOnevisionForConditionalGeneration",
        "LlavaOnevisionMultiModalProcessor",
        cut_tower=True,
    ),
    _qwen("Qwen2VLForConditionalGeneration", "qwen2_vl", "Qwen2VLMultiModalProcessor"),
    _qwen("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", "Qwen2_5_VLMultiModalProcessor"),
    _qwen("Qwen3VLForConditionalGeneration", "qwen3_vl", "Qwen3VLMultiModalProcessor"),
    # its processor stands in the dense model's module
    Row(
        "Qwen3VLMoeForConditionalGeneration",
        "qwen3_vl_moe",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3VLMultiModalProcessor",
        tower="visual",
        rotary=True,
        flat=_patches,
    ),
    _qwen("Glm4vForConditionalGeneration", "glm4_1v", "Glm4vMultiModalProcessor"),
    _qwen("Glm4vMoeForConditionalGeneration", "glm4_1v", "Glm4vMultiModalProcessor"),
    Row(
        "InternVLForConditionalGeneration",
        "interns1",
        "InternS1ForConditionalGeneration",
        "InternS1MultiModalProcessor",
        spans=_tiles("image_num_patches"),
        wrapped=True,
        flat=_crops("image_num_patches"),
    ),
    Row(
        "Gemma3ForConditionalGeneration",
        "gemma3_mm",
        "Gemma3ForConditionalGeneration",
        "Gemma3MultiModalProcessor",
        spans=_tiles("num_patches"),
        wrapped=True,
        flat=_crops("num_patches"),
    ),
)


def row_of(architectures: Sequence[str]) -> Row | None:
    """The row of a checkpoint's ``architectures``; None if the plugin has none."""
    return next((row for row in ROWS if row.stock in architectures), None)
