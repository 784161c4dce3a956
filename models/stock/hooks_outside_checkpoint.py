"""Hooks of a layer that run once a forward, outside of its gradient checkpoint.

transformers before 5.23 checkpoints a layer together with its hooks: the backward pass would run them again, when the
forward's state is gone. There they are put around the layer's checkpointing function instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .per_thread import ThreadState

FUNCTION = "_gradient_checkpointing_func"
LATER = object()  # what a traced hook gives where only the hook itself will do
Before = Callable[[nn.Module, "tuple[Any, ...]", "dict[str, Any]"], Any]
After = Callable[[nn.Module, "tuple[Any, ...]", Any], Any]


class LayerHooks:
    """A forward pre-hook and a forward hook of one layer.

    Parameters
    ----------
    layer : nn.Module
        A layer of transformers.
    state : ThreadState
        The hooks are not called while its ``run`` is None.
    before : callable, optional
        Gets layer, args and kwargs; gives None or new args and kwargs.
    after : callable, optional
        Gets layer, args and output; gives None or a new output.
    traced_before, traced_after : callable, optional
        The same in code that ``torch.compile`` can trace, or ``LATER`` where it can't be.
    carry : callable, optional
        Gets what is about to be checkpointed; gives it with further tensors that it takes behind its own arguments, so
        that it has them again, and gradients reach them, when the backward pass runs it anew.
    """

    def __init__(
        self,
        layer: Any,
        state: ThreadState,
        before: Before | None = None,
        after: After | None = None,
        traced_before: Before | None = None,
        traced_after: After | None = None,
        carry: Callable[[Any], tuple[Any, tuple[Any, ...]]] | None = None,
    ):
        self.layer, self.state, self.before, self.after, self.carry = layer, state, before, after, carry
        self.traced_before, self.traced_after = traced_before, traced_after
        # this class checkpoints in ``__call__``, which runs the hooks, and not in ``forward``
        layers = (c for c in type(layer).__mro__ if c.__name__ == "GradientCheckpointingLayer")
        self.movable = any("__call__" in vars(c) for c in layers)
        self.stands_in = self.movable or carry is not None  # for the layer's checkpointing function
        self._checkpoint: Any = None  # the layer's own checkpointing function
        self.handles: list[Any] = []

    def attach(self) -> LayerHooks:
        """Set the hooks."""
        if self.before is not None:
            self.handles.append(
                self.layer.register_forward_pre_hook(self._eager(self._pre, self.traced_before), with_kwargs=True)
            )
        if self.after is not None:
            after = self._eager(self._post, self.traced_after)
            # before hooks of transformers, which collect what the layer gives
            self.handles.append(self.layer.register_forward_hook(after, prepend=self.carry is not None))
        return self

    def _eager(self, hook: Callable[..., Any], traced: Callable[..., Any] | None) -> Callable[..., Any]:
        eager = torch.compiler.disable(hook)  # torch.compile must break its graph here, not trace our state
        state, compiling, layer = self.state, torch.compiler.is_compiling, self.layer

        def run(*args: Any) -> Any:
            # every layer of every decoding step passes here, and has nothing to do
            if not compiling() and getattr(state, "run", None) is None:
                return None
            if traced is not None and not (self.movable and layer.gradient_checkpointing and layer.training):
                found = traced(*args)
                if found is not LATER:
                    return found
            return eager(*args)

        return run

    def detach(self) -> None:
        """Remove them."""
        for handle in self.handles:
            handle.remove()
        self.handles = []
        if self._checkpoint is not None and vars(self.layer).get(FUNCTION) == self._around:
            setattr(self.layer, FUNCTION, self._checkpoint)

    def arm(self) -> None:
        """To be called before the layer runs: checkpointing may have been switched on since."""
        given = vars(self.layer).get(FUNCTION) if self.stands_in else None
        if given is not None and given != self._around:
            self._checkpoint = given
            setattr(self.layer, FUNCTION, self._around)

    def _outside(self) -> bool:
        on = self.movable and self.layer.gradient_checkpointing and self.layer.training
        return on and vars(self.layer).get(FUNCTION) == self._around

    def _pre(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return None if self._outside() or self.before is None else self.before(layer, args, kwargs)

    def _post(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return None if self._outside() or self.after is None else self.after(layer, args, output)

    def _around(self, call: Any, *args: Any) -> Any:
        """The layer's checkpointing function, which gets the rest of the call as a ``functools.partial``."""
        if not self.movable:
            return self._checkpointed(call, args)
        kwargs = call.keywords
        changed = None if self.before is None else self.before(self.layer, args, dict(kwargs))
        if changed is not None:
            args, kwargs = changed
        output = self._checkpointed(functools.partial(call.func, **kwargs), args)
        changed = None if self.after is None else self.after(self.layer, args, output)
        return output if changed is None else changed

    def _checkpointed(self, call: Any, args: tuple[Any, ...]) -> Any:
        call, more = (call, ()) if self.carry is None else self.carry(call)
        return self._checkpoint(call, *args, *more)


def arm(hooks: Sequence[LayerHooks], *_: Any) -> None:
    """Arm all `hooks`; with them bound, a forward pre-hook of the layers' owner."""
    for one in hooks:
        one.arm()
