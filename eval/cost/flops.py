"""FLOPs of a prompt by part, counted by torch while the parts run on fake tensors: no weights are multiplied.

A multiply-add counts as two. Attention counts all ``L * L`` products, as ``torch.utils.flop_counter`` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from vtc.eval.vlm.encode_once import core_of, encode
from vtc.eval.vlm.feature_cache import pruned
from vtc.eval.vlm.prompts import Row
from vtc.eval.vlm.pruning_settings import Cell


@dataclass(frozen=True)
class Flops:
    """FLOPs of one prompt's prefill by part."""

    vision: int
    projector: int
    lm: int
    head: int


@contextmanager
def fake_weights(model: nn.Module, all_fake: bool = True) -> Iterator[Any]:
    """Context in which all weights have a shape and no values; those on "meta" are taken to be on the CPU.

    Without `all_fake`, what is made of no weight keeps its values: towers may look at grids, masks and pixels.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    held = [(m, dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    try:
        for module, parameters, buffers in held:
            for store, values in ((module._parameters, parameters), (module._buffers, buffers)):
                for name, value in values.items():
                    if value is not None:
                        store[name] = _fake(value.detach(), mode)
        with mode if all_fake else nullcontext():
            yield mode
    finally:
        for module, parameters, buffers in held:
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def _fake(value: torch.Tensor, mode: Any) -> Any:
    from torch._subclasses.fake_tensor import FakeTensor

    if value.is_meta:
        return FakeTensor(mode, value, torch.device("cpu"))
    return mode.from_tensor(value, static_shapes=True)


@contextmanager
def counting() -> Iterator[Any]:
    """torch's counter; attention by the kernel that it knows everywhere, and by no fused layer."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Spent:
    """FLOPs inside some modules, by their place in the list."""

    def __init__(self, modules: Sequence[nn.Module], counter: Any):
        self.counter, self.of, self._start = counter, [0] * len(modules), 0
        self._hooks: list[Any] = []
        for i, module in enumerate(modules):
            self._hooks.append(module.register_forward_pre_hook(self._enter))
            self._hooks.append(module.register_forward_hook(lambda *_, i=i: self._leave(i)))

    def _enter(self, *_: Any) -> None:
        self._start = self.counter.get_total_flops()

    def _leave(self, i: int) -> None:
        self.of[i] += self.counter.get_total_flops() - self._start

    def detach(self) -> list[int]:
        """Remove the hooks; returns the counts."""
        for hook in self._hooks:
            hook.remove()
        return self.of


def _inside(model: nn.Module, row: Row, mode: Any, modules: Sequence[nn.Module]) -> tuple[int, list[int]]:
    """FLOPs of a vision call, and those inside of some modules."""
    given = {
        k: mode.from_tensor(v) if mode is not None and isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in row.vision.items()
    }
    with counting() as counter:
        spent = _Spent(modules, counter)
        try:
            encode(model, replace(row, vision=given))
        finally:
            inside = spent.detach()
        return counter.get_total_flops(), inside


def vision_flops(model: nn.Module, row: Row) -> tuple[int, int]:
    """FLOPs of the tower and of the projector on a row's images, pruning inside the tower included."""
    from vtc.models.layout.model_parts import locate

    parts = locate(model)
    whole, (projector,) = vision_flops_inside(model, row, [parts.core.get_submodule(parts.family.projector)])
    return whole - projector, projector


def vision_flops_inside(model: nn.Module, row: Row, modules: Sequence[nn.Module]) -> tuple[int, list[int]]:
    """FLOPs of everything that makes features of a row's images, and those inside of some of its modules."""
    try:
        with fake_weights(model) as mode:
            return _inside(model, row, mode, modules)
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        return _inside(model, row, None, modules)  # it looks at values: counted while it really runs


class LMFlops:
    """FLOPs of the language model's layers at a length, and of its output layer on the last token.

    Raises
    ------
    NotImplementedError
        For models whose layers can't run without values, such as mixtures of experts.
    """

    def __init__(self, model: nn.Module):
        core = core_of(model)
        self.model: Any = model
        self.lm: Any = getattr(core, "language_model", None) or core.text_model
        self.layers = list(self.lm.layers)
        self._known: dict[int, list[int]] = {}
        head: Any = model.get_output_embeddings()  # type: ignore[operator]
        width = core.config.get_text_config().hidden_size
        with fake_weights(model), counting() as counter:
            head(torch.empty(1, 1, width, dtype=head.weight.dtype, device=head.weight.device))
            self.head = int(counter.get_total_flops())
        self._width = width

    def of_layers(self, length: int) -> list[int]:
        """FLOPs of each layer on `length` tokens."""
        if length not in self._known:
            first = next(self.lm.parameters())
            try:
                with fake_weights(self.model), counting() as counter:
                    spent = _Spent(self.layers, counter)
                    try:
                        states = torch.empty(1, length, self._width, dtype=first.dtype, device=first.device)
                        self.lm(inputs_embeds=states, use_cache=False)
                    finally:
                        self._known[length] = spent.detach()
            except RuntimeError as e:
                self._known.pop(length, None)
                raise NotImplementedError(
                    f"the language model's FLOPs can't be counted: {str(e).splitlines()[0]}"
                ) from None
        return self._known[length]

    def prefill(self, lengths: Sequence[int], asked: int = 0) -> int:
        """FLOPs of a prefill whose layer `l` sees ``lengths[l]`` tokens, after `asked` tokens of a question alone."""
        alone = sum(self.of_layers(asked)) if asked else 0
        return alone + sum(self.of_layers(n)[i] for i, n in enumerate(lengths))


def count_flops(
    model: nn.Module,
    cell: Cell,
    row: Row,
    lengths: Sequence[int],
    lm: LMFlops | None = None,
    same: Flops | None = None,
    asked: int = 0,
) -> Flops:
    """FLOPs of a cell on one prompt.

    Parameters
    ----------
    model : nn.Module
        Unwrapped.
    cell : Cell
        Runs the tower itself where it prunes inside it.
    row : Row
        The prompt.
    lengths : sequence of int
        Tokens that each decoder layer saw.
    lm : LMFlops, optional
        Of the same model, so that lengths are counted once.
    same : Flops, optional
        Of another cell that runs the tower alike.
    asked : int
        Tokens of a question that the language model read alone before (``Measured.asked``).
    """
    lm = lm or LMFlops(model)
    if same is not None:
        return replace(same, lm=lm.prefill(lengths, asked))
    with pruned(model, cell) if cell.vision_stage else nullcontext(model) as wrapped:
        vision, projector = vision_flops(wrapped, row)
    return Flops(vision, projector, lm.prefill(lengths, asked), lm.head)
