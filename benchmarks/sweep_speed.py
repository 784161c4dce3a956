"""How much a sweep saves: ``python benchmarks/sweep_speed.py``.

One sweep of ten input-stage cells against ten separate runs of one cell each, a process each, on the same questions of
the bundled tasks, in one go: the sweep first, then the runs, in CPU seconds. Both compute answers alone (no timings,
no report, no unpruned reference), with the same options, so the sweep gains by loading once and by encoding each image
once. Also prints how right the progress bar's estimate was after a tenth of the sweep's time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

METHODS = ("random", "uniform", "pool", "norm", "divprune")
KEEPS = (0.25, 0.11)
TARGET = 0.2


def command(out: Path, cells: list[str], limit: int) -> list[str]:
    """One run of ``vtc bench`` that answers `cells`."""
    chosen = [part for cell in cells for part in ("--cell", cell)]
    return [
        sys.executable, "-m", "vtc", "bench", "--pruners", ",".join(METHODS), "--keep", ",".join(map(str, KEEPS)),
        "--seeds", "1", "--limit", str(limit), "--workers", "1", "--no-timing", "--output", str(out), *chosen,
    ]  # fmt: skip


def run(out: Path, cells: list[str], limit: int) -> float:
    """CPU seconds of one process."""
    before = os.times()
    subprocess.run(command(out, cells, limit), check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def estimate(cells: list[str], limit: int) -> tuple[float, float]:
    """Seconds that were left after a tenth of a sweep's time, and what the progress bar said then."""
    from vtc.bundled_files import bundled_data
    from vtc.eval.sweep.sweep_run import ENCODING, Sweep, run_sweep
    from vtc.eval.tasks.reading.load import load_tasks
    from vtc.eval.terminal.progress_bars_and_eta import Estimator
    from vtc.eval.vlm.loading import load_model
    from vtc.eval.vlm.pruning_settings import make_cell

    class Store(dict[tuple[str, str], Any]):
        def append(self, rows: Iterable[dict[str, Any]]) -> None:
            self.update({(row["cell"], row["question_id"]): row for row in rows})

    tasks = load_tasks(bundled_data()).subset(None, limit)
    sweep = Sweep(load_model(None, "cpu"), tasks, [make_cell(cell, None) for cell in cells])
    parts = {cell.spec: len(tasks.questions) for cell in sweep.cells}
    estimator = Estimator({**parts, ENCODING: len(tasks.groups())})
    start, said = time.perf_counter(), [(0.0, 0.0)]

    def advance(cell: str, count: int, found: bool) -> None:
        (estimator.found if found else estimator.done)(cell, count)
        said.append((time.perf_counter() - start, estimator.seconds_left() or 0.0))

    run_sweep(sweep, Store(), advance)
    whole = time.perf_counter() - start
    at, left = next((at, left) for at, left in said if at >= 0.1 * whole)
    return whole - at, left


def main() -> None:
    """Measure, and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=20, help="questions of each task")
    parser.add_argument("--estimate", action="store_true", help="only check the progress bar's estimate")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    cells = [f"{method}(keep={keep})" for keep in KEEPS for method in METHODS]
    if options.estimate:
        left, said = estimate(cells, options.limit)
        print(f"after a tenth: {left:.1f} s left, the progress bar said {said:.1f} s ({said / left - 1:+.0%})")
        return
    with tempfile.TemporaryDirectory() as folder:
        sweep = run(Path(folder) / "sweep", cells, options.limit)
        separate = []
        for i, cell in enumerate(cells):
            separate.append(run(Path(folder) / str(i), [cell], options.limit))
            print(f"{cell}: {separate[-1]:.1f} s", flush=True)
    ratio = sweep / sum(separate)
    load = os.getloadavg()[0]
    print(
        f"sweep of {len(cells)} cells {sweep:.1f} s, separate runs {sum(separate):.1f} s: {ratio:.1%} (load {load:.1f})"
    )
    left, said = estimate(cells, options.limit)
    print(f"after a tenth: {left:.1f} s left, the progress bar said {said:.1f} s ({said / left - 1:+.0%})")
    figures = {"sweep": sweep, "separate": separate, "ratio": ratio, "limit": options.limit, "load": load,
               "left": left, "estimate": said}  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    if ratio > TARGET:
        raise SystemExit(f"more than {TARGET:.0%}")


if __name__ == "__main__":
    main()
