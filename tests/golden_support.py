"""What the golden tests share: the vectors' inputs, made anew from their recipes, and a stand-in for the host."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtc.pruners.layout import Layout
from vtc.pruners.signals import Signal
from vtc.pruners.visual_tokens import SignalSource, VisualTokens

CLAIMS: dict[str, Callable[[Golden], None]] = {}


def golden(*methods: str) -> Callable[[Callable[[Golden], None]], Callable[[Golden], None]]:
    """Decorator of a function that checks the vectors whose ``meta["method"]`` is one of `methods` (or ``name*``)."""

    def add(check: Callable[[Golden], None]) -> Callable[[Golden], None]:
        for method in methods:
            assert method not in CLAIMS, f"{method} is claimed twice"
            CLAIMS[method] = check
        return check

    return add


def claimant(method: str) -> Callable[[Golden], None] | None:
    """The function that claims `method`: by its name, or by the beginning of it."""
    return CLAIMS.get(method) or next((CLAIMS[name] for name in CLAIMS if fnmatchcase(method, name)), None)


@dataclass(frozen=True)
class Golden:
    """One vector: expected `arrays` and the `meta` that says how its inputs are drawn."""

    path: Path
    meta: dict[str, Any]
    arrays: Mapping[str, np.ndarray]

    @classmethod
    def read(cls, path: Path) -> Golden:
        """Read a ``.npz`` file."""
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        meta = json.loads(str(arrays.pop("meta", "{}")))
        assert "method" in meta, f"{path}: its `meta` names no method"
        return cls(path, meta, arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def rng(self) -> np.random.Generator:
        """The generator of ``meta["seed"]``; draw from it in the order that ``meta["recipe"]`` gives."""
        return np.random.default_rng(self.meta["seed"])

    def draws(self) -> Callable[..., np.ndarray]:
        """Draws of a shape from ``rng()``, normal float32, each times the factor the recipe has before it (``0.7*r.``).

        The authors of the vectors name such factors only there.
        """
        generator = self.rng()
        pattern = r"(?:(\d[\d.]*)\s*\*\s*)?(?:r|default_rng\(\d+\))\.standard_normal"
        factors = iter(re.findall(pattern, self.meta.get("recipe", "")))

        def draw(*shape: int) -> np.ndarray:
            return np.float32(next(factors, "") or 1) * generator.standard_normal(shape, dtype=np.float32)

        return draw

    def input(self, name: str) -> np.ndarray:
        """An input that ``meta`` gives as a call of a recipe, its hash checked."""
        array = call_recipe(self.meta[name])
        digest = self.meta.get(f"sha_{name}")
        if digest is not None:
            assert hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() == digest, f"{name}: other bytes"
        return array


def call_recipe(text: str) -> Any:
    """The value of a call such as ``features(402,576,1024,40)``; nothing but the recipes below can be called."""
    call = ast.parse(text.strip(), mode="eval").body
    assert isinstance(call, ast.Call), text
    name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id  # type: ignore[attr-defined]
    values = [ast.literal_eval(a) for a in call.args]
    named = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
    return RECIPES[name](*values, **named)


def features(seed: int, n: int, d: int, clusters: int, noise: float = 0.5, offset: float = 0.3) -> np.ndarray:
    """Clustered token features `[n, d]` float32."""
    g = np.random.default_rng(seed)
    mean = offset * g.standard_normal(d)
    centres = g.standard_normal((clusters, d))
    owner = g.integers(0, clusters, size=n)
    return ((mean + centres[owner]) + noise * g.standard_normal((n, d))).astype(np.float32)


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normal numbers, float32."""
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def uniform(seed: int, *shape: int, lo: float = 0.0, hi: float = 1.0) -> np.ndarray:
    """Uniform numbers, float32."""
    return (lo + (hi - lo) * np.random.default_rng(seed).random(shape)).astype(np.float32)


def flowcut_signals(seed: int, layers: int, batch: int, n: int, head_dim: int) -> tuple[np.ndarray, ...]:
    """Per-layer class-token attention, semantic score and mean value of FlowCut's schedule vectors."""
    attention = uniform(seed, layers, batch, n, lo=0.05, hi=1)
    semantic = uniform(seed + 1, layers, batch, n, lo=0.2, hi=1)
    value = normal(seed + 2, layers, batch, n, head_dim)
    base = uniform(seed + 3, batch, n, lo=0.05, hi=1)
    out = np.empty_like(attention)
    for layer in range(layers):
        row = attention[layer] * base
        for _ in range(layer // 4):
            row = row * base
        out[layer] = row
    return out, semantic, value


RECIPES: dict[str, Callable[..., Any]] = {
    "features": features,
    "normal": normal,
    "uniform": uniform,
    "fc_signals": flowcut_signals,
    "flowcut_signals": flowcut_signals,
}


@dataclass
class Served(SignalSource):
    """Serves given tensors as signals: `read_of` at the tokens, `text_of` at the text."""

    read_of: dict[Signal, Tensor] = field(default_factory=dict)
    text_of: dict[Signal, Tensor] = field(default_factory=dict)
    behind: Tensor | None = None
    given_projector: nn.Module | None = None
    asked: list[str] = field(default_factory=list)
    table: Tensor | None = None

    @property
    def declared(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """What there is."""
        return tuple(self.read_of)

    def read(self, signal: Signal, tokens: VisualTokens) -> Tensor:
        """The tensor given for `signal`."""
        return self.read_of[signal]

    def text(self, signal: Signal) -> Tensor:
        """The tensor given for `signal`."""
        return self.text_of[signal]

    def text_valid(self, tokens: VisualTokens | None) -> Tensor:
        """All text, or what was said to be behind the span."""
        if tokens is not None and self.behind is not None:
            return self.behind
        some = next(iter(self.text_of.values()))
        return torch.ones(some.shape[:2], dtype=torch.bool)

    def final_norm(self, x: Tensor) -> Tensor:
        """The identity: the vectors' states are normalised already."""
        return x

    def project(self, x: Tensor) -> Tensor:
        """The given projector, or the identity."""
        flat = x.flatten(-2)
        return flat if self.given_projector is None else self.given_projector(flat)

    @property
    def projector(self) -> nn.Module:
        """The given projector."""
        return self.given_projector or nn.Identity()

    @property
    def embeddings(self) -> Tensor:
        """The given table."""
        assert self.table is not None, "no embedding table was given"
        return self.table

    @property
    def vocabulary_size(self) -> int:
        """Rows of the given table."""
        return len(self.embeddings)

    def questions(self) -> list[str]:
        """The given questions."""
        return self.asked


def tokens_of(
    x: np.ndarray | Tensor,
    keep: int | Sequence[int],
    source: SignalSource | None = None,
    layouts: Sequence[Layout] | None = None,
    stage: str = "input",
    layer: int | None = None,
) -> VisualTokens:
    """``VisualTokens`` of features `[N, D]` or `[B, N, D]`, one sample per row."""
    x = torch.as_tensor(np.asarray(x))
    x = x[None] if x.dim() == 2 else x
    rows, n = x.shape[:2]
    budgets = [keep] * rows if isinstance(keep, int) else list(keep)
    return VisualTokens(
        features=x,
        ids=torch.arange(n).expand(rows, -1),
        counts=[n] * rows,
        budgets=budgets,
        layouts=layouts or [Layout.line(n)] * rows,
        sample=torch.arange(rows),
        order=[0] * rows,
        span=list(range(rows)),
        stage=stage,
        layer=layer,
        source=source,
    )
