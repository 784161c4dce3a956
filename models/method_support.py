"""On which families a method runs, told from its declarations before any model is loaded.

With a model at hand the checks of ``adapter`` and ``tower.refusals`` decide; this is the same for tables and plans.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vtc.models.layout.families import FAMILIES
from vtc.models.layout.family import UNKNOWN, Family, Tower
from vtc.pruners.base import Pruner
from vtc.pruners.signals import EncoderAttention, EncoderSignal, Pixels, PreProjector

DEPTH = 32  # only to ask a method for its stages
NO_CLASS_TOKEN = "its vision tower has no class token"


class Support(NamedTuple):
    """Where a method runs.

    ``runs`` are the families, with the towers in brackets where not all of a family's will do; ``reasons`` gives the
    others, named alike, with why not.
    """

    runs: tuple[str, ...]
    reasons: dict[str, str]

    def __str__(self) -> str:
        """In a few words: ``all``, ``all but ...`` or a list."""
        if not self.reasons:
            return "all"
        if not self.runs:
            return "none"
        # named in full beside another tower's entry: only whole families are excepted
        if len(self.reasons) <= 2 and not any("(" in name for name in self.reasons):
            return f"all but {', '.join(self.reasons)}"
        listed = ", ".join(self.runs)
        return f"with a class token: {listed}" if set(self.reasons.values()) == {NO_CLASS_TOKEN} else listed


def why_not(pruner: Pruner, family: Family, tower: Tower) -> str:
    """Why `pruner` can't run on models of `family` with `tower`; empty where it can.

    Parameters
    ----------
    pruner : Pruner
        An instance that knows what it keeps, because its stages may depend on that.
    family : Family
        A row of the table.
    tower : Tower
        One of the family's.
    """
    stops = pruner.stops(DEPTH)
    signals = [s for stop in stops for s in pruner.signals_at(stop)]
    of_encoder = [s for s in signals if isinstance(s, EncoderSignal | PreProjector | Pixels)]
    in_tower = any(stop.stage == "vision" for stop in stops)
    if in_tower and family.no_vision_stage:
        return f"it can't be pruned inside its vision tower: {family.no_vision_stage}"
    if in_tower and not (tower.prunable or family.packed):
        return f"vtc can't prune inside a {tower.name} tower"
    if in_tower and pruner.merges and not family.one_patch:
        return "merging inside the vision tower needs one patch a token"
    if of_encoder and family.align is None:
        return UNKNOWN
    if any(isinstance(s, EncoderAttention) and s.queries == "cls" for s in of_encoder) and not tower.class_token:
        return NO_CLASS_TOKEN
    if pruner.projects and family.project is None:
        return f"its projector can't be run on single tokens: {family.no_project}"
    return ""


def support(pipeline: Iterable[Pruner], families: Iterable[Family] = FAMILIES) -> Support:
    """On which of `families` all methods of `pipeline` run."""
    pipeline, runs, reasons = tuple(pipeline), [], {}
    for family in families:
        found = {t.name: next(filter(None, (why_not(p, family, t) for p in pipeline)), "") for t in family.towers}
        fit = [name for name, reason in found.items() if not reason]
        if len(fit) == len(found):
            runs.append(family.name)
            continue
        if fit:
            runs.append(f"{family.name} ({', '.join(fit)})")
        for reason in dict.fromkeys(filter(None, found.values())):
            alike = [name for name, why in found.items() if why == reason]
            only = "" if len(alike) == len(found) else f" ({', '.join(alike)})"
            reasons[family.name + only] = reason
    return Support(tuple(runs), reasons)
