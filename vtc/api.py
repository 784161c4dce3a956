"""compress, restore, compressed, load: wrap a stock model in place, and unwrap it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any, TypeVar

from torch import nn

from vtc.models.adapter import Adapter
from vtc.models.layout.model_parts import locate, unwrap
from vtc.models.tower.bare_vit import VitAdapter, is_vit
from vtc.pruners.base import Pruner
from vtc.pruners.vtc_warning import VTCWarning

from . import saving
from .config import CONFIG_NAME, VTCConfig, find_config
from .default_method import KEEP, METHOD, NAME
from .model_sources import HUB_KEYS, check_family, explained, find_source
from .nested_blocks import blocks_of
from .pipeline_text import Pipeline, parse
from .version import warn_untested
from .vtc_attribute import Handle, carry, drop, handle_of

M = TypeVar("M", bound=nn.Module)


def compress(
    model: M,
    pruner: str | Pruner | Iterable[Pruner] | VTCConfig | Mapping[str, Any] | None = None,
    *,
    keep: int | float | None = None,
    positions: str | None = None,
    parts: Mapping[str, str] | None = None,
    tokenizer: Any = None,
    **params: Any,
) -> M:
    """Wrap a stock model in place, so that every prefill drops visual tokens.

    Parameters
    ----------
    model : nn.Module
        A transformers VLM of a known family (bare, inside PEFT, compiled, or dispatched by accelerate), or a timm or
        open_clip ViT. Wrapping a wrapped model replaces its set-up.
    pruner : str, Pruner, iterable of Pruner, VTCConfig or mapping
        A method's name (see ``vtc.list_pruners()``), a pipeline such as
        ``"uniform(keep=0.5) + random(layer=8, keep=0.1)"``, an instance, or a whole configuration. None is vtc's
        default for VLMs (docs/default-method.md).
    keep : int or float, optional
        What is kept: an int >= 1 is tokens per image (``keep=1`` is one token), a float in (0, 1] the fraction of the
        image's tokens (``keep=1.0`` is all of them). A quarter if neither method nor `keep` is given.
    positions : {"keep", "compact"}, optional
        Whether kept tokens keep their original position ids. Default ``"keep"``.
    parts : mapping, optional
        Module paths for an unknown family, see ``VTCConfig``.
    tokenizer : tokenizer or processor, optional
        For methods that read the question's words (``uses_question``); also ``model.vtc.tokenizer``. Without it, the
        one beside the model's files is loaded when first needed, if it is on this machine.
    **params
        Parameters of the method.

    Returns
    -------
    nn.Module
        The same object; ``model.vtc.report`` says what the last prefill did, ``vtc.restore(model)`` unwraps.

    Raises
    ------
    TypeError, ValueError
        For bad arguments; the model stays as it was, wrapped or not.
    NotImplementedError
        For models that cannot be wrapped, with what to do instead.
    RuntimeError
        If an inner part of the model is wrapped by itself.

    Examples
    --------
    >>> model = vtc.compress(model)  # a quarter of each picture's tokens  # doctest: +SKIP
    >>> model = vtc.compress(model, "dart", keep=64)  # doctest: +SKIP
    """
    warn_untested()
    if isinstance(pruner, Mapping):
        pruner = VTCConfig.from_dict(pruner)
    if isinstance(pruner, VTCConfig):
        positions = pruner.positions if positions is None else positions
        parts = pruner.parts if parts is None else parts
    pipeline = _pipeline(pruner, keep, params)
    positions = "keep" if positions is None else positions
    target = unwrap(model) if isinstance(model, nn.Module) else model
    if pruner is None and isinstance(target, nn.Module) and is_vit(target):
        raise ValueError(f"vtc's default method, {NAME}, is for VLMs; name one for this ViT, such as 'tome'")
    adapter: Adapter | VitAdapter
    if isinstance(target, nn.Module) and is_vit(target):
        adapter = VitAdapter(target, pipeline)
    else:
        adapter = Adapter(locate(model, parts), pipeline, positions)
    saved = _config(pipeline, positions=positions, parts=dict(parts) if parts else None)
    before = handle_of(model)
    handle = Handle(adapter, pipeline, saved)
    if tokenizer is None and before is not None:
        tokenizer = before.tokenizer
    if tokenizer is not None:
        handle.tokenizer = tokenizer
    if before is not None:
        before.adapter.detach()
    try:
        adapter.attach()
    except BaseException:
        if before is not None:
            before.adapter.attach()
        raise
    carry(model, handle)
    return model


def restore(model: M) -> M:
    """Unwrap a model: hooks, configs and attributes are as before ``compress``. Does nothing to an unwrapped model.

    If it was saved while it was wrapped, or loaded with its ``vtc_config.json``, its ``save_pretrained`` stays in our
    hands for one thing: where the plain model is saved over that folder, the file goes, so that it loads plain.

    Raises
    ------
    TypeError
        If `model` is no torch module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module, got {type(model).__name__}")
    handle = handle_of(model)
    if handle is not None:
        handle.adapter.detach()
        drop(model)
    return model


@contextmanager
def compressed(model: M, pruner: Any = None, **kwargs: Any) -> Iterator[M]:
    """``compress`` for the length of a ``with`` block; afterwards the model is as it was before it, wrapped or not.

    Blocks of one model may end in any order (threads, an ``ExitStack``): the newest that is still open counts.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module, got {type(model).__name__}")
    blocks = blocks_of(unwrap(model))
    with blocks.lock:
        before = handle_of(model)
        compress(model, pruner, **kwargs)
        block = blocks.begin(before)
    try:
        yield model
    finally:
        with blocks.lock:
            newest, before = blocks.end(block)
            if newest:
                restore(model)
                if before is not None:
                    before.adapter.attach()
                    carry(model, before)


def load(
    path_or_id: str | os.PathLike[str],
    pruner: str | Pruner | Iterable[Pruner] | VTCConfig | None = None,
    *,
    keep: int | float | None = None,
    positions: str | None = None,
    parts: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    **from_pretrained_kwargs: Any,
) -> Any:
    """Load a model with ``AutoModelForImageTextToText`` and wrap it.

    Parameters
    ----------
    path_or_id : str or path
        A folder, a hub id, or ``"bundled"`` for the small model that comes with vtc (``"bundled-tokenflex"``:
        fine-tuned under ``tokenflex``; ``"bundled-real"``: with pretrained weights out of two packages,
        docs/real-model.md). A ``vtc_config.json`` beside the model's files is applied when `pruner` is
        None; without one the model comes unwrapped, with a warning.
    pruner, keep, positions, parts
        As for ``compress``. `keep` alone overrides the saved one; where nothing is saved, it is the default method's.
    params : mapping, optional
        The method's parameters.
    tokenizer : tokenizer or processor, optional
        As for ``compress``; a method that reads the question gets the model's own by default.
    **from_pretrained_kwargs
        Passed on, e.g. ``dtype``, ``device_map``, ``attn_implementation``. Code from the repository is run only with
        ``trust_remote_code=True``.

    Raises
    ------
    OSError
        If there is no such model, or its files are damaged; the message is one line.
    TypeError, ValueError, NotImplementedError
        As ``compress``; bad arguments and unknown families are found before the model is loaded.

    Examples
    --------
    >>> model = vtc.load("bundled", "dart", keep=64)  # doctest: +SKIP
    """
    name = str(path_or_id) if isinstance(path_or_id, (str, os.PathLike)) else ""
    hub = {k: v for k, v in from_pretrained_kwargs.items() if k in HUB_KEYS}
    chosen: Any = pruner
    path = None if pruner is not None and name else find_source(path_or_id)  # a pruner is checked first, as it is quick
    if path is not None and chosen is None:
        found = find_config(path, **hub)
        chosen = VTCConfig.from_pretrained(path, **hub) if found is not None else None
    if chosen is None and (keep is not None or params):
        chosen = METHOD
    extra = dict(params or {})
    pipeline = () if chosen is None else _pipeline(chosen, keep, extra)  # fails before the model is read
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    path = path or find_source(path_or_id)
    named = parts or (isinstance(chosen, VTCConfig) and chosen.parts)
    if chosen is not None and not named and not from_pretrained_kwargs.get("trust_remote_code"):
        check_family(path, **hub)
    with explained(name, path), _misplaced(pipeline, from_pretrained_kwargs):
        model = AutoModelForImageTextToText.from_pretrained(path, **from_pretrained_kwargs)
    if chosen is None:
        warnings.warn(
            f"{name!r} has no {CONFIG_NAME}: nothing was applied, the model is the stock one. Name a method, as in "
            f"vtc.load({name!r}, 'dart', keep=64), or leave vtc out",
            VTCWarning,
            stacklevel=2,
        )
        return model
    if tokenizer is None and any(p.uses_question for p in pipeline):
        with suppress(OSError, ValueError):  # the method says so when it asks
            tokenizer = AutoTokenizer.from_pretrained(path, **hub)
    compress(model, chosen, keep=keep, positions=positions, parts=parts, tokenizer=tokenizer, **extra)
    if pruner is None:
        saving.note(model, path)
    return model


@contextmanager
def _misplaced(pipeline: Pipeline, given: Mapping[str, Any]) -> Iterator[None]:
    """Say where a method's parameter belongs that ``from_pretrained`` does not know."""
    try:
        yield
    except TypeError as error:
        for pruner in pipeline:
            for name in {f.name for f in fields(pruner)} & {*given}:
                if repr(name) in str(error):
                    raise TypeError(
                        f"{name} is a parameter of {pruner.name}: write params={{{name!r}: {given[name]!r}}}"
                    ) from None
        raise


def _config(pipeline: Pipeline, **kwargs: Any) -> VTCConfig | None:
    try:
        return VTCConfig.of(pipeline, **kwargs)
    except (TypeError, ValueError):  # an instance of a class that is not registered
        return None


def _pipeline(
    chosen: str | Pruner | Iterable[Pruner] | VTCConfig | None, keep: int | float | None, params: Mapping[str, Any]
) -> Pipeline:
    """The methods that are meant; `keep` and `params` stand over what a configuration says."""
    if chosen is None:
        chosen, keep = METHOD, KEEP if keep is None else keep
    if isinstance(chosen, VTCConfig):
        keep, params, chosen = chosen.keep if keep is None else keep, {**chosen.params, **params}, chosen.pruner
    pipeline = parse(chosen, keep=keep, **params)
    for method in pipeline:
        method.check_files()
    return pipeline
