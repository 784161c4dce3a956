"""``python -m vtc.eval.train.real --out DIR``: train the adapter of ``bundled-real``; a run that was killed goes on."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from vtc.eval.train.basics.distributed_ranks import Ranks
from vtc.eval.train.basics.loop import Place

from .low_rank import save_adapter
from .real_stage import train_adapter
from .recipe import RealRecipe, tiny_real_recipe


def main() -> None:
    """Parse the command line, train, and write ``adapter.safetensors``."""
    parser = argparse.ArgumentParser(prog="python -m vtc.eval.train.real", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an existing run is resumed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, metavar="FILE", help="an adapter to begin the last part with")
    parser.add_argument("--compile", action="store_true", help="compile the layers: a minute first, then faster")
    parser.add_argument("--tiny", action="store_true", help="a few steps (for tests)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = tiny_real_recipe(options.seed) if options.tiny else RealRecipe(seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    student = train_adapter(recipe, Place(options.out, Ranks(), log_every=10), options.compile, options.start)
    save_adapter(student.projector, student.added, options.out / "adapter.safetensors")


if __name__ == "__main__":
    main()
