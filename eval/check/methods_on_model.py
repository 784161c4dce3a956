"""``vtc pruners --model``: which methods run on a model and why others don't; each is tried, without weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vtc.eval.check.tiny_model.config_source import config_of
from vtc.eval.vlm.pruning_settings import telling
from vtc.models.adapter import Adapter
from vtc.models.layout.families import family_of
from vtc.models.layout.model_parts import Parts, locate
from vtc.models.tower.captures_needed import SUBSTITUTES
from vtc.models.tower.refusals import prefix_tokens
from vtc.models.try_without_weights import model_without_weights
from vtc.pruners import list_pruners, make_pruner
from vtc.pruners.base import Pruner
from vtc.pruners.registry import nearest
from vtc.pruners.signals import EncoderAttention

RUNS, SUBSTITUTE, REFUSED = "runs", "runs with a substitute", "refused"
NO_GRID = (
    "No row of vtc's table says where this family's tokens sit in the picture: they are taken as a line of one frame, "
    "so methods that go by grid, windows, crops or frames see only that."
)
STYLES = {RUNS: "green", SUBSTITUTE: "yellow", REFUSED: "dim"}


@dataclass(frozen=True)
class MethodOnModel:
    """Whether one method runs on a model, and why not or what stands for what it reads."""

    name: str
    status: str
    why: str = ""


def methods_on(model: str, pattern: str = "*") -> list[MethodOnModel]:
    """Wrap a model, built from its configuration without weights, by each method.

    Parameters
    ----------
    model : str
        As for ``vtc check``: a folder, a config.json, a ``model_type``, a hub id, or ``bundled``.
    pattern : str
        Shell-style pattern of methods' names.

    Raises
    ------
    NotImplementedError
        If vtc can't carry the model at all.
    ValueError, OSError
        If there is no such model or method, or the configuration is one that no model can be built of.
    """
    names = list_pruners(pattern)
    if not names:
        raise ValueError(f"no pruner matches {pattern!r}. {nearest(pattern, list_pruners())}")
    config = config_of(model)
    try:
        built = model_without_weights(config)
    except NotImplementedError:
        raise
    except Exception as error:
        raise ValueError(
            f"no model can be built of the configuration of {model!r} ({type(error).__name__}: {error}); give the "
            "config.json of a released model"
        ) from error
    parts = locate(built)
    Adapter(parts, ())  # what is wrong with the model is no method's
    return [_try(parts, telling(make_pruner(name))) for name in names]


def _try(parts: Parts, pruner: Pruner) -> MethodOnModel:
    try:
        adapter = Adapter(parts, (pruner,))
    except (NotImplementedError, ValueError) as error:
        return MethodOnModel(pruner.name, REFUSED, _reason(str(error)))
    if pruner.projects and parts.family.project is None:
        why = f"its projector can't be run on single tokens: {parts.family.no_project}"
        return MethodOnModel(pruner.name, REFUSED, why)
    read = [s for p, stop in adapter.stops for s in p.signals_at(stop) if isinstance(s, EncoderAttention)]
    stands = {SUBSTITUTES[s.queries] for s in read if s.queries in SUBSTITUTES}
    if stands and not prefix_tokens(parts.tower):
        words = {"received": "the attention that a patch receives", "mean": "the mean patch's attention"}
        said = " and ".join(words.get(name, "nothing") for name in sorted(stands))
        return MethodOnModel(pruner.name, SUBSTITUTE, f"the tower has no class token: {said} in place of its attention")
    return MethodOnModel(pruner.name, RUNS)


def _reason(message: str) -> str:
    """Why, without the name of method or signal in front, and without what to do instead behind."""
    said = message.split("; use ")[0]
    head, _, rest = said.partition(": ")
    return rest if rest and " " not in head.split("(")[0] else said


def table_of(model: str, found: Sequence[MethodOnModel]) -> RenderableType:
    """The methods of a model for the screen, and how many run."""
    table = Table(show_lines=False)
    for column in ("method", model, "why"):
        table.add_column(column, no_wrap=column == "method")
    for one in found:
        table.add_row(Text(one.name), Text(one.status, style=STYLES[one.status]), Text(one.why or "-"))
    runs = sum(one.status != REFUSED for one in found)
    said = f"{runs} of {len(found)} methods run on {model}. vtc check {model} shows that it is exact."
    return Group(table, *map(Text, [said, *([NO_GRID] if not family_of(config_of(model)) else [])]))


def as_json(found: Iterable[MethodOnModel]) -> list[dict[str, Any]]:
    """The same as plain values."""
    return [asdict(one) for one in found]
