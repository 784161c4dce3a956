"""Loading a model with its processor, and naming exactly which one it was."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vtc.model_sources import BUNDLED, check_family, explained, find_source
from vtc.version import installed, warn_untested

HASHED_BYTES = 256 << 20


@dataclass
class Loaded:
    """A model in evaluation mode, its processor, and its identity."""

    model: nn.Module
    processor: Any
    name: str
    identity: str


def _identity(path: Path) -> str:
    """Hash of a model folder: the content of its files, of very large ones the size and time of change."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*")):
        if file.suffix not in (".json", ".safetensors", ".bin", ".jinja", ".model"):
            continue
        stat = file.stat()
        digest.update(file.name.encode())
        small = stat.st_size <= HASHED_BYTES
        digest.update(file.read_bytes() if small else f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def quiet_transformers() -> None:
    """Keep transformers' progress bars and advice out of our output."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def load_model(source: str | None = None, device: str = "auto", dtype: str = "auto") -> Loaded:
    """Load a VLM and its processor.

    Parameters
    ----------
    source : str, optional
        A folder or a hub id; None or "bundled" is the bundled model.
    device : str
        A torch device, or "auto": CUDA if there is one.
    dtype : str
        "float32", "bfloat16", "float16", or "auto": float32 on the CPU, the checkpoint's own elsewhere.

    Raises
    ------
    OSError, ValueError, NotImplementedError
        If it can't be loaded, or vtc does not know its family; the message is one line.
    """
    import torch
    import transformers

    from vtc.eval.terminal.option_checks import DTYPES, check_choice, device_of

    quiet_transformers()
    check_choice("dtype", dtype, DTYPES)
    place = device_of(device)
    kind: Any = getattr(torch, dtype) if dtype != "auto" else (torch.float32 if place.type == "cpu" else "auto")
    name = source or BUNDLED
    path = find_source(name)
    warn_untested()
    check_family(path)
    with explained(name, path, processor=True):
        processor = transformers.AutoProcessor.from_pretrained(path)
    with explained(name, path):
        found: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            path, dtype=kind, output_loading_info=True
        )
    model, missing = found[0].to(place).eval(), sorted(found[1]["missing_keys"])
    if missing:  # transformers would put random numbers there, and only warn
        raise ValueError(
            f"can't load the model {name!r}: {len(missing)} weights are not in its files (such as {missing[0]}); were "
            f"they saved by another version of transformers than this, {transformers.__version__}?"
        )
    commit = getattr(model.config, "_commit_hash", None)
    identity = _identity(Path(path)) if Path(path).is_dir() else f"{source}@{commit}"
    return Loaded(model, processor, name, identity)


def software() -> dict[str, str]:
    """Versions of what a result depends on."""
    packages = ("vtc", "torch", "torchvision", "transformers", "numpy", "pillow")
    return {"python": platform.python_version(), **{package: installed(package) for package in packages}}


def hardware(model: nn.Module) -> dict[str, Any]:
    """The machine, as far as timings depend on it."""
    import torch

    device = next(model.parameters()).device
    load = [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None
    about = {
        "device": str(device),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": load,
    }
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    return about


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def config_hash(config: dict[str, Any]) -> str:
    """Short hash of a JSON-like configuration."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
