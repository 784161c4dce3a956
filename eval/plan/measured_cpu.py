"""What this machine's CPU attains, measured in a second or two with the threads that PyTorch has."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable

import torch

from vtc.eval.cost.clocks import Clock, wall_clock, work_clock

from .device_names import CPU
from .devices import FLOAT32, MEMORY_USED, Device

TOKENS, WIDTH, WIDER = 512, 2048, 4096
HEADS, HEAD_DIM = 16, 64
TURNS = 3


def cpu_clock() -> Clock:
    """CPU time where one thread does all, so that other load does not count; else the wall's."""
    return (work_clock if torch.get_num_threads() == 1 else wall_clock)(torch.device(CPU))


def seconds_of(call: Callable[[], object], turns: int = TURNS) -> float:
    """Median of `turns`, behind one that is not measured."""
    clock = cpu_clock()
    call()
    return max(statistics.median(clock.measure(call)[0] for _ in range(turns)), 1e-9)


def _products(dtype: torch.dtype) -> float:
    x, weight = torch.randn(TOKENS, WIDTH).to(dtype), torch.randn(WIDER, WIDTH).to(dtype)
    return 2 * TOKENS * WIDTH * WIDER / seconds_of(lambda: torch.nn.functional.linear(x, weight))


def _reading(dtype: torch.dtype) -> float:
    row, weight = torch.randn(1, 2 * WIDER).to(dtype), torch.randn(2 * WIDTH, 2 * WIDER).to(dtype)
    return weight.numel() * weight.element_size() / seconds_of(lambda: torch.nn.functional.linear(row, weight))


def _attention(dtype: torch.dtype, causal: bool) -> float:
    query, key, value = (torch.randn(1, HEADS, TOKENS, HEAD_DIM).to(dtype) for _ in range(3))
    flops = 4 * HEADS * TOKENS * TOKENS * HEAD_DIM
    attend = torch.nn.functional.scaled_dot_product_attention
    return flops / seconds_of(lambda: attend(query, key, value, is_causal=causal))


@torch.no_grad()
def this_machine(dtype: str = FLOAT32) -> Device:
    """The CPU here, in `dtype` and in float32, in which methods compute.

    Products and attention are measured by themselves, the bandwidth by an addition over arrays beyond the caches,
    reading by the product of one row with weights beyond them, functions by GELU.
    """
    kinds = {name: getattr(torch, name) for name in dict.fromkeys((FLOAT32, dtype))}
    rates = {name: _products(kind) for name, kind in kinds.items()}
    attention = {name: _attention(kind, False) for name, kind in kinds.items()}
    causal = {name: _attention(kind, True) for name, kind in kinds.items()}
    large = torch.randn(TOKENS, 4 * WIDER)
    moved = large.numel() * large.element_size()
    bandwidth = 3 * moved / seconds_of(lambda: large + large)
    reading = _reading(kinds[dtype])
    functions = 2 * moved / seconds_of(lambda: torch.nn.functional.gelu(large))
    small = torch.randn(8)
    launch = seconds_of(lambda: [small + small for _ in range(1000)]) / 1000
    threads = torch.get_num_threads()
    said = (
        f"measured here with {threads} thread{'s' * (threads > 1)}: {rates[dtype] / 1e9:.0f} GFLOPS in "
        f"{dtype}, {attention[dtype] / 1e9:.0f} in attention, "
        f"{bandwidth / 1e9:.1f} GB/s, {reading / 1e9:.1f} of weights, {launch * 1e6:.1f} us an operator; "
        f"{MEMORY_USED:g} of the machine's memory"
    )
    return Device(
        CPU,
        "this machine",
        rates,
        attention,
        causal,
        bandwidth,
        functions,
        reading,
        launch,
        _memory(),
        said,
        measured=True,
    )


def _memory() -> float:
    """Bytes of memory that can be used."""
    try:
        return MEMORY_USED * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return float("inf")
