"""Hooks that do one thing where torch.compile traces, and another where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vtc.models.stock.hooks_outside_checkpoint import LATER
from vtc.models.stock.sleeping_hooks import SleepingHooks


def uncompiled(hook: Callable[..., Any]) -> Callable[..., Any]:
    """`hook`, but nothing where torch.compile traces: it must not break a graph that goes on behind it."""

    def run(*args: Any) -> Any:
        return None if torch.compiler.is_compiling() else hook(*args)

    return run


def traced(inside: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """`inside`, and where it gives ``LATER`` `plain`, which breaks a graph of torch.compile."""
    eager = torch.compiler.disable(plain)

    def run(*args: Any) -> Any:
        found = inside(*args)
        return eager(*args) if found is LATER else found

    return run


def by_compiling(
    hooks: SleepingHooks, plain: Callable[..., Any], compiled: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """`compiled` (or `plain`) where torch.compile traces, which must break its graph there, else `plain`."""

    def stays(*args: Any) -> Any:
        hooks.stay()
        return (compiled or plain)(*args)

    eager, broken = torch.compiler.disable(plain), torch.compiler.disable(stays)

    def run(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return broken(*args)
        # before anything was compiled a decoded token is spared the way through torch's wrapper
        return (eager if hooks.stays else plain)(*args)

    return run
