"""One draw: a family, methods with parameters, a prompt and a way to run; and how draw number M of a seed is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from zoo import FAMILIES, Family

import vtc

from .parameters import parameters

MODES = ("forward", "labels", "greedy", "no_cache", "sample", "beams", "assisted", "turns")
DTYPES = ("float32", "float32", "float64", "bfloat16", "float16")
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Draw:
    """What is run.

    Attributes
    ----------
    methods : tuple of (name, parameters)
        The pipeline.
    rows : tuple of tuple
        Of each sample the pieces: a number of words, ``"i2"`` for the third size of pictures, ``"v0"`` for a video.
    tail : tuple
        Pieces of the second turn, in every row (mode ``turns``).
    given : bool
        Whether position ids are given to a plain forward.
    tokens, sequences : int
        How many are generated, and beams or returned sequences.
    padding : int
        Columns of padding more than the longest row needs.
    seed : int
        Of pixels and words.
    """

    family: str
    methods: tuple[tuple[str, dict[str, Any]], ...]
    rows: tuple[Row, ...]
    mode: str = "forward"
    side: str = "left"
    dtype: str = "float32"
    attention: str = "sdpa"
    positions: str = "keep"
    given: bool = True
    tail: Row = ()
    tokens: int = 4
    sequences: int = 2
    padding: int = 0
    seed: int = 0

    def __str__(self) -> str:
        spec = " + ".join(f"{n}({', '.join(f'{k}={v!r}' for k, v in p.items())})" for n, p in self.methods)
        rest = {k: v for k, v in vars(self).items() if k not in ("family", "methods", "rows", "mode")}
        return f"{self.family} | {spec} | {self.rows} | {self.mode} | {rest}"


def pieces(family: Family, most: int = 3) -> st.SearchStrategy[Row]:
    """Pieces of a row with up to `most` pictures and videos anywhere in it; one row in five is text."""
    media = [f"i{i}" for i in range(len(family.sizes))] + [f"v{i}" for i in range(len(family.clips))]
    piece = st.one_of(st.integers(1, 8), st.sampled_from(media))
    row = st.lists(piece, min_size=1, max_size=6).filter(lambda row: sum(isinstance(p, str) for p in row) <= most)
    return st.integers(0, 4).flatmap(lambda n: row.map(tuple) if n else st.integers(1, 8).map(lambda n: (n,)))


@st.composite
def methods(draw: st.DrawFn) -> tuple[tuple[str, dict[str, Any]], ...]:
    """One method, or a pipeline of two."""
    names = draw(st.lists(st.sampled_from(vtc.list_pruners()), min_size=1, max_size=1))
    if draw(st.integers(0, 3)) == 3:
        names.append(draw(st.sampled_from(["random", "uniform", "fastv", "dart", "pool", "vtw", "pyramiddrop"])))
    return tuple((name, draw(parameters(name))) for name in names)


@st.composite
def draws(draw: st.DrawFn, family: str, mode: str) -> Draw:
    """A draw of `family`, run in `mode`."""
    kind = FAMILIES[family]
    most = 1 if mode == "assisted" else 4  # transformers assists one sample only
    rows = tuple(draw(st.lists(pieces(kind), min_size=1, max_size=most)))
    plain = mode in ("forward", "labels")
    flex = [] if family.startswith("qwen") else ["flex_attention"]  # transformers has none for them
    attention = draw(st.sampled_from(["sdpa", "sdpa", "eager", *flex]))
    # the eager mask of a padded row is all infinite once softmax is float32, which gives NaN in the stock model
    dtypes = [d for d in DTYPES if attention != "eager" or d != "float64"]
    return Draw(
        family,
        draw(methods()),
        rows,
        mode,
        side=draw(st.sampled_from(["left", "right"])) if plain else "left",
        dtype=draw(st.sampled_from(dtypes)),
        attention=attention,
        positions="compact" if draw(st.integers(0, 7 if family.startswith("qwen") else 3)) == 3 else "keep",
        given=draw(st.booleans()) if plain else True,
        tail=draw(pieces(kind, 1)) if mode == "turns" else (),
        tokens=draw(st.integers(2, 6)),
        sequences=draw(st.integers(2, 3)),
        padding=draw(st.sampled_from([0, 0, 0, 1, 3])),
        seed=draw(st.integers(0, 2**16)),
    )


def drawn(base: int, number: int) -> Draw:
    """Draw `number` of the sequence that `base` seeds; families and ways to run take turns."""
    return _of(base, number, lambda _: None)


def shrunk(base: int, number: int, body: Callable[[Draw], None]) -> None:
    """Let hypothesis make draw `number` smaller as long as `body` raises; the smallest one's error is raised."""
    _of(base, number, body, shrink=True)


def _of(base: int, number: int, body: Callable[[Draw], None], shrink: bool = False) -> Draw:
    family = tuple(FAMILIES)[number % len(FAMILIES)]
    mode = MODES[(number + number // len(FAMILIES)) % len(MODES)]
    found: list[Draw] = []
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]

    # the first example is always the simplest one: the second is the random one
    @seed((base << 32) + number)
    @settings(
        max_examples=2,
        database=None,
        deadline=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(draws(family, mode))
    def run(one: Draw) -> None:
        found.append(one)
        if len(found) > 1:
            body(one)

    run()
    return found[-1]
