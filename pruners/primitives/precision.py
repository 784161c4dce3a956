"""What methods compute in: float32 at least, and float64 where a rounding error would decide much.

Scores that are only ranked lose nothing by float32: a near tie costs one token. Where a choice decides all that come
after it (a list that is split anew every round, greedy steps, tokens that are merged and compared again) a rounding
error of one card picks another set than that of the next one. Such scores are computed in float64 (``exact``), whose
own rounding ``settled`` takes off, so that equal tokens tie on every machine and the lowest index decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

GRID = 2.0**40  # steps of 1: far above float64's rounding, far below float32's


def wide_dtype(x: Tensor) -> torch.dtype:
    """Float64 for float64, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def wide(x: Tensor) -> Tensor:
    """`x` in float32 at least: half precision is widened, float64 stays."""
    return x.to(wide_dtype(x))


def exact_dtype(device: torch.device) -> torch.dtype:
    """Float64, on devices that have it (MPS has not: float32 there)."""
    return torch.float32 if device.type == "mps" else torch.float64


def exact(x: Tensor) -> Tensor:
    """`x` in float64, where the device has it."""
    return x.to(exact_dtype(x.device))


def vector_lengths(x: Tensor, rows: int = 256) -> Tensor:
    """Lengths of the vectors `x [N, D]`, `[N]`, some `rows` at a time."""
    dtype, parts = wide_dtype(x), x.split(rows)
    if x.dtype == dtype:
        return torch.cat([torch.linalg.vector_norm(part, dim=-1) for part in parts])
    # widened first: a norm of half precision in float32 takes several times as long
    buffer = x.new_empty(min(rows, len(x)), x.shape[1], dtype=dtype)
    return torch.cat([torch.linalg.vector_norm(buffer[: len(part)].copy_(part), dim=-1) for part in parts])


@cache
def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16; elsewhere they take longer than those of float32."""
    told: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.mkldnn.is_available() and bool(told.get("avx512_bf16") or told.get("amx_bf16"))


WITHOUT_VALUES = (
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.PROXY,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
)


def decides_on_host(x: Tensor) -> bool:
    """Whether values of `x` may be read to choose what is computed next.

    Real tensors on the CPU: elsewhere that waits for the device, and what is traced, compiled or vectorised has none.
    """
    return (
        x.device.type == "cpu"
        and type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and all(torch._C._get_dispatch_mode(key) is None for key in WITHOUT_VALUES)
    )


def held_together(*given: Tensor) -> Iterator[tuple[Any, ...]]:
    """Rows of a batch whose matrices of all pairs are held at a time: one picture on the CPU, elsewhere all.

    Each of `given` is `[B, ...]`, what is yielded are parts of them.
    """
    size = 1 if all(map(decides_on_host, given)) else len(given[0])
    return zip(*(x.split(size) for x in given), strict=True)


def settled(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """`x` in steps of ``scale / GRID`` where it is float64, in place: equal but for the order of a sum becomes equal.

    `scale` (default 1) is the size of what was summed up, and broadcasts.
    """
    if x.dtype != torch.float64:
        return x
    if scale is None:
        return x.mul_(GRID).round_().div_(GRID)
    step = scale.clamp(min=torch.finfo(torch.float32).tiny) / GRID
    return x.div_(step).round_().mul_(step)
