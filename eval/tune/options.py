"""What ``vtc tune`` is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vtc.eval.sweep.options import RunOptions
from vtc.eval.tasks.reading.unusable_rows import ON_ERROR
from vtc.eval.terminal.option_checks import check_choice

COSTS = {
    "flops": "FLOPs of the prefill, vision tower included",
    "prefill": "seconds to the first token",
    "tokens": "visual tokens per decoder layer",
}
DEFAULT_KEEPS: tuple[int | float, ...] = (0.5, 0.33, 0.25, 0.2, 0.15, 0.11, 0.07, 0.05)


@dataclass
class TuneOptions(RunOptions):
    """Options of a search; the command line's defaults.

    ``target`` is the share of the unpruned accuracy that has to be kept, ``by`` (one of ``COSTS``) what is to be cheap,
    ``confirm`` the share of the images that are held out of the search, ``eta`` how many times fewer settings and more
    questions a rung has than the one before. Methods that draw at random draw with ``seed``, which the configuration
    then says too. The others are those of ``RunOptions``.
    """

    target: float = 0.98
    pruners: Sequence[str] = ("all",)
    keeps: Sequence[int | float] = DEFAULT_KEEPS
    by: str = "flops"
    confidence: float = 0.95
    confirm: float = 0.5
    eta: float = 2.0


def check_options(options: TuneOptions) -> None:
    """Refuse options out of range before anything is loaded.

    Raises
    ------
    ValueError
        The message names the option and what is allowed.
    """
    if not 0 < options.target <= 1:
        raise ValueError(
            f"--target {options.target:g} is out of range: it is a share of the unpruned accuracy, above 0, at most 1"
        )
    for name, value in (("confidence", options.confidence), ("confirm", options.confirm)):
        if not 0 < value < 1:
            raise ValueError(f"--{name} {value:g} is out of range: it must be between 0 and 1")
    if options.confidence < 0.5:
        raise ValueError(f"--confidence {options.confidence:g} is out of range: it must be at least 0.5")
    if not 1 < options.eta <= 100:
        raise ValueError(f"--eta {options.eta:g} is out of range: it must be above 1 and at most 100")
    check_choice("--by", options.by, COSTS)
    check_choice("--on-error", options.on_error, ON_ERROR)
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit {options.limit} is out of range: it is the number of questions per task, at least 1")
    if not options.pruners or not options.keeps:
        name = "--keep" if options.pruners else "--pruners"
        raise ValueError(f"{name} is empty: there is nothing to choose from")
