"""How long every registered method takes to choose, how that grows in N, and its share of the prefill that it leaves.

    python benchmarks/selection/every_method.py [--methods all] [--tokens 144,576,2880,5760] [--keep 0.11] [--turns 3]
        [--dtype float32] [--layouts picture,video] [--output FILE.json] [--table FILE.md]

A method is measured by being registered: ``vtc stability``'s made-up spans give it what it reads, at the widths of
LLaVA-1.5-7B, and every stop of it counts. Timed is ``select`` alone, on one CPU thread; what it reads lies there.
Exponents are slopes of log time over log N. The prefill is one decoder layer of LLaVA-1.5-7B's shape, measured on the
tokens that each layer has under the method beside 64 of text, summed over 32; tower and projector are not in it, so
that shares of the whole prefill are smaller.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from measuring import exponent
from transformers import LlamaConfig, LlamaModel

from vtc.eval.stability.made_up_spans import Made, MadeOnce, Sizes, picture, unchanged, video
from vtc.eval.stability.rounding_overlap import DEPTH, SIZES, setting, stops_of, walk
from vtc.pruners import list_pruners
from vtc.pruners.base import Pruner
from vtc.pruners.layout import Layout
from vtc.pruners.signals import DecoderSignal, Signal
from vtc.pruners.visual_tokens import VisualTokens

TEXT = 64
LLAVA = Sizes(heads=16, head=64, encoder=1024, decoder=4096, text=TEXT, vocabulary=32064)
LLAVA_LAYER = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}
MEASURED = 128, 384, 640  # tokens of a layer; longer ones by their FLOPs
LAYOUTS = {"picture": picture, "video": video}
LIMIT = 0.03  # of the prefill
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Ready(MadeOnce):
    """A span of LLaVA's widths: the decoder's heads are wider and more than the tower's."""

    def at(self, signal: Signal) -> Made:
        """With the heads of where `signal` is from."""
        wide = isinstance(signal, DecoderSignal) and self.sizes.decoder == LLAVA.decoder
        return Made(self.layout, replace(self.sizes, heads=32, head=128) if wide else self.sizes, vary=self.vary)


def clocked(pruner: Pruner) -> list[float]:
    """Seconds of every ``select`` of `pruner` from now on are added to this list."""
    seconds: list[float] = []
    select = pruner.select

    def timed(tokens: VisualTokens, k: int) -> Any:
        start = time.process_time()
        found = select(tokens, k)
        seconds.append(time.process_time() - start)
        return found

    pruner.select = timed  # type: ignore[method-assign]
    return seconds


def measure(method: str, layout: Layout, keep: float, turns: int, dtype: torch.dtype) -> dict[str, Any]:
    """Seconds that one method chooses for, all stops together, and the tokens that are left behind each."""
    pruner = setting(method, keep)
    made = Ready(layout, SIZES.get(pruner.name, LLAVA), vary=unchanged if dtype == torch.float32 else as_dtype(dtype))
    walk(pruner, made)  # draws, and makes what is made once
    seconds, found, turns_seconds = clocked(pruner), [], []
    for _ in range(turns):
        seconds.clear()
        found = walk(pruner, made)
        turns_seconds.append(sum(seconds))
    stops = [(stop.stage, stop.layer, len(left)) for stop, left in zip(stops_of(pruner), found, strict=True)]
    return {"seconds": statistics.median(turns_seconds), "stops": stops}


def as_dtype(dtype: torch.dtype) -> Any:
    """What makes everything drawn of this type."""
    return lambda x, _: x.to(dtype)


def tokens_per_layer(n: int, stops: Sequence[tuple[str, int | None, int]]) -> list[int]:
    """Visual tokens in each decoder layer."""
    left, found = n, []
    for layer in range(DEPTH):
        for stage, at, kept in stops:
            if (stage != "decoder" and layer == 0) or (stage == "decoder" and at == layer):
                left = kept
        found.append(left)
    return found


class Layer:
    """CPU seconds of a decoder layer on some tokens."""

    def __init__(self, dtype: torch.dtype, turns: int):
        config = LlamaConfig(**LLAVA_LAYER, num_hidden_layers=1, vocab_size=32)
        self.model = LlamaModel(config).to(dtype).eval()
        self.turns, self.dtype = turns, dtype
        self.known = {n: self._measure(n) for n in MEASURED}

    @torch.no_grad()
    def _measure(self, n: int) -> float:
        x = torch.randn(1, n, LLAVA.decoder).to(self.dtype)
        found = []
        for _ in range(1 + self.turns):
            start = time.process_time()
            self.model(inputs_embeds=x, use_cache=False)
            found.append(time.process_time() - start)
        return statistics.median(found[1:])

    def seconds(self, n: int) -> float:
        """As the nearest measured number of tokens, in proportion to FLOPs."""
        at = min(MEASURED, key=lambda m: abs(m - n))
        return self.known[at] * _flops(n) / _flops(at)


def _flops(n: int) -> float:
    width, inner = LLAVA_LAYER["hidden_size"], LLAVA_LAYER["intermediate_size"]
    return 2 * n * (4 * width**2 + 3 * width * inner) + 4 * n**2 * width


def measure_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each method, layout and N."""
    layer = Layer(DTYPES[args.dtype], args.turns)
    lines = []
    for method in args.methods:
        for name in args.layouts:
            for n in args.tokens:
                line: dict[str, Any] = {"method": method, "layout": name, "tokens": n, "dtype": args.dtype}
                layout = LAYOUTS[name](n)
                if name != "picture" and layout == picture(n):
                    continue
                try:
                    line |= measure(method, layout, args.keep, args.turns, DTYPES[args.dtype])
                    left = tokens_per_layer(n, line["stops"])
                    line["prefill_seconds"] = sum(layer.seconds(TEXT + n) for n in left)
                    line["share"] = line["seconds"] / line["prefill_seconds"]
                    told = f"{line['seconds'] * 1e3:.1f} ms, {line['share']:.1%} of the prefill"
                except (NotImplementedError, TypeError, ValueError, RuntimeError, AssertionError) as error:
                    told = line["failed"] = f"{type(error).__name__}: {error}"
                lines.append(line)
                print(f"{method:<16} {name:<8} {n:>5}  {told}", flush=True)
    return lines


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: of each method the milliseconds at each N, of the slower layout, exponents and the largest share."""
    sizes = sorted({line["tokens"] for line in lines})
    shown = [n for n in sizes if n in (576, 2880)]
    head = [
        "method",
        *(f"{n:,} tokens, ms" for n in sizes),
        "exponent",
        "at the end",
        *(f"share at {n:,}" for n in shown),
    ]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method in dict.fromkeys(line["method"] for line in lines):
        mine = [line for line in lines if line["method"] == method]
        if failed := [line["failed"] for line in mine if "failed" in line]:
            rows.append(f"| `{method}` | {failed[0]} |" + " |" * (len(head) - 2))
            continue
        slowest = {n: max((x for x in mine if x["tokens"] == n), key=lambda x: x["seconds"]) for n in sizes}
        seconds = [slowest[n]["seconds"] for n in sizes]
        slopes = (exponent(sizes, seconds), exponent(sizes[-2:], seconds[-2:]))
        cells = [f"{s * 1e3:.2g}" if s < 0.1 else f"{s * 1e3:,.0f}" for s in seconds]
        cells += [f"{s:.1f}" for s in slopes] + [_percent(slowest[n]["share"]) for n in shown]
        rows.append("| " + " | ".join([f"`{method}`", *cells]) + " |")
    return "\n".join(rows) + "\n"


def _percent(share: float) -> str:
    text = f"{share:.2%}" if share < 0.01 else f"{share:.1%}"
    return f"**{text}**" if share > LIMIT else text


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=lambda t: t.split(","), default=list_pruners(), help="default: all")
    parser.add_argument("--tokens", type=lambda t: [int(n) for n in t.split(",")], default="144,576,2880,5760")
    parser.add_argument("--layouts", type=lambda t: t.split(","), default=list(LAYOUTS))
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--keep", type=float, default=0.11)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--table", type=Path, help="Markdown")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = measure_all(args)
    print("\n" + table(lines))
    if args.table:
        args.table.write_text(table(lines))
    if args.output:
        args.output.write_text(json.dumps({"torch": torch.__version__, "keep": args.keep, "lines": lines}, indent=1))


if __name__ == "__main__":
    main()
