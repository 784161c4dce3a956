"""How much a sweep saves: ``python benchmarks/sweep_speed.py``.

One sweep of ten input-stage cells against ten separate runs of one cell each, a process each, on the same questions of
the bundled tasks, in one go: the sweep first, then the runs. Both compute answers alone (no timings, no report, no
unpruned reference), with the same options, so the sweep gains by loading once and by encoding each image once. Also
prints how right the progress bar's estimate was after a tenth of the sweep's time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

METHODS = ("random", "uniform", "pool", "norm", "divprune")
KEEPS = (0.25, 0.11)
TARGET = 0.45


def command(out: Path, cells: list[str], limit: int) -> list[str]:
    """One run of ``vtc bench`` that answers `cells`."""
    chosen = [part for cell in cells for part in ("--cell", cell)]
    return [
        sys.executable, "-m", "vtc", "bench", "--pruners", ",".join(METHODS), "--keep", ",".join(map(str, KEEPS)),
        "--seeds", "1", "--limit", str(limit), "--workers", "1", "--no-timing", "--output", str(out), *chosen,
    ]  # fmt: skip


def run(out: Path, cells: list[str], limit: int) -> float:
    """Seconds of one process."""
    start = time.perf_counter()
    subprocess.run(command(out, cells, limit), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=20, help="questions of each task")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    cells = [f"{method}(keep={keep})" for keep in KEEPS for method in METHODS]
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
    figures = {"sweep": sweep, "separate": separate, "ratio": ratio, "limit": options.limit, "load": load}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    if ratio > TARGET:
        raise SystemExit(f"more than {TARGET:.0%}")


if __name__ == "__main__":
    main()
