"""Every registered method with settings that fit the tiny models, and a few pipelines: rows of the contract tests."""

from __future__ import annotations

import atexit
import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from versions import PRUNES_DINOV2
from zoo import FAMILIES, Media, shapes_of
from zoo.models import DEPTH

import vtc
from vtc.pruners.base import Loan
from vtc.pruners.explainer import RelevanceNetwork, save_network

KEEP = 0.4


@lru_cache(maxsize=1)
def tiny_explainer() -> str:
    """File of a small random network for the ``explainer``, which says of no model that it belongs to it."""
    folder = tempfile.TemporaryDirectory(prefix="vtc-explainer-")
    atexit.register(folder.cleanup)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = RelevanceNetwork((8, 16))
    save_network(Path(folder.name) / "tiny.safetensors", network, {})
    return str(Path(folder.name) / "tiny.safetensors")


# What a method needs on a six-layer model beside keep=0.4 and a layer below 6: name -> (parameters, why)
EXCEPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "embedlens": ({"sink": tuple(range(5, 20)), "dead": tuple(range(20, 60))}, "ids that random tokens come near"),
    "explainer": ({"weights": tiny_explainer()}, "the shipped network belongs to the bundled model alone"),
    "langdc": ({"weights": "untrained"}, "no network of such sizes is shipped"),
    "focusllava": (
        {"weights": "untrained", "layer": 2, "ratio": 1.5},
        "no network of such sizes is shipped; small grids",
    ),
    "pmod": ({"weights": "untrained"}, "no network of such sizes is shipped"),
    "quecc": (
        {"weights": "untrained", "kernel": 2, "exact": False, "question": "ids"},
        "no network of such sizes is shipped, its counts are those of its windows, and there is no tokenizer",
    ),
    "tokenflex": ({"weights": "untrained"}, "no network of such sizes is shipped"),
    "vscan": ({"window": 2, "ratio": 1.5}, "small grids, and some tokens left for the decoder"),
}


@dataclass(frozen=True)
class Setting:
    """What to hand to ``vtc.compress``: a name or pipeline, and parameters."""

    pruner: str
    keep: int | float | None = None
    params: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return self.pruner if self.keep is None else f"{self.pruner}-{self.keep}"

    def kept(self, n: int) -> int:
        """How many of a span's `n` tokens are left at the end: what the last stop keeps."""
        given = self.params if self.keep is None else {**self.params, "keep": self.keep}
        stops = [s for p in vtc.parse(self.pruner, **given) for s in p.stops(DEPTH) if not isinstance(s, Loan)]
        keep = stops[-1].keep if stops else 1.0
        return 0 if keep == 0 else asked(keep, n)

    def counts(self, numbers: Iterable[int], pictures: Iterable[Media]) -> list[int]:
        """`numbers` of the spans, which are those of `pictures` in order, as far as they are exact.

        A method that joins crops promises the sums over the spans of a picture, others each by itself.
        """
        left = list(numbers)
        if not any(c.joins_crops for c in self.classes):
            return left
        found = []
        for picture in pictures:
            found.append(sum(left[: picture.spans]))
            left = left[picture.spans :]
        assert not left
        return found

    def with_keep(self, keep: int | float) -> Setting:
        """The same method with another keep."""
        return Setting(self.pruner, keep, self.params)

    @property
    def in_the_tower(self) -> bool:
        """Whether any of its methods prunes inside the vision tower."""
        return any(stop.stage == "vision" for p in vtc.parse(self.pruner, keep=self.keep) for stop in p.stops(DEPTH))

    @property
    def classes(self) -> list[type[vtc.Pruner]]:
        """The classes of the methods in it."""
        return [type(p) for p in vtc.parse(self.pruner, keep=self.keep)]


def setting(name: str, keep: int | float = KEEP) -> Setting:
    """The method `name` with parameters that fit the tiny models."""
    if name in EXCEPTIONS:
        return Setting(name, keep, EXCEPTIONS[name][0])
    params = {}
    for f in fields(vtc.pruner_class(name)):
        if f.name == "layer" and isinstance(f.default, int) and not 0 < f.default < DEPTH:
            params["layer"] = 2
    return Setting(name, keep, params)


# methods that take a fraction only, since no stop of theirs keeps a number of tokens
NO_COUNTS = ("pmod", "reroute", "vtw")

METHODS = [setting(name) for name in vtc.list_pruners()]
# the methods' options that change what is chosen, for the property tests
VARIANTS = [
    Setting(spec, KEEP)
    for spec in (
        "agilepruner(step=0.3, tau_max=1.0, erank_avg=4.0)",
        "cdpruner(relevance=none)",
        "cdpruner(theta=0.5)",
        "dart(official=True)",
        "dart(pivots=1)",
        "dart(variant=angelslim, layer=1)",
        "dart(variant=angelslim, layer=3)",
        "dycoke(official=True)",
        "embedlens(sink=(1, 2), dead=(30, 31, 32, 33), top=5, rest=norm)",
        "evs(official=True)",
        "fastvid(official=True)",
        "fastvid(segments=2, context=0.7, every=2, weight=0)",
        "fitprune(ratios=(0.9, 0.6))",
        "fitprune(tokens=20)",
        "flowcut(layer=2)",
        "flowcut(official=True)",
        "focusllava(text=False, weights=untrained)",
        "focusllava(vision=False, layer=2, weights=untrained)",
        "fsr(beta=6.0, rho=0.3, kappa=2.0)",
        "fsr(rho=0.0)",
        "globalcom2(official=True)",
        "globalcom2(score=cosine, tau=0.1)",
        "gprune(similarity=0.1, temperature=0.3, iterations=2)",
        "hawk(first=1, last=2)",
        "hiprune(alpha=1)",
        "hiprune(official=True, alpha=0.5, shallow=1)",
        "hired(official=True)",
        "holitom(official=True)",
        "holitom(tau=0, beta=0.2, neighbours=3)",
        "holov(crops=4)",
        "holov(official=True)",
        "idpruner(importance=flowcut)",
        "idpruner(importance=norm, lam=0.3)",
        "idpruner(importance=uniform, parallel=3)",
        "idpruner(importance=zoo)",
        "langdc(weights=untrained, length=code, state=code, join=False)",
        "norm(shortest=True)",
        "nuwa(official=True)",
        "nuwa(official=True, layer=2, merge=projected, per_region=2)",
        "nuwa(pillars=0, reach=0.05, region=3)",
        "nuwa(pillars=1, tail=1)",
        "pmod(target=shiftedlinear, weights=untrained)",
        "pool(layer=2)",
        "priortr(queries=last, layer=2)",
        "priortr(queries=question_but_last, null=1)",
        "prumerge(adaptive=True)",
        "prumerge(official=True)",
        "prumerge_plus(adaptive=True)",
        "prumerge_plus(official=True)",
        "prunesid(per_group=2, scale=8)",
        "prunevid(official=True)",
        "prunevid(tail=0.7, tau=0.0, scenes=0.6, neighbours=3)",
        "prunevid(tail=1)",
        "quecc(weights=untrained, kernel=3, exact=False, no_text=True)",
        "random(layer=2)",
        "random(official=True)",
        "reroute(first=hawk)",
        "restore(first=pyramiddrop)",
        "scope(alpha=0, space=projected)",
        "sparsevlm(official=True)",
        "sparsevlm(rank_scale=0.6)",
        "sparsevlm(recycle=False)",
        "todre_diversity(objective=kcenter, pivot=random)",
        "tokencorr(adaptive=True)",
        "tokencorr(tau=0.1, limit=0.3)",
        "tome(layer=1, r=0.5)",
        "tome(at=vision, layer=2)",
        "tome(metric=keys, r=0.3)",
        "transprune(alpha=0)",
        "transprune(alpha=1)",
        "uniform(layer=2)",
        "vidcom2(official=True)",
        "vispruner(step=3)",
        "visionzip(contextual=3)",
        "visionzip(merge=projected)",
        "vscan(official=True, window=2, ratio=1.5)",
        "vscan(official=True, window=2, ratio=1.5, global_ratio=0.0)",
        "zero_tprune(at=input)",
        "zero_tprune(layer=2, similar=0, uniform=True)",
        "zoo_prune(per_frame=False, rank=2)",
    )
]
ONE_LAYER = Setting("random(layer=2, keep=0.3, seed=1)")
TWO_LAYERS = Setting("random(layer=1, keep=0.6) + random(layer=4, keep=0.3)")
BOTH_STAGES = Setting("random(keep=0.6, seed=5) + random(layer=3, keep=0.2, seed=5)")
BY_COUNT = Setting("uniform(keep=3)")
READING = Setting("uniform(keep=0.8) + dart(layer=1, keep=0.6) + fastv(layer=3, keep=0.3)")
IN_THE_TOWER = Setting("random(at=vision, layer=2, keep=0.6) + random(layer=3, keep=0.3)")
PIPELINES = [ONE_LAYER, TWO_LAYERS, BOTH_STAGES, BY_COUNT, READING, IN_THE_TOWER]
SETTINGS = METHODS + PIPELINES

# families that say why they can't be pruned inside their tower (test_refusals asks each for its reason)
NO_VISION_STAGE = ("llava_onevision", "internvl", "idefics3", "smolvlm", "mistral3", "pixtral")
NO_VISION_STAGE += () if PRUNES_DINOV2 else ("llava_dinov2",)


# families that lack what a method reads, and say so (test_methods_merging asks each for its reason)
WITH_CLASS_TOKEN = ("llava", "llava_dinov2", "llava_sliding", "llava_next", "internvl")
LACKING: dict[str, tuple[str, ...]] = {
    "nuwa": ("llava_onevision",),
    "prumerge": tuple(f for f in FAMILIES if f not in WITH_CLASS_TOKEN),
    "prumerge_plus": tuple(f for f in FAMILIES if f not in WITH_CLASS_TOKEN),
    "quecc": ("llava_onevision",),
    "visionzip": ("llava_onevision",),
}


def fits(setting: Setting, family: str) -> bool:
    """Whether `setting` can run on `family`."""
    if any(family in LACKING.get(c.name, ()) for c in setting.classes):
        return False
    return family not in NO_VISION_STAGE or not setting.in_the_tower


def cells(settings: list[Setting], families: Iterable[str], *shapes: str) -> list[Any]:
    """Parameters of a test over settings x families (x the shapes that each family has)."""
    pairs = [(s, f) for s in settings for f in families if fits(s, f)]
    if not shapes:
        return [pytest.param(s, f, id=f"{s}-{f}") for s, f in pairs]
    return [
        pytest.param(s, f, shape, id=f"{s}-{f}-{shape}") for s, f in pairs for shape in shapes_of(FAMILIES[f], shapes)
    ]


def asked(keep: int | float, n: int) -> int:
    """How many of `n` tokens `keep` means, written out from the documentation."""
    if isinstance(keep, int):
        return min(keep, n)
    return min(n, max(1, math.floor(keep * n + 0.5)))
