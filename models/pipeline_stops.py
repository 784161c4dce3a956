"""Where the methods of a pipeline prune, in the order of a forward."""

from __future__ import annotations

from collections.abc import Iterable

from vtc.models.language.decoder_signals import resolve
from vtc.pruners.base import STAGES, Loan, Pruner, Stop, check_keep, check_layer
from vtc.pruners.signals import AttentionAhead, DecoderSignal, QuestionState


def plan(pruners: Iterable[Pruner], depth: int) -> list[tuple[Pruner, Stop]]:
    """The stops of a pipeline in forward order.

    Raises
    ------
    TypeError
        If a layer is no number.
    ValueError
        If a pruner lacks `keep`, or a decoder layer does not exist or can't have the signals asked for.
    NotImplementedError
        If one method lends layers' tokens, and another of the decoder stage would find them gone.
    """
    stops = [(p, stop) for p in pruners for stop in p.stops(depth)]
    for pruner, stop in stops:
        check_layer(stop.layer, pruner.name)
        if stop.stage not in STAGES:
            raise ValueError(f"{pruner.name}: stage must be one of {', '.join(STAGES)}, got {stop.stage!r}")
        if stop.keep is None:
            raise ValueError(f"{pruner.name} needs keep: an int >= 1 (tokens per image) or a float in (0, 1]")
        if stop.keep == 0 and stop.stage != "decoder":
            raise ValueError(
                f"{pruner.name} drops all visual tokens at the {stop.stage} stage; only a decoder layer can"
            )
        if stop.keep != 0:
            check_keep(stop.keep, f"{pruner.name}.keep")
        if stop.stage != "input" and any(isinstance(s, QuestionState) for s in pruner.signals_at(stop)):
            raise ValueError(
                f"{pruner.name} reads QuestionState and can't prune at the {stop.stage} stage: it is made at the input"
            )
        if stop.stage == "decoder":
            if stop.layer is None or not 0 <= stop.layer < depth:
                raise ValueError(
                    f"{pruner.name}: layer={stop.layer} is out of range; the decoder has layers 0 to {depth - 1}"
                )
            for signal in pruner.signals_at(stop):
                resolved = resolve(signal, stop.layer)
                if isinstance(resolved, AttentionAhead):
                    if resolved.layer != stop.layer:
                        raise ValueError(f"{pruner.name} reads {signal}: it is of the pruning layer, leave layer out")
                elif isinstance(resolved, DecoderSignal) and not 0 <= (resolved.layer or 0) < stop.layer:
                    raise ValueError(
                        f"{pruner.name} at layer={stop.layer} reads {resolved}, which is not there yet; "
                        "prune at a later layer (layer >= 1)"
                    )
        elif any(isinstance(s, DecoderSignal) for s in pruner.signals_at(stop)):
            raise ValueError(
                f"{pruner.name} reads decoder signals and can't prune at the {stop.stage} stage; give it a layer "
                "(a method with stops at several stages says in signals_at(stop) what it reads where)"
            )

    _check_loans(stops)

    def place(entry: tuple[Pruner, Stop]) -> tuple[int, bool, int]:
        layer = entry[1].layer or 0
        return STAGES.index(entry[1].stage), layer < 0, layer  # an encoder's layers may count from the end

    return sorted(stops, key=place)


def _check_loans(stops: list[tuple[Pruner, Stop]]) -> None:
    lends = [(pruner, stop) for pruner, stop in stops if isinstance(stop, Loan)]
    for pruner, stop in lends:
        for signal in pruner.signals_at(stop):
            if not isinstance(signal, AttentionAhead):
                raise ValueError(
                    f"{pruner.name} lends at layer {stop.layer} and reads {signal}: nothing but the states that enter "
                    "the layer, and its attention on them, is there"
                )
    others = [p for p, stop in stops if stop.stage == "decoder" and lends and p is not lends[0][0]]
    layers = [stop.layer for _, stop in stops if stop.stage == "decoder"]
    if others:
        raise NotImplementedError(
            f"{lends[0][0].name} gives decoder layers their tokens back, so {others[0].name} can't drop any between "
            "them as well: use it with methods of the vision and input stages"
        )
    if lends and len(set(layers)) < len(layers):
        raise ValueError(f"{lends[0][0].name} has two stops at one decoder layer")
