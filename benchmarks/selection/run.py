"""How long methods take to choose: vtc's against the plain method, on the same inputs, one CPU thread, in turns.

    python benchmarks/selection/run.py --methods mmr,dpp --tokens 576,2880 --width 1024,4096 --batch 1,8
        --dtype float32,bfloat16 [--look noise,picture] [--keep 0.11] [--turns 5] [--output FILE.json]

Each line is one shape: CPU time of either side (median), how many times faster ours is (median of the turns' ratios,
with an interval that holds it with 90%), the most memory either held at a time beyond its inputs, as a multiple of the
features' bytes, and the share of tokens that both keep. Below them: exponents, the slope of log time over log N.
A case is a file in transcriptions/, see cases.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads must not spin on a shared machine
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # nothing from the profiler that counts bytes

import torch
from cases import FOLDER, LOOKS, Case, NotHere, Shape, read_cases
from measuring import exponent, in_turns, median_interval, peak_bytes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
HEAD = f"{'method':<16} {'N':>6} {'D':>5} {'B':>2} {'dtype':<9} {'look':<8} {'theirs ms':>10} {'ours ms':>9} "
HEAD += f"{'ratio':>7} {'interval':<15} {'memory theirs':>13} {'ours':>6}  same"


@torch.no_grad()
def measure(case: Case, shape: Shape, turns: int, memory: bool) -> dict[str, Any]:
    """One line of the table."""
    line: dict[str, Any] = {
        "method": case.name,
        "tokens": shape.tokens,
        "width": shape.width,
        "batch": shape.batch,
        "dtype": str(shape.dtype).removeprefix("torch."),
        "look": shape.look,
        "kept": shape.kept,
    }
    inputs = case.make(shape)
    sides = [lambda: case.theirs(inputs, shape), lambda: case.ours(inputs, shape)]
    try:
        line["same"] = case.agree(*(side() for side in sides))
    except NotHere as error:
        return {**line, "left_out": str(error)}
    theirs, ours = in_turns(sides, turns)
    line["theirs_seconds"], line["ours_seconds"] = (median_interval(s)[0] for s in (theirs, ours))
    line["ratio"], *line["ratio_interval"] = median_interval([a / b for a, b in zip(theirs, ours, strict=True)])
    if memory:
        bytes_of_features = shape.batch * shape.tokens * shape.width * shape.dtype.itemsize
        line["theirs_memory"], line["ours_memory"] = (peak_bytes(side) / bytes_of_features for side in sides)
    return line


def written(line: dict[str, Any]) -> str:
    """A line of the printed table."""
    text = f"{line['method']:<16} {line['tokens']:>6} {line['width']:>5} {line['batch']:>2} {line['dtype']:<9} "
    text += f"{line['look']:<8} "
    if "left_out" in line:
        return text + line["left_out"]
    low, high = line["ratio_interval"]
    text += f"{line['theirs_seconds'] * 1e3:>10.1f} {line['ours_seconds'] * 1e3:>9.1f} {line['ratio']:>7.2f} "
    text += f"{f'[{low:.2f}, {high:.2f}]':<15} "
    if "ours_memory" in line:
        text += f"{line['theirs_memory']:>13.2f} {line['ours_memory']:>6.2f}"
    else:
        text += " " * 20
    return text + f"  {line['same']:.3f}"


def exponents(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each method, width, batch, dtype and look that has several N: how time grows in N."""
    keys = ("method", "width", "batch", "dtype", "look")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        if "left_out" not in line:
            groups.setdefault(tuple(line[key] for key in keys), []).append(line)
    for group, members in groups.items():
        sizes = [line["tokens"] for line in members]
        if len(set(sizes)) > 1:
            slopes = {s: exponent(sizes, [line[f"{s}_seconds"] for line in members]) for s in ("theirs", "ours")}
            yield {**dict(zip(keys, group, strict=True)), **slopes}


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the case files are")
    parser.add_argument("--methods", help="names of cases, separated by commas; default: all")
    for name, default in (("tokens", "576,2880"), ("width", "1024,4096"), ("batch", "1,8")):
        parser.add_argument(f"--{name}", type=lambda t: [int(n) for n in t.split(",")], default=default)
    parser.add_argument("--dtype", type=lambda t: t.split(","), default="float32,bfloat16")
    parser.add_argument("--look", type=lambda t: t.split(","), default="noise,picture")
    parser.add_argument("--keep", type=float, default=0.11)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    cases = read_cases(args.folder)
    names = args.methods.split(",") if args.methods else list(cases)
    for kind, given, known in (("methods", names, cases), ("dtype", args.dtype, DTYPES), ("look", args.look, LOOKS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"--{kind} {','.join(unknown)}: allowed are {', '.join(known)}")
    torch.set_num_threads(1)
    print(HEAD, flush=True)
    lines = []
    shapes = itertools.product(args.dtype, args.look, args.batch, args.width, args.tokens)
    for name, (dtype, look, batch, width, tokens) in itertools.product(names, list(shapes)):
        shape = Shape(tokens, width, batch, DTYPES[dtype], args.keep, look)
        lines.append(measure(cases[name], shape, args.turns, not args.no_memory))
        print(written(lines[-1]), flush=True)
    slopes = list(exponents(lines))
    print(f"\n{'method':<16} {'D':>5} {'B':>2} {'dtype':<9} {'look':<8} {'exponent theirs':>15} {'ours':>6}")
    for s in slopes:
        print(
            f"{s['method']:<16} {s['width']:>5} {s['batch']:>2} {s['dtype']:<9} {s['look']:<8} "
            f"{s['theirs']:>15.2f} {s['ours']:>6.2f}"
        )
    if args.output:
        args.output.write_text(json.dumps({"torch": torch.__version__, "lines": lines, "exponents": slopes}, indent=1))


if __name__ == "__main__":
    main()
