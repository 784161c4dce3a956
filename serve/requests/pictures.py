"""Pictures that a request brings along: data URLs, looked at before the queue, decoded when their turn comes."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from vtc.eval.tasks.media.images import MAX_RATIO, check_image, is_too_long, open_image

from .fields import object_of, shown, text_of
from .limits import Limits
from .refusal import Refusal

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
DATA_URL = re.compile(r"data:image/[\w.+-]{1,40};base64,", re.ASCII | re.IGNORECASE)
UNREADABLE = "can't be read: it is no whole PNG, JPEG, WebP or GIF"


def address_of(part: Mapping[str, Any], name: str) -> str:
    """The URL of an ``image_url`` part; its ``detail`` may be what it is when left out."""
    given = part.get("image_url")
    given = object_of({"url": given} if isinstance(given, str) else given, f"{name}.image_url")
    odd = [key for key in given if key not in ("url", "detail")]
    if odd:
        raise Refusal(f"{name}.image_url has no field {shown(odd[0])}: url and detail are known", param=name)
    if given.get("detail") not in (None, "auto"):
        raise Refusal(
            f"{name}.image_url.detail must be auto, got {shown(given['detail'])}: what is kept of a picture says keep, "
            'as in "vtc": {"keep": 64}',
            param=name,
        )
    return text_of(given.get("url"), f"{name}.image_url.url")


def is_remote(url: str) -> bool:
    """Whether a picture is named by its address on the web."""
    return url[:8].lower().startswith(("http://", "https://"))


def bytes_of(url: str, name: str) -> bytes:
    """What a data URL holds."""
    found = DATA_URL.match(url)
    if found is None:
        raise Refusal(
            f"{name} must be a data URL such as data:image/png;base64,..., got {shown(url, 24)}",
            param=name,
            code="invalid_image_url",
        )
    try:
        return base64.b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(f"{name} is not valid base64", param=name, code="invalid_base64_image") from None


def check_picture(data: bytes, name: str, limits: Limits) -> None:
    """Refuse by its header what is no picture, or a too large one; nothing is decoded."""
    allowed = f"allowed are {limits.picture_megapixels} million: scale it down"
    try:
        width, height = check_image(data, FORMATS)
    except ValueError:
        raise Refusal(f"{name} {UNREADABLE}", param=name, code="invalid_image") from None
    except Image.DecompressionBombError:
        raise Refusal(f"{name} has far too many pixels, {allowed}", param=name, code="image_too_large") from None
    if width * height > limits.pixels:
        raise Refusal(f"{name} has {width} x {height} pixels, {allowed}", param=name, code="image_too_large")
    if is_too_long(width, height):
        raise Refusal(
            f"{name} has {width} x {height} pixels, one side may be {MAX_RATIO} times the other: cut it",
            param=name,
            code="image_too_large",
        )


def decode(data: bytes, name: str, limits: Limits) -> Image.Image:
    """The picture as RGB."""
    try:
        return open_image(data, name, limits.pixels, FORMATS)
    except ValueError:
        raise Refusal(f"{name} {UNREADABLE}", param=name, code="invalid_image") from None
