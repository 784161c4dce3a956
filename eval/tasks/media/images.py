"""Reading a picture that somebody else made, safely."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000


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
        If it is no readable picture or a too large one.
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
                width, height = im.size
                if width * height > max_pixels:
                    size = f"{width} x {height} pixels, allowed are {max_pixels:,}"
                    raise ValueError(f"{name} is too large: {size}; scale it down first")
                return ImageOps.exif_transpose(im).convert("RGB")
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
