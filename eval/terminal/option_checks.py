"""Checks of options that several jobs share."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from importlib.metadata import entry_points
from pathlib import Path
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


def check_file(option: str, path: Path | None) -> None:
    """Refuse what is no file.

    Raises
    ------
    ValueError
        Naming the option and the path.
    """
    if path is not None and not path.is_file():
        raise ValueError(
            f"{option}: {path} is a folder, not a file" if path.is_dir() else f"{option}: no such file: {path}"
        )


def check_output_file(option: str, path: Path) -> None:
    """Refuse a file to be that is a folder, or whose folder is not there.

    Raises
    ------
    ValueError
        Naming the option and the folder.
    """
    if not path.resolve().parent.is_dir():
        raise ValueError(f"{option}: no such folder: {path.resolve().parent}")
    if path.is_dir():
        raise ValueError(f"{option}: {path} is a folder")


def check_output_folder(option: str, path: Path | None) -> None:
    """Refuse a folder to be that can't be made, because there is a file.

    Raises
    ------
    ValueError
        Naming the option and the file.
    """
    for place in () if path is None else (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"{option}: {place} is a file; name a folder, which is made if it is not there")


def token_counts(text: str) -> list[int]:
    """The numbers of ``--tokens 576,2880``.

    Raises
    ------
    ValueError
        If they are no ints of at least 2.
    """
    found = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(found) < 2:
        raise ValueError(f"--tokens must be ints >= 2, separated by commas, e.g. 576,2880; got {text!r}")
    return found


def check_not_empty(option: str, values: Collection[object], example: str) -> None:
    """Refuse a list without entries.

    Raises
    ------
    ValueError
        Naming the option, with an example.
    """
    if not values:
        raise ValueError(f"{option} is empty: say for example {option} {example}")


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
    kind, colon, index = name.partition(":")
    if (kind not in DEVICES or (colon and not index.isdecimal())) and not entry_points(group="torch.backends"):
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
