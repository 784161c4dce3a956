"""Finds where a decoder layer's MLP branch ends, in front of the sum with the residual.

That is its ``mlp`` in most layers, and a norm behind it in others (Gemma, OLMo 2). Names don't say which, so the
layer's own forward runs on two made-up tokens, with stand-ins in the place of its modules that bend what they are
given: no weight is touched. Where the branch ends, twice as much adds twice as much to what the layer gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.language.decoder_hooks import SUBLAYERS
from vtc.models.stock.call_arguments import call_of, given, undecorated
from vtc.models.stock.transformers_api import versions

TOKENS = 2


class _Bending(nn.Module):
    """Stands for a module: gives its input bent, or `fixed`; counts in `seen`."""

    def __init__(self, name: str, module: Any, seen: list[tuple[str, Any]], fixed: Callable[[], Any] | None):
        super().__init__()
        self.__dict__.update(name=name, module=module, seen=seen, fixed=fixed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["module"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else call_of(self.__dict__["module"], args, kwargs).get("hidden")
        self.__dict__["seen"].append((self.__dict__["name"], x))
        fixed = self.__dict__["fixed"]
        return fixed() if fixed is not None else x * (1 + x.abs())


def branch_end(layer: Any, mixer: Any, width: int, method: str) -> nn.Module:
    """The module whose output a decoder layer adds to the residual as what its MLP made.

    Parameters
    ----------
    layer : nn.Module
        The layer.
    mixer : nn.Module
        Its attention.
    width : int
        Of the hidden states.
    method : str
        Who needs it, for errors.

    Raises
    ------
    NotImplementedError
        If there is no ``mlp``, or none that adds to the residual by itself.
    """
    name, kind = SUBLAYERS["mlp"], type(layer).__name__
    if not isinstance(getattr(layer, name, None), nn.Module):
        raise NotImplementedError(f"{kind} has no {name!r}, so {method} can't tell what of it to gate. {versions()}")
    x, added = torch.rand(2, 1, TOKENS, width, generator=torch.Generator().manual_seed(0)).double() + 0.5

    def run(fixed: dict[str, Tensor]) -> tuple[Tensor, list[tuple[str, Any]]]:
        return _run(layer, mixer, x, fixed)

    try:
        _, order = run({name: added})
        names = [n for n, _ in order]
        for end in dict.fromkeys(names[names.index(name) :]):
            if names.count(end) > 1 or not (end == name or _behind(run, end, {name: added}, {name: 2 * added})):
                continue  # of another branch, or of both
            none, once, twice = (run({end: times * added})[0] for times in (0, 1, 2))
            share = (once - none) / added
            linear = torch.allclose(twice - none, 2 * (once - none)) and torch.allclose(share, share.flatten()[0])
            if linear and bool(share.any()):
                found: nn.Module = getattr(layer, end)
                return found
    except Exception as error:
        raise NotImplementedError(
            f"vtc can't find out where the MLP of {kind} ends ({type(error).__name__}: {error}), which {method} gates. "
            f"{versions()}"
        ) from error
    raise NotImplementedError(
        f"{kind} does more to a token behind its MLP than to add to it, so {method} can't gate what the MLP adds. "
        f"{versions()}"
    )


def _behind(run: Any, end: str, one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether what the module `end` is given depends on what the MLP gives."""
    a, b = (dict(run(fixed)[1])[end] for fixed in (one, other))
    return not torch.equal(a, b)


def _run(layer: Any, mixer: Any, x: Tensor, fixed: dict[str, Tensor]) -> tuple[Tensor, list[tuple[str, Any]]]:
    """What the layer makes of `x` where some of its modules give `fixed` values, and what each was given in turn."""
    seen: list[tuple[str, Any]] = []
    parts: dict[str, Any] = {}
    for name, module in layer._modules.items():
        gives: Callable[[], Any] | None = None
        if name in fixed:
            gives = fixed[name].clone
        elif module is mixer:
            gives = _nothing(x)
        elif isinstance(module, (nn.Dropout, nn.Identity)):
            parts[name] = nn.Identity()
            continue
        parts[name] = None if module is None else _Bending(name, module, seen, gives)
    stand_in = object.__new__(type(layer))
    stand_in.__dict__.update(layer.__dict__)
    whole = {
        kind: {n: None if p is None else torch.ones(p.shape) for n, p in getattr(layer, kind).items()}
        for kind in ("_parameters", "_buffers")
    }
    stand_in.__dict__.update(_modules=parts, training=False, **whole)
    with torch.no_grad():
        output = undecorated(layer)(stand_in, **given(layer, hidden=x, mask=None, rotary=None))
    return (output[0] if isinstance(output, tuple) else output), seen


def _nothing(x: Tensor) -> Callable[[], Any]:
    return lambda: (torch.zeros_like(x), None)
