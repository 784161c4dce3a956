"""Where the bundled model and its evaluation set lie."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

BUNDLED = Path(str(files("vtc.eval"))) / "bundled"
MODELS = {"bundled": "model", "bundled-tokenflex": "tokenflex"}
REAL = {"bundled-real": 224, "bundled-real-518": 518}
"""Name -> pixels along a side of its pictures."""
NAMES = (*MODELS, *REAL)


def _existing(name: str) -> Path:
    path = BUNDLED / name
    if not path.is_dir():
        raise FileNotFoundError(f"the bundled {name} is missing from this installation ({path}); reinstall vtc")
    return path


def bundled_model_path(name: str = "bundled") -> Path:
    """Folder of a bundled LLaVA model and its processor.

    Parameters
    ----------
    name : str
        One of :data:`NAMES`. ``"bundled-tokenflex"`` is fine-tuned under ``tokenflex``, whose network lies beside the
        methods; ``"bundled-real"`` is put together once from two packages with pretrained weights.

    Raises
    ------
    FileNotFoundError
        If one of those packages is missing (the message says how to install it), or this installation is damaged.
    """
    if name in REAL:
        from .real.folder import real_model_folder

        return real_model_folder(REAL[name], _existing("real") / "adapter.safetensors")
    return _existing(MODELS[name])


def bundled_data() -> Path:
    """Folder of the bundled evaluation set, see ``vtc.eval.tasks.reading.load.load_tasks``."""
    return _existing("data")


def bundled_digits_path() -> Path:
    """Folder of the small digit classifier in timm's ``local-dir:`` format, with its held-out pictures."""
    return _existing("digits")
