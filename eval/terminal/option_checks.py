"""Checks of options that several jobs share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


LARGEST = 65500  # pixels of a side
DTYPES = ("auto", "float32", "bfloat16", "float16")
# what torch.device takes, known before torch is imported
DEVICES = (
    *("auto", "cpu", "cuda", "ipu", "xpu", "mkldnn", "opengl", "opencl", "ideep", "hip", "ve", "fpga", "maia", "xla"),
    *("lazy", "vulkan", "mps", "meta", "hpu", "mtia", "privateuseone"),
)


def check_choice(option: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a value that is none of those allowed.

    Raises
    ------
    ValueError
        Naming the option, the value and what is allowed.
    """
    choices = list(allowed)
    if value not in choices:
        raise ValueError(f"{option} {value!r} is unknown: allowed are {', '.join(choices)}")


def picture_size(text: str) -> tuple[int, int]:
    """Width and height of ``--image 1280x960``.

    Raises
    ------
    ValueError
        For anything else.
    """
    found = re.fullmatch(r"\s*(\d{1,5})\s*[xX×]\s*(\d{1,5})\s*", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not all(1 <= side <= LARGEST for side in size):
        raise ValueError(f"--image {text!r} must be WIDTHxHEIGHT in pixels from 1 to {LARGEST}, such as 1280x960")
    return size


def check_device_name(name: str) -> None:
    """Refuse a word that is no kind of device; others than torch's own may be a backend's that is installed.

    Raises
    ------
    ValueError
        If there is no such kind.
    """
    if name.partition(":")[0] not in DEVICES and not entry_points(group="torch.backends"):
        raise ValueError(f"device {name!r} is unknown: try cpu or cuda")


def device_of(name: str) -> torch.device:
    """The device that ``--device`` names; ``auto`` is a GPU if there is one.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    import torch

    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is unknown: try cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here; leave --device out or say --device cpu")
    return device


def request_counts(text: str) -> list[int]:
    """The numbers of ``--batch 1,8,32``.

    Raises
    ------
    ValueError
        For anything else.
    """
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found or not all(part.isdigit() and int(part) >= 1 for part in found):
        raise ValueError(f"--batch {text!r} must be numbers of requests >= 1, comma-separated, such as 1,8,32")
    return list(dict.fromkeys(map(int, found)))
