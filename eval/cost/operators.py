"""The operators that a part of a model runs: FLOPs, and bytes of weights and of activations, each without computing.

What each of them takes on a device follows from these three (``Device.seconds``). A multiply-add counts as two FLOPs.
Attention counts all ``L * L`` products, as ``torch.utils.flop_counter`` does, and reads and writes its inputs and
output once, as fused kernels do. A layer of experts is not run: every token meets ``top_k`` of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MATMUL, ATTENTION, CAUSAL, ELEMENTWISE, FUNCTION = "matmul", "attention", "causal attention", "elementwise", "function"
# elementwise ones whose arithmetic takes longer than reading and writing
FUNCTIONS = ("gelu", "silu", "sigmoid", "tanh", "softmax", "exp", "sin", "cos", "erf", "pow", "_softmax", "softplus")


@dataclass(frozen=True)
class Operator:
    """One operator on one prompt.

    Attributes
    ----------
    kind : str
        ``MATMUL``, ``ATTENTION``, ``CAUSAL`` (attention that may skip half), ``FUNCTION`` or ``ELEMENTWISE``.
    flops : float
        Of its products.
    weights, moved : float
        Bytes of weights that it reads, and of all else that it reads and writes.
    experts : tuple of int, optional
        How many there are, how many a token meets, and the tokens: `weights` are those of all of them.
    """

    kind: str
    flops: float
    weights: float
    moved: float
    experts: tuple[int, int, int] | None = None

    def batched(self, batch: int) -> Operator:
        """The same of `batch` prompts at once."""
        weights = self.weights
        if self.experts is not None:
            count, met, tokens = self.experts
            weights *= 1 - (1 - met / count) ** (tokens * batch)
        return Operator(self.kind, self.flops * batch, weights, self.moved * batch)

    def shortened(self, share: float) -> Operator:
        """On that share of the tokens; between tokens the products go with its square."""
        both = share**2 if self.kind in (ATTENTION, CAUSAL) else share
        experts = self.experts and (*self.experts[:2], round(self.experts[2] * share))
        return replace(self, flops=self.flops * both, moved=self.moved * share, experts=experts)


Operators = tuple[Operator, ...]


def flops_of(operators: Sequence[Operator]) -> int:
    """Of all together."""
    return round(sum(o.flops for o in operators))


class _Recorder(TorchDispatchMode):
    """Writes down every operator but views; `weights` are the storages that count as such."""

    def __init__(self, weights: set[int]):
        super().__init__()
        self.weights, self.found = weights, list[Operator]()
        self.paused = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry

        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.paused or _is_view(func):
            return out
        count = flop_registry.get(func._overloadpacket)
        name = func._overloadpacket.__name__.strip("_")
        kind = MATMUL if count else FUNCTION if name in FUNCTIONS else ELEMENTWISE
        read, made = _tensors((args, kwargs)), _tensors(out)
        if not count and not any(t.numel() > 1 for t in made):
            return out
        held = sum(_bytes(t) for t in read if _storage(t) in self.weights)
        moved = sum(_bytes(t) for t in read if _storage(t) not in self.weights) + sum(map(_bytes, made))
        if "index" in name or name in ("embedding", "gather", "index_select"):  # reads what it gives, not the table
            held, moved = 0, 2 * sum(map(_bytes, made))
        flops = count(*args, **kwargs, out_val=out) if count else 0
        self.found.append(Operator(kind, flops, held, moved))
        return out


class _Fused(TorchFunctionMode):
    """Attention as one operator, and what gives features a value for each token as a shape alone."""

    def __init__(self, recorder: _Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__getitem__ and _is_mask(args[1]) and _has_no_values(args[0]):
            return args[0][args[1].nonzero(as_tuple=True)]  # how many there are is known from the mask alone
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = (*args, *(kwargs[n] for n in ("query", "key", "value") if n in kwargs))[:3]
        causal = bool(kwargs.get("is_causal", len(args) > 5 and args[5]))
        self.recorder.paused += 1
        try:
            out = query.new_empty(*query.shape[:-1], value.shape[-1])
        finally:
            self.recorder.paused -= 1
        pairs = query[..., 0].numel() * key.shape[-2]
        flops = 2 * pairs * (query.shape[-1] + value.shape[-1])
        moved = sum(map(_bytes, (query, key, value, out)))
        self.recorder.found.append(Operator(CAUSAL if causal else ATTENTION, flops, 0, moved))
        return out


def _has_no_values(x: Tensor) -> bool:
    return isinstance(x, FakeTensor)


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and not _has_no_values(index)


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _bytes(x: Tensor) -> int:
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


class Recording:
    """What is found while a model runs, by the modules that were named.

    Attributes
    ----------
    found : list of Operator
        All of it, in order.
    """

    def __init__(self, recorder: _Recorder, modules: Sequence[nn.Module]):
        self.found = recorder.found
        self._inside: list[list[tuple[int, int]]] = [[] for _ in modules]
        self._starts: dict[int, int] = {}
        self.hooks: list[Any] = []
        for i, module in enumerate(modules):
            self.hooks.append(module.register_forward_pre_hook(lambda *_, i=i: self._enter(i)))
            self.hooks.append(module.register_forward_hook(lambda *_, i=i: self._leave(i)))

    def _enter(self, i: int) -> None:
        self._starts[i] = len(self.found)

    def _leave(self, i: int) -> None:
        self._inside[i].append((self._starts[i], len(self.found)))

    def inside(self, i: int) -> list[Operator]:
        """The operators of a module."""
        return [o for start, end in self._inside[i] for o in self.found[start:end]]

    def outside(self) -> list[Operator]:
        """The operators of none."""
        within = {n for spans in self._inside for start, end in spans for n in range(start, end)}
        return [o for n, o in enumerate(self.found) if n not in within]


def experts_in(model: nn.Module) -> list[nn.Module]:
    """Modules that hold the weights of all experts of a layer and are called once with each token's choice."""
    return [m for m in model.modules() if type(m).__name__.endswith("Experts") and _stacked(m)]


def _stacked(module: nn.Module) -> list[Tensor]:
    own: list[Tensor] = [p for p in module.parameters(recurse=False) if p.dim() == 3]
    return own if len({p.shape[0] for p in own}) == 1 else []


@contextmanager
def recording(model: nn.Module, modules: Sequence[nn.Module] = ()) -> Iterator[Recording]:
    """Write down the operators that run inside, by `modules`; layers of experts are passed over and counted.

    Parameters
    ----------
    model : nn.Module
        Its parameters are what counts as weights.
    modules : sequence of nn.Module
        Parts that don't hold one another.
    """
    recorder = _Recorder({_storage(p) for p in model.parameters()})
    made = Recording(recorder, modules)
    replaced = experts_in(model)
    for experts in replaced:
        experts.forward = _passed(experts, recorder)
    try:
        with torch.no_grad(), recorder, _Fused(recorder):
            yield made
    finally:
        for hook in made.hooks:
            hook.remove()
        for experts in replaced:
            del experts.forward


def _passed(experts: nn.Module, recorder: _Recorder) -> Any:
    def forward(hidden: Tensor, index: Tensor, *_: Any, **__: Any) -> Tensor:
        own = _stacked(experts)
        tokens, met = hidden[..., 0].numel(), index.shape[-1]
        each = sum(p[0].numel() for p in own)
        wide = sum(p.shape[1] for p in own)
        size = hidden.element_size()
        recorder.paused += 1
        out = torch.empty_like(hidden)
        recorder.paused -= 1
        moved = size * (2 * hidden.numel() + 2 * tokens * met * wide)
        held = sum(map(_bytes, own))
        recorder.found.append(Operator(MATMUL, 2 * tokens * met * each, held, moved, (own[0].shape[0], met, tokens)))
        return out

    return forward
