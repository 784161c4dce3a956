"""The cells of a sweep: which methods at which keep, read from the command line's words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

DEFAULT_KEEPS: tuple[int | float, ...] = (0.5, 0.25, 0.11, 0.05)
RANDOM = "random"
DOWNSAMPLE = "downsample"  # no method, but smaller pictures: see ``smaller_pictures``
DEFAULT_METHODS = (RANDOM, "uniform", "pool", "dart", "fastv")
DEFAULT_PRUNERS = (DOWNSAMPLE, *DEFAULT_METHODS)
CACHE_BYTES = 2 << 30  # of vision features that are held
DEPTH = 32  # only to ask a method for its stages, before any model is loaded


@dataclass(frozen=True)
class Cell:
    """One setting: every question of the sweep is asked under it.

    Attributes
    ----------
    method : str
        Name of the line it belongs to, as the user wrote it.
    keep : int, float or None
        What is asked for; None where the method's own text says it.
    spec : str
        Canonical pipeline, ``"unpruned"`` for the plain model. Identifies the cell in the results.
    reads_text : bool
        Whether the kept tokens depend on the question.
    encoder : str
        Cells of one value can use the same vision outputs; empty for all that don't prune inside the tower.
    vision_stage : bool
        Whether it prunes inside the vision tower, or the tower is given another picture.
    seed : int or None
        Seed of a method that takes one; None for the others and where the text says it.
    line : str
        What its seeds share: method and keep; empty where there is one cell only.
    small : bool
        Whether the model is the stock one, on smaller pictures.
    """

    method: str
    keep: int | float | None
    spec: str
    reads_text: bool = False
    encoder: str = ""
    vision_stage: bool = False
    seed: int | None = None
    line: str = ""
    small: bool = False

    @property
    def stock(self) -> bool:
        """Whether the model is the stock one: ``spec`` is no pipeline then."""
        return self.small or self.spec == "unpruned"


UNPRUNED = Cell("unpruned", None, "unpruned")


def saved_setting(path: Path) -> str:
    """The pipeline of a ``vtc_config.json``, as text.

    Raises
    ------
    ValueError
        If it says more than a command's --pruner could: other positions, or a model's parts.
    """
    from vtc.config import VTCConfig
    from vtc.pipeline_text import format_pipeline

    config = VTCConfig.from_pretrained(path)
    if config.positions != "keep" or config.parts:
        what = "parts of a model" if config.parts else f"positions={config.positions!r}"
        raise ValueError(f"{path} was saved with {what}, which only vtc.load and vtc.compress take")
    return format_pipeline(config.pipeline())


def is_random(method: str) -> bool:
    """Whether a method is a random baseline, of whatever parameters."""
    return method.split("(")[0].strip() == RANDOM and method.count(")") <= 1 and "+" not in method


def is_downsample(method: str) -> bool:
    """Whether a line is the control of smaller pictures, which is no method."""
    return method.split("(")[0].strip() == DOWNSAMPLE and "+" not in method


def sets_keep(method: str) -> bool:
    """Whether a line's text says itself what is kept."""
    from vtc.pipeline_text import parse, split_pipeline

    if is_downsample(method):
        return "keep" in split_pipeline(method)[0][1]
    return not any(map(takes_keep, parse(method)))


def is_trained(spec: str) -> bool:
    """Whether a method of `spec` brings weights that were trained for it."""
    from vtc.pipeline_text import split_pipeline
    from vtc.pruners.registry import pruner_class

    try:
        calls = [(pruner_class(name), given) for name, given in split_pipeline(spec)]
    except ValueError:  # a method of one's own that is not imported here
        return False
    return any(method.trained and given.get("weights") not in method.no_files for method, given in calls)


def first_of_lines(cells: Sequence[Cell]) -> list[Cell]:
    """The first cell of each line: its seeds cost the same."""
    lines: dict[str, Cell] = {}
    for cell in cells:
        lines.setdefault(cell.line or cell.spec, cell)
    return list(lines.values())


def split_list(text: str) -> list[str]:
    """Split at commas outside parentheses: ``"dart,random(layer=2, seed=3)"`` has two parts."""
    parts, depth = [""], 0
    for char in text:
        depth += {"(": 1, ")": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def parse_keep(text: str) -> int | float:
    """Read one keep: ``"64"`` is 64 tokens, ``"0.25"`` and ``"25%"`` a quarter, ``"1"`` one token, ``"1.0"`` all.

    Raises
    ------
    ValueError
        For anything else; the message says what is allowed.
    """
    from vtc.pruners.base import check_keep

    text = text.strip()
    try:
        if text.endswith("%"):
            return check_keep(float(text[:-1]) / 100, "--keep")
        value: int | float = float(text) if any(c in text.lower() for c in ".en") else int(text)
    except ValueError:
        allowed = "an int >= 1 (tokens per image) or a number in (0, 1] (a fraction of them)"
        raise ValueError(f"--keep must be {allowed}, got {text!r}") from None
    return check_keep(value, "--keep")


def needs_keep(pruner: Any) -> bool:
    """Whether a method does not know what to keep without being told."""
    return pruner.keep is None and any(stop.keep is None for stop in pruner.stops(DEPTH))


def takes_keep(pruner: Any) -> bool:
    """Whether a method can still be told what to keep: its text says neither ``keep`` nor what contradicts one."""
    if pruner.keep is not None:
        return False
    try:
        replace(pruner, keep=0.5)
    except ValueError:  # such as the layer at which vtw withdraws everything
        return False
    return True


def telling(pruner: Any) -> Any:
    """`pruner` with a keep where it takes one: what a method does where may depend on its having one."""
    return replace(pruner, keep=0.5) if takes_keep(pruner) else pruner


def make_cell(method: str, keep: int | float | None, seed: int | None = None) -> Cell:
    """Build a cell from a method's name or pipeline.

    Parameters
    ----------
    method : str
        ``"dart"``, ``"random(layer=2, seed=3)"`` or a pipeline with ``+``.
    keep : int, float or None
        What to keep where the text does not say it.
    seed : int, optional
        Given to every method of it that takes one, if the text sets none.
    """
    from vtc.pipeline_text import format_pipeline, parse
    from vtc.pruners.signals import AttentionAhead, DecoderAttention, TextEmbeddings

    if is_downsample(method):
        return _smaller(method, keep)
    pipeline = parse(method, keep=keep)
    if seed is not None:
        if not takes_seed(pipeline, method):
            seed = None
        for pruner in pipeline if seed is not None else ():
            if hasattr(pruner, "seed"):
                pruner.seed = seed
    signals: list[Any] = [s for pruner in pipeline for s in pruner.signals]
    stages = {stop.stage for pruner in pipeline for stop in pruner.stops(DEPTH)}
    reads_text = any(p.uses_text or p.uses_question or p.calibrates for p in pipeline) or any(
        isinstance(s, TextEmbeddings | DecoderAttention | AttentionAhead) for s in signals
    )
    spec = format_pipeline(pipeline)
    in_tower = "vision" in stages
    line = f"{method} keep={keep}" if seed is not None else ""
    return Cell(method, keep, spec, reads_text, spec if in_tower else "", in_tower, seed, line)


def _smaller(method: str, keep: int | float | None) -> Cell:
    from vtc.pipeline_text import split_pipeline
    from vtc.pruners.base import check_keep

    ((_, given),) = split_pipeline(method)
    if unknown := sorted(given.keys() - {"keep"}):
        raise ValueError(f"{DOWNSAMPLE} has no parameter {unknown[0]!r}: it takes keep alone")
    keep = check_keep(given.get("keep", keep), f"{DOWNSAMPLE}.keep")
    spec = f"{DOWNSAMPLE}(keep={keep!r})"
    return Cell(method, keep, spec, encoder=spec, vision_stage=True, small=True)


def takes_seed(pipeline: Any, method: str) -> bool:
    """Whether a pipeline draws at random and its text does not say the seed."""
    return "seed" not in method and any(hasattr(pruner, "seed") for pruner in pipeline)


def make_seeds(method: str, keep: int | float | None, seeds: Sequence[int]) -> list[Cell]:
    """A cell, or one for each of `seeds` where the method takes one; the same pipeline comes once."""
    from vtc.pipeline_text import parse

    if is_downsample(method) or not takes_seed(parse(method, keep=keep), method):
        return [make_cell(method, keep)]
    cells = {cell.spec: cell for cell in (make_cell(method, keep, seed) for seed in seeds)}
    return list(cells.values())
