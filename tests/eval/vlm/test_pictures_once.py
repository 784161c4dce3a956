"""Equal pictures and options give the outputs of last time; nothing else does."""

from __future__ import annotations

import pytest
import torch
from bench_world import world
from PIL import Image

from vtc.eval.vlm.loading import load_model
from vtc.eval.vlm.pictures_once import pictures_once
from vtc.eval.vlm.prompts import chat_inputs


@pytest.fixture(scope="module")
def processor():
    return load_model(str(world()[0])).processor


def inputs(processor, picture: Image.Image, question: str = "what?", **options):
    return chat_inputs(processor, question, [{"type": "image", "image": picture}], **options)


def counted(processor, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    runs, real = [], type(processor.image_processor).preprocess
    monkeypatch.setattr(
        type(processor.image_processor),
        "preprocess",
        lambda self, images, *args, **options: runs.append(images) or real(self, images, *args, **options),
    )
    return runs


def test_questions_about_a_picture_share_its_run(processor, monkeypatch: pytest.MonkeyPatch):
    red, blue = (Image.new("RGB", (40, 30), color) for color in ("red", "blue"))
    asked = [(red, "what?"), (red.copy(), "where?"), (blue, "what?"), (blue, "where?"), (red, "why?")]
    wanted = [inputs(processor, *each) for each in asked]
    runs = counted(processor, monkeypatch)
    with pictures_once(processor):
        found = [inputs(processor, *each) for each in asked]
    assert len(runs) == 3
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_other_options_and_pictures_with_more_than_pixels_run_anew(processor, monkeypatch: pytest.MonkeyPatch):
    picture = Image.new("RGB", (40, 30), "red")
    runs = counted(processor, monkeypatch)
    with pictures_once(processor):
        plain = inputs(processor, picture)["pixel_values"]
        other = inputs(processor, picture, do_normalize=False)["pixel_values"]
        assert not torch.equal(plain, other)
        assert torch.equal(inputs(processor, picture)["pixel_values"], plain)
        before = len(runs)
        for _ in range(2):
            processor.image_processor(Image.new("P", (40, 30), 1), return_tensors="pt")
        assert (before, len(runs)) == (3, 5)


def test_the_processor_is_as_before(processor):
    with pytest.raises(KeyError), pictures_once(processor):
        raise KeyError
    assert "preprocess" not in vars(processor.image_processor)
    with pictures_once(processor), pictures_once(processor):  # the inner one does nothing
        inputs(processor, Image.new("RGB", (40, 30)))
    assert "preprocess" not in vars(processor.image_processor)
    with pictures_once(object()):
        pass
