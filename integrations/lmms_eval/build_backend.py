"""lmms-eval's own backends: found by name, placed on this process's device, and built."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

from vtc.pruners.registry import nearest

from .compression import Setup


def find_backend(name: str | None, simple: bool) -> type:
    """The class of a built-in backend.

    Raises
    ------
    ValueError
        Without a name, for an unknown one (the nearest are named), one that can't be imported, and one that runs no
        torch model in this process.
    """
    from lmms_eval import models

    known = [n for n in models.list_available_models(include_aliases=True) if n != "vtc"]
    if name is None:
        raise ValueError("model_args: base is missing, the backend of lmms-eval to use: for example base=llava_hf")
    if name not in known:
        raise ValueError(f"model_args: unknown base {name!r}. {nearest(name, known)}")
    try:
        found = models.MODEL_REGISTRY_V2.get_model_class(name, force_simple=simple)
    except ImportError as error:
        raise ValueError(f"model_args: base {name!r} can't be imported: {error}; install what it needs") from None
    if not hasattr(found, "model"):
        raise ValueError(f"model_args: base {name!r} runs no torch model in this process, there is nothing to compress")
    return found


def accepted_names(backend: type) -> list[str]:
    """Names of the arguments that a backend's constructor, and those that it hands the rest to, declare."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = [
        name
        for cls in backend.__mro__
        if "__init__" in vars(cls)
        for name, parameter in inspect.signature(vars(cls)["__init__"]).parameters.items()
        if parameter.kind in named and name != "self"
    ]
    return list(dict.fromkeys(found))


def placement(backend: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The device and device map that the user did not give, where the backend's own defaults would not work here.

    Those are made for CUDA, and an empty device map is refused by transformers. Several processes with CUDA are left to
    the backend: it gives each its own device.
    """
    import torch

    parameters = inspect.signature(backend).parameters
    if "device_map" not in parameters or arguments.get("device_map"):
        return {}
    cuda = torch.cuda.is_available()
    if cuda and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return {}
    device = str(arguments.get("device") or ("cuda" if cuda else "cpu"))
    if device.startswith("cuda") and parameters["device_map"].default:
        return {}
    return {"device": device, "device_map": device}


def build(setup: Setup, defaults: Mapping[str, Any], simple: bool) -> Any:
    """Build the backend with its model.

    Parameters
    ----------
    setup : Setup
        What to build.
    defaults : mapping
        lmms-eval's command line options, for what the model arguments don't say.
    simple : bool
        Whether lmms-eval asks for the simple form.
    """
    backend = find_backend(setup.base, simple)
    arguments = {**{k: v for k, v in defaults.items() if v is not None}, **setup.arguments}
    lm = backend(**{**arguments, **placement(backend, arguments)})
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and lm.world_size == 1:  # backends know of several processes only with CUDA
        lm._rank, lm._world_size = int(os.environ["RANK"]), world
    return lm
