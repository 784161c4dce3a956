"""Pictures of other depths and shapes than 8 bits and a few thousand pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vtc.eval.tasks.media.images import MAX_RATIO, as_rgb, open_image

RAMP = (np.linspace(0, 1, 256)[None].repeat(4, 0) * 65535).round().astype(np.uint16)


@pytest.mark.parametrize("file", ["gray.png", "gray.tiff", "turned.png"])
def test_sixteen_bits_of_gray_are_scaled_not_clipped(file: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    if file == "turned.png":
        exif[0x0112] = 3  # upside down
    Image.fromarray(RAMP).save(tmp_path / file, exif=exif)
    found = np.asarray(open_image(tmp_path / file))
    wanted = np.arange(256)[None].repeat(4, 0)
    assert np.array_equal(found[..., 0], wanted[::-1, ::-1] if len(exif) else wanted)
    assert np.array_equal(found[..., 0], found[..., 2])


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_of_either_byte_order(kind: str) -> None:
    picture = Image.fromarray(RAMP.astype(kind))
    assert np.array_equal(np.asarray(as_rgb(picture))[0, :, 1], np.arange(256))


@pytest.mark.parametrize(("kind", "word"), [(np.float32, "a float"), (np.int32, "an integer")])
def test_thirty_two_bits_are_refused(kind: type, word: str, tmp_path: Path) -> None:
    Image.fromarray((RAMP / 65535).astype(kind)).save(tmp_path / "deep.tiff")
    with pytest.raises(ValueError, match=rf"a pixel of .*deep\.tiff is {word} of 32 bits"):
        open_image(tmp_path / "deep.tiff")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_what_has_eight_bits_is_as_pillow_converts_it(mode: str, tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5).convert(mode)
    file = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    picture.save(file)
    assert np.array_equal(np.asarray(open_image(file)), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode: str, tmp_path: Path) -> None:
    """Black ink on a transparent ground is no black page."""
    if mode == "P":
        picture = Image.new("P", (3, 1))
        picture.putpalette([0, 0, 0, 0, 0, 0, 200, 0, 0])
        picture.putdata([0, 1, 2])
        picture.save(tmp_path / "a.png", transparency=0)
        wanted = [(255, 255, 255), (0, 0, 0), (200, 0, 0)]
    else:
        clear, ink, half = ((0, 0, 0, a) for a in (0, 255, 51))
        picture = Image.new("RGBA", (3, 1))
        picture.putdata([clear, ink, half])
        picture.convert(mode).save(tmp_path / "a.png")
        wanted = [(255, 255, 255), (0, 0, 0), (204, 204, 204)]
    found = np.asarray(open_image(tmp_path / "a.png"))
    assert [tuple(map(int, pixel)) for pixel in found[0]] == wanted


def test_a_picture_that_a_processor_would_blow_up_is_refused(tmp_path: Path) -> None:
    for size in ((MAX_RATIO, 1), (1, MAX_RATIO + 1)):
        Image.new("L", size).save(tmp_path / "long.png")
        if max(size) == MAX_RATIO:
            assert open_image(tmp_path / "long.png").size == size
            continue
        with pytest.raises(ValueError, match=r"long\.png is too long: 1 x 201 pixels, one side may be 200 times"):
            open_image(tmp_path / "long.png")
