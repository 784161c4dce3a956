"""Run a draw and say how it went: exact, refused in clear words, beyond transformers itself, or WRONG."""

from __future__ import annotations

import time
import traceback
import warnings
from dataclasses import dataclass

import torch

import vtc

from . import modes
from .case import Case, Disagreement, Skip, model_of
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
    # torch's compiled CPU kernels for flex attention fail for some shapes, and are wrong for others
    eager = torch.compiler.set_stance("force_eager")
    with torch.no_grad(), torch.random.fork_rng(devices=()), warnings.catch_warnings(), eager:
        warnings.simplefilter("ignore")
        result = _check(draw)
        if result.status == "wrong":  # of itself, or of what an earlier draw left behind?
            model_of.cache_clear()
            if _check(draw).status != "wrong":
                result.why = f"only on a model that was wrapped before: {result.why}"
            model_of.cache_clear()
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
    except Exception as error:
        if not hasattr(case.model, "vtc") and not _from_vtc(error):
            return Result("stock", f"{type(error).__name__}: {_line(error)}")
        if isinstance(error, (ValueError, NotImplementedError)) and _from_vtc(error) and len(str(error)) >= WORDS:
            return Result("refused", _line(error))
        if _fails_unwrapped(case):
            return Result("stock", f"{type(error).__name__}: {_line(error)}")
        return Result("wrong", f"{type(error).__name__}: {_line(error)}", trace=traceback.format_exc())
    finally:
        vtc.restore(case.model)
    return Result("exact", off=case.worst)


def _fails_unwrapped(case: Case) -> bool:
    try:
        if case.unwrapped is not None:
            case.unwrapped()
    except Exception:
        return True
    return False


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _from_vtc(error: BaseException) -> bool:
    """Whether vtc raised it: the innermost frame is a line of its own."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and str(last.tb_frame.f_globals.get("__name__", "")).split(".")[0] == "vtc"
