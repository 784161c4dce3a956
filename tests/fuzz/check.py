"""Run a draw and say how it went: exact, refused in clear words, beyond transformers itself, or WRONG."""

from __future__ import annotations

import time
import traceback
import warnings
from dataclasses import dataclass

import torch
from torch._inductor.exc import InductorError

import vtc

from . import modes
from .case import Case, Disagreement, Skip
from .draws import Draw
from .turns import turns

RUN = {
    "forward": modes.forward,
    "labels": modes.labels,
    "greedy": modes.greedy,
    "no_cache": modes.no_cache,
    "sample": modes.sample,
    "beams": modes.beams,
    "assisted": modes.assisted,
    "turns": turns,
}
WORDS = 20  # letters that a refusal has at least


@dataclass
class Result:
    """How a draw went.

    Attributes
    ----------
    status : str
        ``exact``; ``refused`` by vtc with a word on why; ``stock``: transformers itself can't, unwrapped; ``skipped``:
        there is no reference for it; ``wrong``.
    why : str
        For all but ``exact``.
    off : float
        Largest difference of logits.
    """

    status: str
    why: str = ""
    off: float = 0.0
    seconds: float = 0.0
    trace: str = ""


def check(draw: Draw) -> Result:
    """Run `draw`."""
    started = time.perf_counter()
    with torch.no_grad(), torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = _check(draw)
    result.seconds = time.perf_counter() - started
    return result


def _check(draw: Draw) -> Result:
    case = Case(draw)
    try:
        RUN[draw.mode](case)
    except Disagreement as error:
        return Result("wrong", str(error), case.worst)
    except Skip as error:
        return Result("skipped", str(error))
    except InductorError as error:
        return Result("stock", f"torch can't compile flex attention here: {_line(error)}")
    except Exception as error:
        if not hasattr(case.model, "vtc") and not _from_vtc(error):
            return Result("stock", f"{type(error).__name__}: {_line(error)}")
        if isinstance(error, (ValueError, NotImplementedError)) and _from_vtc(error) and len(str(error)) >= WORDS:
            return Result("refused", _line(error))
        return Result("wrong", f"{type(error).__name__}: {_line(error)}", trace=traceback.format_exc())
    return Result("exact", off=case.worst)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _from_vtc(error: BaseException) -> bool:
    """Whether vtc raised it: the innermost frame is a line of its own."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and str(last.tb_frame.f_globals.get("__name__", "")).split(".")[0] == "vtc"
