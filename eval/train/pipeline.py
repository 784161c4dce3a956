"""The stages in order, and the processes that run them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vtc.eval.train.basics.distributed_ranks import Ranks
from vtc.eval.train.basics.loop import Place
from vtc.eval.train.basics.recipe import Recipe
from vtc.eval.train.language.language_stage import train_language
from vtc.eval.train.vision.vision_stage import train_vision

from .export import export

STAGES = ("vision", "language")


def launch(recipe: Recipe, folder: Path, until: str = STAGES[-1]) -> None:
    """Run the recipe in one process per rank and wait for the end."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_run_rank, args=(recipe, folder, until, _free_port()), nprocs=recipe.ranks)


def run(recipe: Recipe, place: Place, until: str = STAGES[-1], export_model: bool = True) -> None:
    """Run the stages in order; complete ones are loaded from their checkpoints.

    Parameters
    ----------
    recipe : Recipe
        The whole recipe.
    place : Place
        Where the run lives.
    until : {"vision", "language"}
        The last stage to run.
    export_model : bool
        Whether the first rank writes ``model/`` and ``clip/`` at the end.
    """
    clip = train_vision(recipe, place)
    if until == "vision":
        return
    model = train_language(recipe, place, clip)
    if export_model and place.ranks.is_first:
        export(model, clip, place.folder)


def _run_rank(index: int, recipe: Recipe, folder: Path, until: str, port: int) -> None:
    torch.set_num_threads(1)
    ranks = Ranks(index, recipe.ranks)
    if ranks.count > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=index, world_size=ranks.count)
    run(recipe, Place(folder, ranks), until)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
