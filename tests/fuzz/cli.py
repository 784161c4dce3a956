"""The long run: ``python tests/fuzz --draws 2000 --log fuzz.jsonl``; ``--seed N --draw M`` does one again."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .case import Disagreement
from .check import Result, check
from .draws import Draw, drawn, shrunk


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 if any draw was wrong."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="another seed is another sequence of draws")
    parser.add_argument("--draws", type=int, default=2000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--draw", type=int, help="run this one only, and show where it fails")
    parser.add_argument("--shrink", action="store_true", help="with --draw: look for the smallest that fails")
    parser.add_argument(
        "--log", type=Path, help="a JSON line for each draw; what it holds is not run again, unless wrong"
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.draw is not None:
        return again(options.seed, options.draw, options.shrink)
    rows = run(options.seed, range(options.first, options.first + options.draws), options.log)
    print(summary(rows))
    return int(any(row["status"] == "wrong" for row in rows))


def again(seed: int, number: int, shrink: bool) -> int:
    """One draw, in full."""
    draw = drawn(seed, number)
    print(draw)
    result = check(draw)
    print(result.trace or result.why, f"\n{result.status}, off by {result.off:.3g}, {result.seconds:.1f} s")
    if result.status == "wrong" and shrink:
        smallest: list[Draw] = []

        def body(one: Draw) -> None:
            found = check(one)
            if found.status == "wrong":
                smallest.append(one)
                raise Disagreement(found.why)

        try:
            shrunk(seed, number, body)
        except Disagreement as error:
            print(f"\nsmallest: {smallest[-1]!r}\n{error}")
    return int(result.status == "wrong")


def row_of(seed: int, number: int, draw: Draw, result: Result) -> dict[str, Any]:
    """A line of the log."""
    return {
        "seed": seed,
        "draw": number,
        "family": draw.family,
        "methods": [name for name, _ in draw.methods],
        "mode": draw.mode,
        "dtype": draw.dtype,
        "attention": draw.attention,
        "status": result.status,
        "why": result.why,
        "off": result.off,
        "seconds": round(result.seconds, 3),
        "what": str(draw),
    }


def run(seed: int, numbers: Iterable[int], log: Path | None = None) -> list[dict[str, Any]]:
    """Run the draws that `log` does not hold yet; gives the lines of all of them."""
    numbers = list(numbers)
    rows = known(log, seed, set(numbers))
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("", total=len(numbers), completed=len(rows))
        for number in numbers:
            if number in rows:
                continue
            draw = drawn(seed, number)
            row = rows[number] = row_of(seed, number, draw, check(draw))
            if log is not None:
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if row["status"] == "wrong":
                bar.console.print(f"WRONG: {reproducer(row)}\n  {row['why']}", markup=False)
            counts = Counter(r["status"] for r in rows.values())
            bar.update(task, advance=1, description=", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
    return [rows[number] for number in numbers]


def known(log: Path | None, seed: int, numbers: set[int]) -> dict[int, dict[str, Any]]:
    """What `log` holds of these draws, but for those that were wrong: they may be right by now."""
    if log is None or not log.exists():
        return {}
    text = log.read_text()
    if text and not text.endswith("\n"):  # killed while it wrote
        log.write_text(text[: text.rfind("\n") + 1])
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    found = {row["draw"]: row for row in rows if row["seed"] == seed and row["draw"] in numbers}
    return {number: row for number, row in found.items() if row["status"] != "wrong"}


def reproducer(row: dict[str, Any]) -> str:
    """The command that does a draw again."""
    return f"python tests/fuzz --seed {row['seed']} --draw {row['draw']}"


def summary(rows: list[dict[str, Any]]) -> str:
    """Counts; why draws were refused, skipped or beyond transformers; and each that was wrong."""
    lines = [", ".join(f"{n} {status}" for status, n in Counter(r["status"] for r in rows).most_common())]
    for status in ("refused", "stock", "skipped"):
        for why, n in Counter(r["why"] for r in rows if r["status"] == status).most_common():
            lines.append(f"{n:5} {status}: {why}")
    for by in ("family", "mode", "dtype", "attention"):
        exact = Counter(r[by] for r in rows if r["status"] == "exact")
        total = Counter(r[by] for r in rows)
        lines.append(f"exact by {by}: " + ", ".join(f"{k} {exact[k]}/{n}" for k, n in sorted(total.items())))
    names = Counter(name for r in rows for name in r["methods"])
    exact = Counter(name for r in rows if r["status"] == "exact" for name in r["methods"])
    lines.append("exact by method: " + ", ".join(f"{k} {exact[k]}/{n}" for k, n in sorted(names.items())))
    lines += [f"WRONG {reproducer(r)}: {r['why']}\n      {r['what']}" for r in rows if r["status"] == "wrong"]
    return "\n".join(lines)
