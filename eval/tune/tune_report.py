"""What a search found, in words, a table and plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from vtc.pipeline_text import parse

from .confirm import CONFIRMED, Trialled, winner
from .options import COSTS, TuneOptions
from .successive_halving import FINALISTS, ON, Rung, Standing

FEW = 3  # rule of three: so many spoilt images expected, and none seen, is a chance of 5%


@dataclass
class Found:
    """The course of a search and its end."""

    options: TuneOptions
    rungs: list[Rung] = field(default_factory=list)
    trialled: list[Trialled] = field(default_factory=list)
    images: int = 0
    accuracy: float | None = None

    @property
    def winner(self) -> Trialled | None:
        """The cheapest confirmed setting, None where nothing qualifies."""
        return winner(self.trialled)


def percent(share: float) -> str:
    """A share as people write it."""
    return f"{100 * share:.1f}%"


def rung_line(rung: Rung, number: int, of: int) -> str:
    """One line about a rung."""
    fates: dict[str, int] = {}
    for s in rung.standings:
        fates[s.fate] = fates.get(s.fate, 0) + 1
    on = fates.pop(ON, 0)
    out = "".join(f", {n} out: {fate}" for fate, n in fates.items())
    left = f"{on} {'go' if on != 1 else 'goes'} on"
    return (
        f"rung {number} of {of}: {len(rung.standings)} settings, {rung.questions} questions on {rung.images} "
        f"images{out}; {left}"
    )


def finalists_table(found: Found) -> Table:
    """The finalists on the confirmation images, in the order in which they were tested."""
    options = found.options
    table = Table(
        title=f"Confirmation on {found.images} held-out images, target {percent(options.target)}",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("setting")
    bound = f"lower bound ({100 * options.confidence:g}%)"
    for column in ("share of unpruned accuracy", bound, f"{options.by} of unpruned"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    best = found.winner
    for t in found.trialled:
        style = "bold" if t is best else None
        table.add_row(t.spec, percent(t.share), percent(t.low), percent(t.cost), t.verdict, style=style)
    return table


def verdict(found: Found) -> list[str]:
    """What follows, in sentences."""
    options, best = found.options, found.winner
    target = percent(options.target)
    if best is None:
        return ["Nothing qualifies. " + _why(found, target)]
    lines = [
        f"{best.spec} keeps {percent(best.share)} of the unpruned accuracy, at least {percent(best.low)} "
        f"({100 * options.confidence:g}% confidence, target {target}), at {percent(best.cost)} of the "
        f"{COSTS[options.by]}."
    ]
    seeds = {str(p.seed) for p in parse(best.spec) if hasattr(p, "seed")}
    if seeds:
        lines.append(f"It draws at random: this holds for the seed of its configuration, {', '.join(seeds)}.")
    if found.images * (1 - options.target) < FEW:
        lines.append(
            f"Few images: on {found.images}, a setting that spoils rare images altogether can go unnoticed; raise "
            "--limit."
        )
    return lines


def _why(found: Found, target: str) -> str:
    settings = len(found.rungs[0].standings)
    if not found.trialled:
        best = max(found.rungs[-1].standings, key=lambda s: (s.share, -s.cost))
        return (
            f"None of {settings} settings had a fair chance of keeping {target} of the unpruned accuracy at a saving; "
            f"the best of the last rung, {best.spec}, kept {percent(best.share)} on {found.rungs[-1].images} images "
            f"({best.fate})."
        )
    first = found.trialled[0]
    about = (
        f"The safest of {settings} settings, {first.spec}, kept {percent(first.share)} of the unpruned accuracy on "
        f"{found.images} images that the search had not seen; the lower bound is {percent(first.low)}, not above "
        f"{target}."
    )
    if first.needed is None:
        return f"{about} Its share itself is too low: more images won't help, a larger --keep may."
    part = found.options.confirm
    return (
        f"{about} If its share is what it seems to be, confirming it takes about {max(first.needed, found.images + 1)} "
        f"images for the confirmation, that is {max(first.needed, found.images + 1) / part:.0f} in all: raise --limit."
    )


def tune_json(found: Found, about: dict[str, Any]) -> dict[str, Any]:
    """Everything in plain values, as in ``tune.json``."""
    options, best = found.options, found.winner

    def standing(s: Standing) -> dict[str, Any]:
        return {
            "setting": s.spec,
            "share": s.share,
            "chance": s.chance,
            "cost": s.cost,
            "worst_image": s.worst,
            "fate": s.fate,
        }

    trialled: Sequence[dict[str, Any]] = [
        {
            "setting": t.spec,
            "share": t.share,
            "lower_bound": t.low,
            "cost": t.cost,
            "verdict": t.verdict,
            "images_needed": t.needed,
        }
        for t in found.trialled
    ]
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    return {
        "winner": best.spec if best else None,
        "verdict": " ".join(verdict(found)),
        "target": options.target,
        "confidence": options.confidence,
        "cost_is": COSTS[options.by],
        "options": asked,
        "finalists": FINALISTS,
        "rungs": [
            {
                "questions": r.questions,
                "images": r.images,
                "unpruned_accuracy": r.accuracy,
                "settings": [standing(s) for s in r.standings],
            }
            for r in found.rungs
        ],
        "confirmation": {
            "images": found.images,
            "unpruned_accuracy": found.accuracy,
            "tested_in_this_order": trialled,
            "confirmed": [t.spec for t in found.trialled if t.verdict == CONFIRMED],
        },
        **about,
    }
