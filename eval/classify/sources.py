"""What ``--model timm:...`` and ``open_clip:...`` name, known before torch is imported."""

from __future__ import annotations

from pathlib import Path

from vtc.bundled_files import bundled_digits_path

DIGITS = "timm:digits"
LOCAL = "local-dir:"


def split_source(source: str) -> tuple[str, str, str]:
    """``timm:NAME@FILE`` as kind, name and weights; a folder becomes timm's and open_clip's ``local-dir:FOLDER``.

    Raises
    ------
    ValueError
        For an empty name or missing files.
    """
    kind, _, rest = source.partition(":")
    name, weights = rest, ""
    if "@" in rest and not Path(rest).exists():
        name, _, weights = rest.rpartition("@")
    if not name:
        raise ValueError(f"--model {source!r} names no model: say for example {kind}:vit_small_patch16_224")
    if source == DIGITS:
        name = f"{LOCAL}{bundled_digits_path()}"
    elif Path(name).is_dir():
        name = f"{LOCAL}{name}"
    elif name.startswith((".", "/", "~")):
        raise ValueError(f"--model {source!r}: no such folder: {name}")
    if kind == "timm" and weights and not Path(weights).is_file():
        raise ValueError(f"--model {source!r}: no such file: {weights}")
    return kind, name, weights


def check_source(source: str, data: Path | None) -> Path:
    """Refuse a name that is none, or one that brings no pictures where none are given; returns the pictures' folder.

    Raises
    ------
    ValueError
        Naming the option, its value and what is allowed.
    """
    split_source(source)
    if data is None and source != DIGITS:
        raise ValueError(
            f"--model {source} needs --data FOLDER, with a folder of images for each class; only {DIGITS} brings "
            "its own"
        )
    return data or bundled_digits_path()
