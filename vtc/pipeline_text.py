"""Pipeline strings such as ``"random(keep=0.6, seed=5) + random(layer=2, keep=0.2)"``: parsed, never evaluated.

Grammar: ``method [ '(' name '=' literal {',' name '=' literal} ')' ] { '+' ... }``. Literals are Python's, without
expressions: numbers, quoted or bare words, True, False, None, and lists or tuples of them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from vtc.pruners.base import Pruner
from vtc.pruners.registry import make_pruner, refuse_call
from vtc.pruners.signals import check_signals

Pipeline = tuple[Pruner, ...]


def parse(spec: str | Pruner | Iterable[Pruner], keep: Any = None, **params: Any) -> Pipeline:
    """Turn what a user passes as `pruner` into a pipeline.

    Parameters
    ----------
    spec : str, Pruner or iterable of Pruner
        A method's name, a pipeline string, an instance, or several instances.
    keep : int or float, optional
        For a single method that does not say its own.
    **params
        Parameters of a single method given by its name.

    Raises
    ------
    TypeError, ValueError
        If the text is no pipeline, or names an unknown method or parameter (the nearest ones are named), or a value is
        out of range, or `keep` is given twice, or a method's ``signals`` are none.
    """
    pipeline = _parse(spec, keep, **params)
    for pruner in pipeline:
        check_signals(pruner.spoken_name, pruner.signals)
    return pipeline


def _parse(spec: str | Pruner | Iterable[Pruner], keep: Any, **params: Any) -> Pipeline:
    if isinstance(spec, str):
        return tuple(make_pruner(name, **given) for name, given in _calls(spec, keep, params))
    if isinstance(spec, type) and issubclass(spec, Pruner):
        raise TypeError(
            f"pruner must be an instance, got the class {spec.__name__}; pass {spec.__name__}(keep=...) or its name"
        )
    pruners = (spec,) if isinstance(spec, Pruner) else tuple(spec) if isinstance(spec, Iterable) else ()
    if not pruners or not all(isinstance(p, Pruner) for p in pruners):
        raise TypeError(f"pruner must be a method's name, a pipeline string or a vtc.Pruner, got {spec!r}")
    if params:
        raise ValueError(f"parameters ({', '.join(params)}) go with a method's name; the instance {spec} has its own")
    if keep is not None:
        if len(pruners) > 1 or pruners[0].keep is not None:
            raise ValueError(f"keep is given twice: in {' + '.join(map(str, pruners))} and as keep={keep}")
        return (replace(pruners[0], keep=keep),)
    return pruners


def format_pipeline(pipeline: Iterable[Pruner]) -> str:
    """The canonical string of a pipeline; ``parse`` reads it back."""
    return " + ".join(f"{p.name}({', '.join(f'{k}={v!r}' for k, v in p.params().items())})" for p in pipeline)


def refuse_text(spec: str, keep: Any = None) -> Pipeline | None:
    """Refuse what ``parse`` would refuse, without importing torch for vtc's own methods.

    Returns
    -------
    tuple of Pruner or None
        The methods as ``refuse_call`` gives them; None where one of them can't be built without torch.

    Raises
    ------
    TypeError, ValueError
        As ``parse``, but for methods from elsewhere of which only the name is looked at.
    """
    found = [refuse_call(name, given) for name, given in _calls(spec, keep, {})]
    built = tuple(pruner for pruner in found if pruner is not None)
    return built if len(built) == len(found) else None


def _calls(spec: str, keep: Any, params: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The methods of a text with all their parameters; `keep` and `params` are those of a single one."""
    calls = split_pipeline(spec)
    if len(calls) > 1:
        if keep is not None or params:
            extra = ", ".join(["keep"] * (keep is not None) + list(params))
            raise ValueError(
                f"a pipeline's methods say their own parameters, e.g. 'random(keep=64)'; got {extra} beside {spec!r}"
            )
        return calls
    name, inner = calls[0]
    twice = [k for k in (*params, *(["keep"] if keep is not None else [])) if k in inner]
    if twice:
        raise ValueError(f"{twice[0]} is given twice: in {spec!r} and as an argument")
    return [(name, {**inner, **params, **({"keep": keep} if keep is not None else {})})]


def split_pipeline(spec: str) -> list[tuple[str, dict[str, Any]]]:
    """The methods of a pipeline's text with their parameters; none of them is built, or known to exist.

    Raises
    ------
    ValueError
        If the text is no pipeline.
    """
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"can't read the pipeline {spec!r}: {getattr(error, 'msg', error)}. {_HINT}") from None
    except (RecursionError, MemoryError):
        raise ValueError("can't read the pipeline: it is nested too deep") from None
    calls: list[tuple[str, dict[str, Any]]] = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        calls.insert(0, _call(tree.right, spec))
        tree = tree.left
    return [_call(tree, spec), *calls]


_HINT = "Write 'method(name=value, ...) + method(...)', e.g. 'dart(keep=0.25)'."


def _call(node: ast.expr, spec: str) -> tuple[str, dict[str, Any]]:
    if isinstance(node, ast.Name):
        return node.id, {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError(f"can't read {ast.unparse(node)!r} in the pipeline {spec!r}. {_HINT}")
    if node.args or any(k.arg is None for k in node.keywords):
        raise ValueError(f"parameters of {node.func.id!r} must be named in the pipeline {spec!r}. {_HINT}")
    inner: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg in inner:
            raise ValueError(f"{keyword.arg} is given twice to {node.func.id!r} in the pipeline {spec!r}")
        inner[str(keyword.arg)] = _literal(keyword.value, spec)
    return node.func.id, inner


def _literal(node: ast.expr, spec: str) -> Any:
    if isinstance(node, ast.Name):
        return node.id  # a bare word
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        raise ValueError(f"{ast.unparse(node)!r} in the pipeline {spec!r} is no plain value. {_HINT}") from None
