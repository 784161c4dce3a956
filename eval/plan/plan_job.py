"""``vtc plan``: from options to what is expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vtc.eval.cost.model_work import ModelWork
from vtc.eval.terminal.option_checks import check_choice, picture_size, request_counts
from vtc.eval.vlm.model_source import configuration, has_processor, read_processor
from vtc.eval.vlm.pruning_settings import needs_keep, parse_keep, split_list, takes_keep
from vtc.models.stock.transformers_api import keeps_state
from vtc.pipeline_text import parse
from vtc.pruners.base import Pruner

from .device_names import CPU, check_device
from .devices import FLOAT32, HALF
from .find_device import device_named
from .kept_tokens import Kept, kept_by, unpruned
from .parts_without_weights import parts_of
from .picture import Picture, blank, inputs_of, read_picture, smaller
from .reckon import GRID, Reckoning, Times, Turning, turning_points
from .selection_cost import SelectionCost, selection_cost

ANY = "any method"  # what is planned without --pruners: one at the input stage whose choice costs nothing
DTYPES = ("auto", FLOAT32, *HALF)


@dataclass(frozen=True)
class PlanOptions:
    """What is asked, as on the command line."""

    model: str
    image: str = "1280x960"
    keep: str = "0.25,0.11"
    batch: str = "1,8,32"
    gpu: str = "h100"
    pruner: str | None = None
    text_tokens: int | None = None
    answer_tokens: int = 128
    dtype: str = "auto"
    processor: str | None = None


@dataclass(frozen=True)
class Setting:
    """A method and what it keeps.

    Attributes
    ----------
    method : str
        As it was named.
    keep : int or float or None
        What was asked for; None where the method's text says it.
    kept : Kept
        Tokens by layer.
    selection : SelectionCost or None
        What choosing costs; None where that is not known.
    """

    method: str
    keep: int | float | None
    kept: Kept
    selection: SelectionCost | None

    @property
    def name(self) -> str:
        """For tables."""
        return "unpruned" if not self.method else f"{self.method}" + (f" keep={self.keep:g}" if self.keep else "")


@dataclass(frozen=True)
class Cell:
    """A setting at a batch size, beside the unpruned model."""

    setting: Setting
    batch: int
    times: Times
    plain: Times

    @property
    def speed_up(self) -> float:
        """Of the prefill."""
        return self.plain.prefill / self.times.prefill

    @property
    def token_speed_up(self) -> float:
        """Of each further token."""
        return self.plain.token / self.times.token


@dataclass(frozen=True)
class Smaller:
    """A smaller picture with about as many tokens as are kept, and its prefill's speed-up by batch."""

    picture: Picture
    speed_ups: dict[int, float]


@dataclass(frozen=True)
class Plan:
    """What is expected."""

    options: PlanOptions
    model_type: str
    dtype: str
    picture: Picture
    reckoning: Reckoning
    base: Setting
    settings: tuple[Setting, ...]
    cells: tuple[Cell, ...]
    turning: dict[tuple[str, int], Turning]
    smaller: Smaller | None
    recurrent: bool


def make_plan(options: PlanOptions) -> Plan:
    """Plan.

    Raises
    ------
    ValueError, OSError, NotImplementedError
        For options out of range, a model that is not there or has no processor, a method that does not run on it, and
        model types whose FLOPs can't be counted; the message is one line.
    """
    check_device(options.gpu)
    check_choice("--dtype", options.dtype, DTYPES)
    size, batches = picture_size(options.image), request_counts(options.batch)
    methods = _methods(options)
    config, place = configuration(options.model)
    place = options.processor or place
    if place is None or not has_processor(place):
        raise OSError(
            f"{options.model!r} has a configuration but no processor, so how many tokens a picture has is not known: "
            "--processor names a folder or hub id that has one (processor_config.json or preprocessor_config.json, and "
            "a tokenizer)"
        )
    processor = read_processor(options.model, place)
    dtype = options.dtype if options.dtype != "auto" else FLOAT32 if options.gpu == CPU else HALF[0]

    def picture_of(size: tuple[int, int]) -> Picture:
        return read_picture(inputs_of(processor, blank(size)), config, size, options.text_tokens)

    picture = picture_of(size)
    parts = parts_of(config, dtype)
    work = ModelWork(parts)
    tower = work.tower(picture.inputs)
    lengths = tower.lengths if sum(tower.lengths) == picture.tokens else (picture.tokens,)
    device = device_named(options.gpu, dtype)
    reckoning = Reckoning(work, tower, picture.text, options.answer_tokens, device, dtype)
    base = Setting("", None, unpruned(lengths, work.depth), SelectionCost())
    settings = tuple(
        _setting(parts, method, keep, pipeline, lengths, picture.text, device.measured)
        for method, keep, pipeline in methods
    )
    reckoning.run([base.kept, *(s.kept for s in settings)])
    plain = {b: reckoning.times(base.kept, b) for b in batches}
    cells = [Cell(s, b, reckoning.times(s.kept, b, s.selection), plain[b]) for s in settings for b in batches]
    turning = {}
    for method in dict.fromkeys(s.method for s in settings):
        curve = _curve(parts, method, settings, lengths)
        for b in batches:
            points = [(k, plain[b].prefill / reckoning.times(kept, b, cost).prefill) for k, kept, cost in curve]
            if points:
                turning[method, b] = turning_points(points)
    return Plan(
        options, config.model_type, dtype, picture, reckoning, base, settings, tuple(cells), turning,
        _smaller(reckoning, picture, min((s.kept.last for s in settings), default=0), picture_of, plain),
        keeps_state(parts.lm.config),
    )  # fmt: skip


def _methods(options: PlanOptions) -> list[tuple[str, int | float | None, tuple[Pruner, ...]]]:
    """Each method with each keep; one that says its own keep comes once."""
    keeps = [parse_keep(part) for part in split_list(options.keep)]
    if not keeps:
        raise ValueError("--keep is empty: say what is kept, such as 0.25,0.11")
    names = split_list(options.pruner) if options.pruner is not None else [ANY]
    if not names:
        raise ValueError("--pruners is empty: name a method, or leave it out; vtc pruners lists them")
    found: list[tuple[str, int | float | None, tuple[Pruner, ...]]] = []
    for name in names:
        pipeline = _pipeline(name)
        if len(pipeline) == 1 and takes_keep(pipeline[0]):
            found += [(name, keep, _pipeline(name, keep)) for keep in dict.fromkeys(keeps)]
        elif any(map(needs_keep, pipeline)):
            raise ValueError(f"--pruners {name!r}: the methods of a pipeline say themselves what they keep")
        else:
            found.append((name, None, pipeline))
    return found


def _pipeline(name: str, keep: int | float | None = None) -> tuple[Pruner, ...]:
    return tuple(parse("uniform" if name == ANY else name, keep=keep))


def _setting(
    parts: Any,
    method: str,
    keep: int | float | None,
    pipeline: Sequence[Pruner],
    lengths: Sequence[int],
    text: int,
    measured: bool,
) -> Setting:
    kept = kept_by(parts, pipeline, lengths)
    cost = SelectionCost() if method == ANY else selection_cost(parts, kept, text, measured)
    return Setting(method, keep, kept, cost)


def _curve(
    parts: Any, method: str, settings: Sequence[Setting], lengths: Sequence[int]
) -> list[tuple[float, Kept, SelectionCost | None]]:
    """Keeps from large to small, each with what is kept and the cost of the nearest choice that is known."""
    own = [s for s in settings if s.method == method and isinstance(s.keep, (int, float))]
    whole, found = sum(lengths), []
    for keep in GRID if own else ():
        kept = kept_by(parts, _pipeline(method, keep), lengths)
        nearest = min(own, key=lambda s: abs(s.kept.last - keep * whole))
        found.append((keep, kept, nearest.selection))
    return found


def _smaller(
    reckoning: Reckoning,
    picture: Picture,
    tokens: int,
    again: Callable[[tuple[int, int]], Picture],
    plain: dict[int, Times],
) -> Smaller | None:
    found = smaller(picture, tokens, again) if tokens else None
    if found is None:
        return None
    work = reckoning.work
    other = Reckoning(work, work.tower(found.inputs), found.text, reckoning.answer, reckoning.device, reckoning.dtype)
    kept = unpruned((found.tokens,), work.depth)
    return Smaller(found, {b: plain[b].prefill / other.times(kept, b).prefill for b in plain})
