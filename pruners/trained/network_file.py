"""A trained network as a safetensors file: weights, and metadata that say what they are. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtc.pruners.untrusted_json import parse_json

NAME = "compressor.safetensors"  # in a model's folder, beside vtc_config.json


def format_of(method: str) -> str:
    """What the metadata of a network of `method` call their format."""
    return f"vtc-{method}-1"


def hint(method: str) -> str:
    """How a network of `method` is had."""
    return f"train one: vtc train {method} --model ..., then weights=FILE"


@dataclass
class NetworkFile:
    """What a file holds.

    Attributes
    ----------
    weights : dict of Tensor
        By the names of the network's parameters, as stored.
    about : dict of str
        All metadata.
    sizes : dict
        What the network is built from.
    """

    weights: dict[str, Tensor]
    about: dict[str, str]
    sizes: dict[str, Any]


def network_bytes(
    method: str,
    weights: Mapping[str, Tensor],
    sizes: Mapping[str, Any],
    about: Mapping[str, str],
    dtype: torch.dtype = torch.bfloat16,
) -> bytes:
    """The content of a file with a network's `weights`; floating-point ones become `dtype`.

    Parameters
    ----------
    sizes : mapping
        Plain values that the method's ``build`` makes the same network from.
    about : mapping of str
        Further metadata: the model, recipe, seed, figures.
    """
    from safetensors.torch import save

    stored = {
        name: (x.to(dtype) if x.is_floating_point() else x).detach().cpu().contiguous() for name, x in weights.items()
    }
    metadata = {**about, "format": format_of(method), "sizes": json.dumps(dict(sizes), sort_keys=True)}
    return save(stored, metadata=metadata)


def read_tensors(path: Path, called: str, how: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, which errors name as `called`; `how` another is had.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is none of these.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{called} is no file here; {how}")
    try:
        stored = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{called} is no safetensors file ({error})") from error
    with stored:
        names = stored.keys()  # no mapping
        return {name: stored.get_tensor(name) for name in names}, stored.metadata() or {}


def read_network(path: str | Path, method: str) -> NetworkFile:
    """Read what ``network_bytes`` made for `method`; a folder means the ``compressor.safetensors`` in it.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it holds no network of this method.
    """
    file, called = Path(path), f"{method}.weights={str(path)!r}"
    weights, about = read_tensors(file / NAME if file.is_dir() else file, called, hint(method))
    found = about.get("format")
    if found != format_of(method):
        is_one = f"its format is {found!r}" if found else "its metadata name no format"
        raise ValueError(f"{called} holds no network of {method} ({is_one}, not {format_of(method)!r}); {hint(method)}")
    try:
        sizes = parse_json(about["sizes"])
        if not isinstance(sizes, dict):
            raise ValueError("sizes is no mapping")
    except (KeyError, ValueError) as error:
        raise ValueError(f"{called}: its metadata say no sizes ({error}); {hint(method)}") from error
    return NetworkFile(weights, about, sizes)
