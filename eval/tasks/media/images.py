"""Reading a picture that somebody else made, safely."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000
MAX_RATIO = 200
"""Of a picture's sides, as Qwen's processors allow; those that scale the shorter side up make of 1 x 5,000 pixels
564 million."""


@contextmanager
def no_torn_files() -> Iterator[None]:
    """Refuse cut-off files even where another library has allowed them for the whole process."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def check_image(data: bytes, formats: tuple[str, ...] | None = None) -> tuple[int, int]:
    """Width and height as a picture's header says; nothing is decoded.

    Raises
    ------
    ValueError
        If it is none of Pillow's `formats` (all where left out), or its header is broken.
    PIL.Image.DecompressionBombError
        If it is beyond what Pillow reads at all.
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats) as im:
            return im.size
    except (OSError, SyntaxError, EOFError) as e:
        raise ValueError(f"no picture: {e}") from None


def is_too_long(width: int, height: int) -> bool:
    """Whether a side is more than ``MAX_RATIO`` times the other."""
    return max(width, height) > MAX_RATIO * min(width, height)


def check_size(width: int, height: int, max_pixels: int, name: str) -> None:
    """Refuse a picture that is too large, or becomes so where a processor scales its shorter side up.

    Raises
    ------
    ValueError
        If it has more pixels than `max_pixels`, or a side is more than ``MAX_RATIO`` times the other.
    """
    if width * height > max_pixels:
        raise ValueError(
            f"{name} is too large: {width} x {height} pixels, allowed are {max_pixels:,}; scale it down first"
        )
    if is_too_long(width, height):
        raise ValueError(
            f"{name} is too long: {width} x {height} pixels, one side may be {MAX_RATIO} times the other; cut it first"
        )


def as_rgb(picture: Image.Image, name: str = "the picture") -> Image.Image:
    """A picture with 8 bits a channel, what is transparent on white.

    Pillow's ``convert`` would clip more bits to white, and show what colour lies under transparent pixels, often black.

    Raises
    ------
    ValueError
        If it has 32 bits a pixel, integer or float, of which nobody says what is white.
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):  # whose gray has 16 bits
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        kind = "an integer" if picture.mode == "I" else "a float"
        raise ValueError(
            f"a pixel of {name} is {kind} of 32 bits, and nothing says which is white: "
            "save it with 8 or 16 bits a channel"
        )
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        over = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return picture.convert("RGB")


def open_image(
    source: str | Path | bytes,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    """Decode a picture as RGB, turned as its EXIF tag says.

    Parameters
    ----------
    source : str, Path or bytes
        A file or its content.
    name : str, optional
        How error messages call it.
    max_pixels : int
        Larger pictures are refused before they are decoded.
    formats : tuple of str, optional
        Pillow's names of those that are read; all that it knows where left out.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no readable picture, a too large or too long one, or one of 32 bits a pixel.
    """
    name = name or (str(source) if not isinstance(source, bytes) else "the image")
    if not isinstance(source, bytes):
        path = Path(source)
        if address := re.match(r"https?:/+(.*)", str(source)):  # a Path has one slash only
            raise ValueError(f"the image {address[1]} is an address on the web: download it and give the file")
        if not path.exists():
            raise FileNotFoundError(f"no such image: {name}")
        if not path.is_file():
            raise ValueError(f"{name} is not a file")
    try:
        with warnings.catch_warnings(), no_torn_files():
            # our own limit below is the lower one; Pillow's would only warn
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as im:
                check_size(im.width, im.height, max_pixels, name)
                form, turned = im.format, ImageOps.exif_transpose(im)
                turned.format = form  # a turned copy has lost it
                return as_rgb(turned, name)
    except Image.DecompressionBombError as e:
        raise ValueError(f"{name} is too large to decode: {e}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not an image that Pillow can read") from None
    except (OSError, SyntaxError, EOFError) as e:  # what Pillow's decoders raise on broken files
        raise ValueError(f"{name} cannot be read as an image: {e}") from None


def as_data_url(picture: Image.Image, level: int = 6) -> str:
    """A picture as a PNG's data URL, compressed as much as `level`, 0 to 9, says."""
    data = io.BytesIO()
    picture.save(data, format="PNG", compress_level=level)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
