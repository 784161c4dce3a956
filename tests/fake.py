"""A pretended GPU: tensors on "cuda" are fake (shape, dtype and device, no values), tensors on the CPU are real.

Whatever waits for the device (``.item()``, ``.tolist()``, ``bool()``, boolean indexing) raises, and so does mixing
devices: code that runs here has no hidden host sync. No GPU is needed, and a model of any size costs no memory.
transformers' own check that placeholders and features agree reads values, so it is switched off; nothing of vtc is.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# where newer versions of transformers compute the positions of Qwen's towers
CAN_MOVE_SIZES = importlib.util.find_spec("transformers.vision_utils") is not None
HOST = (
    "image_grid_thw",
    "video_grid_thw",
    "image_sizes",
    "batch_num_images",
)  # sizes, which processors leave on the CPU


def on_device(x: Any) -> bool:
    """Whether an argument is a fake tensor (perhaps inside vmap) or names the pretended device."""
    if isinstance(x, FakeTensor) or (isinstance(x, Tensor) and x.device.type == "cuda"):
        return True
    return (isinstance(x, torch.device) and x.type == "cuda") or (isinstance(x, str) and x.startswith("cuda"))


class FakeDevice(TorchFunctionMode):
    """Context in which "cuda" is the pretended GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.checking = False  # transformers counts placeholders
        self.marked: dict[str, int] = {}  # how many tokens a mask marks where a module of transformers indexes with it

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.checking and func is Tensor.__getitem__ and isinstance(args[1], Tensor):
            return args[0]  # older versions read the device for a number that the check compares, which is off
        if self.marked and func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            count = self.marked.get(sys._getframe(1).f_globals["__name__"])
            if count is not None:
                x, mask = args
                return self.put(x.new_empty(count * x.shape[-1] if mask.dim() == x.dim() else (count, x.shape[-1])))
        if any(map(on_device, tree_leaves((args, kwargs)))):
            with self.fake:
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def put(self, x: Tensor) -> Tensor:
        """A fake tensor on "cuda" of the shape and type of `x` (real or meta)."""
        with self.fake:
            return torch.empty(x.shape, dtype=x.dtype, device="cuda")

    def put_model(self, model: nn.Module) -> nn.Module:
        """Replace all parameters and buffers of `model` in place; tied weights stay tied."""
        known: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    if id(p) not in known:
                        known[id(p)] = nn.Parameter(self.put(p), requires_grad=False)
                    module._parameters[name] = known[id(p)]
            for name, b in module._buffers.items():
                if b is not None:
                    module._buffers[name] = self.put(b)
        return model

    def put_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs on "cuda", but for the small size tensors."""
        return {k: v if k in HOST else self.put(v) for k, v in inputs.items()}


@contextmanager
def without_placeholder_check(model: nn.Module, gpu: FakeDevice) -> Iterator[None]:
    """transformers compares the number of placeholders with that of the features, which reads the device."""
    core: Any = model.base_model
    count = getattr(core, "get_placeholder_mask", None)

    def unread(*args: Any, **kwargs: Any) -> Any:
        gpu.checking = True
        try:
            return count(*args, **kwargs)
        finally:
            gpu.checking = False

    with contextlib.ExitStack() as stack:
        module = sys.modules[type(core).__module__]  # which does not import it in every version
        stack.enter_context(mock.patch.object(module, "torch_compilable_check", create=True))
        if count is not None:
            stack.enter_context(mock.patch.object(core, "get_placeholder_mask", unread))
        yield


@contextmanager
def sizes_on_device(model: nn.Module, gpu: FakeDevice) -> Iterator[None]:
    """Qwen's towers compute positions on the grid's device: here they are computed on the host and then put there."""
    module = sys.modules[type(model.base_model).__module__]
    with contextlib.ExitStack() as stack:
        for name in (
            "get_vision_position_ids",
            "get_vision_bilinear_indices_and_weights",
            "get_vision_interpolation_indices_and_weights",
        ):
            made = getattr(module, name, None)
            if made is not None:
                moved = functools.partial(_moved, made, gpu)
                stack.enter_context(mock.patch.object(module, name, moved))
        yield


def _moved(made: Any, gpu: FakeDevice, *args: Any, **kwargs: Any) -> Any:
    out = made(*args, **kwargs)
    return tuple(map(gpu.put, out)) if isinstance(out, tuple) else gpu.put(out)
