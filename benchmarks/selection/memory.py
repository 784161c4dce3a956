"""How many bytes every registered method holds to choose, beyond what it is given: by default of 19,881 tokens.

    python benchmarks/selection/memory.py [--methods all] [--tokens 19881] [--width 1024] [--keep 0.11]
        [--dtype bfloat16] [--seconds 300] [--output FILE.json]

Each method runs in a process of its own, which is ended after ``--seconds`` of CPU time. ``vtc stability``'s made-up
picture gives it what it reads; every stop of it is measured by the allocator's own record, and the one that holds most
counts. The seconds are CPU time of ``select``, all stops together, one thread, with that record being kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from every_method import DTYPES, as_dtype
from measuring import peak_bytes

from vtc.eval.stability.made_up_spans import MadeOnce, Sizes, picture
from vtc.eval.stability.rounding_overlap import SIZES, setting, walk
from vtc.pruners import list_pruners
from vtc.pruners.base import Pruner
from vtc.pruners.signals import DecoderSignal, QuestionState, TextEmbeddings
from vtc.pruners.visual_tokens import VisualTokens

MIB = 2**20


def lay_ready(tokens: VisualTokens, made: MadeOnce) -> None:
    """Make all that the method may read at this stop."""
    for read in made.declared:
        spoken = isinstance(read, (TextEmbeddings, QuestionState))
        if not spoken:
            tokens.read(read)
        if spoken or (isinstance(read, DecoderSignal) and not read.is_attention):
            tokens.text(read)


def watched(pruner: Pruner, made: MadeOnce) -> list[tuple[int, float]]:
    """Bytes and CPU seconds of every ``select`` of `pruner` from now on are added to this list."""
    found: list[tuple[int, float]] = []
    select = pruner.select

    def kept(tokens: VisualTokens, k: int) -> Any:
        given: list[Any] = []
        lay_ready(tokens, made)
        start = time.process_time()
        held = peak_bytes(lambda: given.append(select(tokens, k)))
        found.append((held, time.process_time() - start))
        return given[0]

    pruner.select = kept  # type: ignore[method-assign]
    return found


def measure(method: str, tokens: int, width: int, keep: float, dtype: torch.dtype) -> dict[str, float]:
    """The most MiB that one method holds, and the seconds that it takes."""
    pruner = setting(method, keep)
    sizes = SIZES.get(pruner.name, replace(Sizes(), decoder=width))
    made = MadeOnce(picture(tokens), sizes, vary=as_dtype(dtype))
    if pruner.reads_vocabulary:
        made.embeddings  # noqa: B018
    made.projector  # noqa: B018
    found = watched(pruner, made)
    walk(pruner, made)
    return {
        "mib": max((held for held, _ in found), default=0) / MIB,
        "seconds": sum(seconds for _, seconds in found),
    }


def in_a_process(method: str, given: list[str]) -> dict[str, Any]:
    """``measure`` in a process of its own."""
    command = [sys.executable, __file__, *given, "--methods", method, "--here"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return {"failed": "not done in time"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"ended by {done.returncode}"])[-1]}
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=lambda t: t.split(","), default=list_pruners(), help="default: all")
    parser.add_argument("--tokens", type=int, default=141**2)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--keep", type=float, default=0.11)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--here", action="store_true", help="one method, in this process")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.here:
        resource.setrlimit(resource.RLIMIT_CPU, (args.seconds, args.seconds + 5))
        print(json.dumps(measure(args.methods[0], args.tokens, args.width, args.keep, DTYPES[args.dtype])))
        return
    names = ("tokens", "width", "keep", "dtype", "seconds")
    given = [f"--{name}={getattr(args, name)}" for name in names]
    found = {}
    for method in args.methods:
        found[method] = told = in_a_process(method, given)
        print(f"{method:<16}", told.get("failed") or f"{told['mib']:9.1f} MiB {told['seconds']:8.1f} s", flush=True)
    if args.output:
        args.output.write_text(json.dumps({"torch": torch.__version__, "given": given, "methods": found}, indent=1))


if __name__ == "__main__":
    main()
