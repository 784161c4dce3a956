"""``python -m vtc.eval.train --out DIR``: train the bundled model from scratch with one seed."""

from __future__ import annotations

import argparse
from pathlib import Path

from vtc.eval.train.basics.recipe import Recipe, tiny_recipe

from .pipeline import STAGES, launch


def main() -> None:
    """Parse the command line and start one process per rank."""
    parser = argparse.ArgumentParser(prog="python -m vtc.eval.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an existing run is resumed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="stop after this stage")
    parser.add_argument("--tiny", action="store_true", help="a few steps on a very small model (for tests)")
    options = parser.parse_args()
    recipe = tiny_recipe(options.seed) if options.tiny else Recipe(seed=options.seed)
    launch(recipe, options.out, options.until)


if __name__ == "__main__":
    main()
