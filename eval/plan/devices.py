"""The devices that a plan can be made for: data-sheet numbers, and how much of them is attained in practice.

All are dense rates (data sheets of Ampere and later print those of sparse products, which are twice as high). What is
attained is an assumption, stated beside every plan: products of today's kernels reach about 0.7 of the peak, attention
0.45, copies 0.8 of the bandwidth, and a process can use 0.92 of the memory. In eager PyTorch an operator takes no less
than its launch, about 5 microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vtc.eval.cost.operators import ATTENTION, CAUSAL, FUNCTION, MATMUL, Operator

TERA, GIGA = 1e12, 1e9
MATMUL_ATTAINED, ATTENTION_ATTAINED, BANDWIDTH_ATTAINED, MEMORY_USED, LAUNCH = 0.7, 0.45, 0.8, 0.92, 5e-6
FLOAT32, HALF = "float32", ("bfloat16", "float16")


@dataclass(frozen=True)
class Device:
    """What a device attains.

    Attributes
    ----------
    name, source : str
        How it is called, and where the numbers are from.
    rates : mapping
        Attained FLOPs a second in products, by dtype.
    attention : mapping
        The same in attention; where the kernel may skip half, in FLOPs of the whole.
    causal : mapping
        The same of attention of which half may be skipped.
    bandwidth, functions : float
        Attained bytes a second: of copies, and of functions such as GELU.
    reading : float
        The same of weights that a product reads.
    launch : float
        Seconds that an operator takes at least.
    memory : float
        Bytes that can be used.
    assumed : str
        What is assumed or was measured, in words.
    """

    name: str
    source: str
    rates: Mapping[str, float]
    attention: Mapping[str, float]
    causal: Mapping[str, float]
    bandwidth: float
    functions: float
    reading: float
    launch: float
    memory: float
    assumed: str = ""
    measured: bool = False

    def seconds(self, operators: Iterable[Operator], dtype: str, batch: int = 1) -> float:
        """Seconds of these operators on `batch` prompts at once: the slower of products and memory, one by one."""
        return sum(self._one(o.batched(batch) if batch > 1 or o.experts else o, dtype) for o in operators)

    def _one(self, o: Operator, dtype: str) -> float:
        table = {ATTENTION: self.attention, CAUSAL: self.causal}.get(o.kind, self.rates)
        speed = self.functions if o.kind == FUNCTION else self.bandwidth
        products = o.flops / table[dtype] if o.kind in (MATMUL, ATTENTION, CAUSAL) else 0.0
        return max(products, o.weights / self.reading + o.moved / speed, self.launch)


@dataclass(frozen=True)
class Sheet:
    """A data sheet: dense peaks in TFLOPs a second, GB/s and GB."""

    title: str
    half: float
    single: float
    bandwidth: float
    memory: float

    def device(self, name: str) -> Device:
        """With the attainable fractions."""
        peaks = {FLOAT32: self.single * TERA, **dict.fromkeys(HALF, self.half * TERA)}
        rates = {d: MATMUL_ATTAINED * peak for d, peak in peaks.items()}
        attention = {d: ATTENTION_ATTAINED * peak for d, peak in peaks.items()}
        speed = BANDWIDTH_ATTAINED * self.bandwidth * GIGA
        said = (
            f"assumed to be attained: {MATMUL_ATTAINED:g} of {self.half:g} TFLOPS in products (float32: of "
            f"{self.single:g}), {ATTENTION_ATTAINED:g} in attention, {BANDWIDTH_ATTAINED:g} of {self.bandwidth:g} "
            f"GB/s, {MEMORY_USED:g} of {self.memory:g} GB, and {LAUNCH * 1e6:g} us an operator at least (eager PyTorch)"
        )
        causal = {d: 2 * rate for d, rate in attention.items()}
        memory = MEMORY_USED * self.memory * GIGA
        return Device(name, self.title, rates, attention, causal, speed, speed, speed, LAUNCH, memory, said)


# float32 is that of the plain cores: PyTorch multiplies float32 there unless told otherwise
SHEETS: dict[str, Sheet] = {
    "h200": Sheet("NVIDIA H200 data sheet (SXM)", 989.5, 67, 4800, 141),
    "h100": Sheet("NVIDIA H100 data sheet (SXM)", 989.5, 67, 3350, 80),
    "a100": Sheet("NVIDIA A100 data sheet (80 GB, SXM)", 312, 19.5, 2039, 80),
    "l4": Sheet("NVIDIA L4 data sheet", 121, 30.3, 300, 24),
}
