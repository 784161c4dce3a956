"""``--model_args`` of the model ``vtc``: which backend, which method, and what of the rest goes to which of them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vtc.config import POSITIONS
from vtc.eval.vlm.pruning_settings import needs_keep, parse_keep
from vtc.pipeline_text import Pipeline, parse
from vtc.pruners.registry import nearest, pruner_class

from .build_backend import accepted_names, find_backend
from .compression import Setup
from .parse_model_args import read_value, split_arguments

BASELINE = ("none", "unpruned")
ON_ERROR = ("stop", "skip")
OWN = ("base", "method", "pruner", "keep", "positions", "on_error")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"model_args: {name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def _keep(text: str | None) -> int | float | None:
    try:
        return None if text is None else parse_keep(text)
    except ValueError as error:
        raise ValueError(f"model_args: {str(error).replace('--keep', 'keep')}") from None


def _pipeline(method: str | None, keep: int | float | None, params: dict[str, Any]) -> Pipeline:
    if method is None:
        raise ValueError('model_args: say method=NAME or pruner="PIPELINE"; method=none is the unpruned model')
    if method in BASELINE:
        if keep is not None:
            raise ValueError(f"model_args: method={method} takes no keep, got {keep}")
        return ()
    pipeline = parse(method, keep=keep, **params)
    if any(map(needs_keep, pipeline)):
        raise ValueError(f"model_args: {method} needs keep, for example keep=0.25 or keep=64")
    return pipeline


def read_setup(text: str, simple: bool = False) -> Setup:
    """Read and check everything, before any model is loaded.

    Parameters
    ----------
    text : str
        ``base=NAME`` is a backend of lmms-eval (``lmms-eval models`` lists them), ``method=NAME`` or
        ``pruner="PIPELINE"`` what compresses its model ("none": nothing does), ``keep``, ``positions`` and the method's
        own parameters are those of ``vtc.compress``, ``on_error`` is "stop" or "skip", and the rest is the backend's.
    simple : bool
        Whether lmms-eval asks for the backend's simple form.

    Raises
    ------
    ValueError, TypeError
        For an unknown backend, method or argument (the nearest ones are named) or a value out of range.
    """
    from lmms_eval.utils import simple_parse_args_string

    given = split_arguments(text)
    backend = find_backend(given.get("base"), simple)
    if "method" in given and "pruner" in given:
        raise ValueError("model_args: method and pruner mean the same, give one of them")
    method = given.get("method", given.get("pruner"))
    single = method is not None and method.isidentifier() and method not in BASELINE
    own = [f.name for f in fields(pruner_class(str(method))) if f.init and f.name != "keep"] if single else []
    theirs = [name for name in accepted_names(backend) if name not in OWN]
    for name in given:
        if name in own and name in theirs:
            inside = f'pruner="{method}({name}=...)"'
            raise ValueError(f"model_args: {name} is an argument of both {method} and {given['base']}; write {inside}")
        if name not in (*OWN, *own, *theirs):
            known = [*OWN, *own, *theirs]
            raise ValueError(f"model_args: unknown argument {name!r}. {nearest(name, known)}")
    params = {name: read_value(given[name]) for name in own if name in given}
    read = simple_parse_args_string(text)
    return Setup(
        base=given["base"],
        pipeline=_pipeline(method, _keep(given.get("keep")), params),
        positions=_one_of("positions", given.get("positions", POSITIONS[0]), POSITIONS),
        on_error=_one_of("on_error", given.get("on_error", ON_ERROR[0]), ON_ERROR),
        arguments={name: read[name] for name in theirs if name in given},
    )
