"""Where a model comes from: the name of a bundled one, a folder, a hub id; and why one of them can't be loaded."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .bundled_files import NAMES, bundled_model_path

BUNDLED = "bundled"
HUB_KEYS = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download", "proxies")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def is_bundled(name: str) -> bool:
    """Whether a name is one of a bundled model."""
    return name in NAMES


def find_source(source: Any) -> str:
    """What ``from_pretrained`` takes for `source`: a folder that is there, or a hub id.

    Parameters
    ----------
    source : str or path
        ``"bundled"`` is the model that comes with vtc, ``"bundled-tokenflex"`` the same fine-tuned under ``tokenflex``,
        ``"bundled-real"`` the one with pretrained weights out of two packages (``vtc.bundled_files`` lists them all).

    Raises
    ------
    TypeError
        If it is no name: a model that is loaded already goes to ``vtc.compress``.
    FileNotFoundError
        If it is neither a folder nor looks like a hub id, or a package that holds its weights is missing.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"vtc.load reads a model by its name: 'bundled', a folder or a hub id; got a {type(source).__name__}. A "
            "model that is loaded already is wrapped by vtc.compress(model, pruner, keep=...)"
        )
    name = os.fspath(source)
    if is_bundled(name):
        return str(bundled_model_path(name))
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file():
        raise FileNotFoundError(f"no such model: {name!r} is a file; give the folder that it lies in")
    if not isinstance(source, str) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"no such model: {name!r} is neither a folder nor a hub id such as llava-hf/llava-1.5-7b-hf; 'bundled' is "
            "the model that comes with vtc"
        )
    return name


def check_family(path: str, **hub: Any) -> None:
    """Refuse a model that vtc can't carry, by its configuration alone.

    Raises
    ------
    NotImplementedError
        Saying why.
    OSError
        If the configuration can't be read.
    """
    from transformers import AutoConfig
    from transformers.utils import find_adapter_config_file

    from vtc.models.layout.families import family_of
    from vtc.models.try_without_weights import refuse_unknown

    if find_adapter_config_file(path, **hub) is not None:  # its base model is named there
        return
    with explained(path):
        config = AutoConfig.from_pretrained(path, **hub)
    if family_of(config) is None:  # what the table knows is wrapped soon enough
        refuse_unknown(config)


@contextmanager
def explained(name: str, path: str | None = None, processor: bool = False) -> Iterator[None]:
    """Have what goes wrong while a model is loaded said in one line.

    Parameters
    ----------
    name : str
        What the user calls the model.
    path : str, optional
        Where its files are, if that is a folder.
    processor : bool
        Whether it is the processor that is loaded.

    Raises
    ------
    OSError
        For whatever ``from_pretrained`` raises about files; errors of the call, such as an unknown argument, are
        passed on.
    """
    # ImportError: a package that this model needs and that is not installed
    expected: tuple[type[Exception], ...] = (OSError, ValueError, KeyError, RuntimeError, ImportError, *damage())
    try:
        yield
    except NotImplementedError:
        raise
    except expected as error:
        why = missing_part(path or name) if processor else None
        raise OSError(f"can't load the model {name!r}: {why or _why(error, path or name)}") from error
    except TypeError as error:
        if not processor:  # an argument of the caller's
            raise
        raise OSError(f"can't load the model {name!r}: {missing_part(path or name) or first_line(error)}") from error


def damage() -> tuple[type[Exception], ...]:
    """What files raise that were cut off."""
    from safetensors import SafetensorError

    return SafetensorError, EOFError, pickle.UnpicklingError


def _why(error: Exception, path: str) -> str:
    if isinstance(error, damage()) or "PytorchStreamReader" in str(error):
        which = _damaged(path) or "a file of its weights"
        return f"{which} is cut off or damaged ({first_line(error)}); copy or download it again"
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other shapes than its config.json says"
    return first_line(error)


def _damaged(path: str) -> str | None:
    """The first of a folder's files of weights that can't be opened."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError):
            return file.name
    return None


def first_line(error: BaseException) -> str:
    """What an error says first: transformers adds pages of advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return " ".join(lines[:2])
    return lines[0] if lines else type(error).__name__


def missing_part(path: str) -> str | None:
    """Which part of a processor has no file in a folder, in words."""
    folder = Path(path)
    parts = (("tokenizer", TOKENIZERS), ("image processor", PROCESSORS)) if folder.is_dir() else ()
    for what, files in parts:
        if not any((folder / file).is_file() for file in files):
            saved = "AutoProcessor.from_pretrained(the original).save_pretrained(folder) writes it"
            return f"it has no {what} ({' or '.join(files[:2])}); {saved}"
    return None
