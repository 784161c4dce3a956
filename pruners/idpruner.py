"""IDPruner: importance against redundancy, by maximal marginal relevance."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from vtc.pruners.primitives.flow import encoder_flow, flow_signals
from vtc.pruners.primitives.greedy import finite_range, mmr
from vtc.pruners.primitives.precision import wide, wide_dtype
from vtc.pruners.primitives.projector_sensitivity import drawn_directions, projector_sensitivity

from .base import Pruner
from .registry import register_pruner
from .signals import EncoderAttention, PreProjector, Signal
from .visual_tokens import VisualTokens

IMPORTANCES: dict[str, tuple[Signal, ...]] = {
    "cls": (EncoderAttention(),),
    "flowcut": flow_signals(),
    "zoo": (PreProjector(),),
    "norm": (),
    "uniform": (),
    "scorer": (),
}


@register_pruner("idpruner")
@dataclass(kw_only=True)
class IDPruner(Pruner):
    """IDPruner (arXiv 2602.13315, Tencent AngelSlim): importance and diversity, by maximal marginal relevance.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly. The paper's ratio is what is dropped.
    importance : {"cls", "flowcut", "zoo", "norm", "uniform", "scorer"}
        Where the importance comes from: the class token's attention (the mean received on towers without one),
        FlowCut's score of the layer that the projector reads, ZOO-Prune's sensitivity, the norm of the projected
        feature, nothing, or the trained scorer.
    scorer : str, optional
        With ``importance="scorer"``: a safetensors file, or a folder of such, with VisionSelector's weights.
    lam : float
        Weight of the importance, in [0, 1]. The paper's default is 0.5.
    parallel : int
        Tokens chosen in a round, which do not repel one another. The authors' default is 1.

    Notes
    -----
    Stage: input. With importance w `[N]` and projected features x `[N, D]`, in float32::

        imp_i = (w_i - min w) / (max w - min w + 1e-6)
        first argmax imp_i, then argmax_i lam imp_i - (1 - lam) max_{j chosen} cos(x_i, x_j)

    O(k N D), or O(N^2 D + k N) where the matrix of similarities is cheaper.

    As published the importance is VisionSelector's TRAINED scorer, two linear maps q, k of D to h with bias:
    ``w_i = mean_j q(x_i).k(x_j) / sqrt(h)``, here in O(N D); there are published weights for Qwen2.5-VL only
    (AngelSlim/Qwen2.5-VL-{7B,3B}-Instruct-Selector, to be downloaded first). The paper squashes that score as in
    training, the authors' code does not; we follow the code. They pool all pictures of a prompt into one budget; here
    every span has its own. They keep ``round(N (1 - ratio))`` (half to even), which is this package's count but for
    exact halves. Limits: the other importances are ours to combine, not the paper's results.
    """

    importance: str = "cls"
    scorer: str | None = None
    lam: float = 0.5
    parallel: int = 1

    paper: ClassVar[str] = "arXiv 2602.13315"
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.importance not in IMPORTANCES:
            raise ValueError(f"idpruner.importance={self.importance!r}; allowed are {', '.join(IMPORTANCES)}")
        if (self.importance == "scorer") != (self.scorer is not None):
            raise ValueError("idpruner.scorer (a safetensors file or folder) goes with importance='scorer'")
        if not 0 <= self.lam <= 1:
            raise ValueError(f"idpruner.lam={self.lam!r} is out of range; it must be a number in [0, 1]")
        if self.parallel < 1:
            raise ValueError(f"idpruner.parallel={self.parallel!r} is out of range; it must be an int >= 1")

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """What the importance reads."""
        return IMPORTANCES[self.importance]

    def check_files(self) -> None:
        """The trained scorer."""
        if self.scorer is not None:
            read_scorer(self.scorer, torch.device("cpu"))

    def weigh(self, tokens: VisualTokens) -> Tensor:
        """Raw importance of each token, `[B, N]` float32."""
        if self.importance == "cls":
            return wide(tokens.read(self.signals[0])).mean(1)
        if self.importance == "flowcut":
            return encoder_flow(tokens, self.signals)
        if self.importance == "zoo":
            x = tokens.read(self.signals[0])
            return projector_sensitivity(tokens, drawn_directions(64, x.shape[-2] * x.shape[-1]), 0.01)
        if self.importance == "scorer":
            return trained_score(tokens.features, tokens.valid, str(self.scorer))
        if self.importance == "norm":
            return vector_norm(tokens.features, dim=-1, dtype=wide_dtype(tokens.features))
        return torch.ones_like(tokens.features[..., 0], dtype=torch.float32)

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """Marginal relevance, `[B, k]` in the order chosen."""
        importance = finite_range(self.weigh(tokens), tokens.valid)
        return mmr(tokens.features, importance, k, self.lam, tokens.valid, self.parallel)


SCORER_KEYS = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")


def read_scorer(path: str, device: torch.device) -> dict[str, Tensor]:
    """VisionSelector's weights `[h, D]` and biases `[h]` as float32, out of its own checkpoint or a whole model's.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it holds no scorer, or one whose shapes don't belong together.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"idpruner.scorer={path!r} is no file or folder here; fetch the scorer first, e.g. 'hf download "
            "AngelSlim/Qwen2.5-VL-7B-Instruct-Selector --local-dir ...'"
        )
    return _read_scorer(path, os.stat(path).st_mtime, device)


@lru_cache(maxsize=2)
def _read_scorer(path: str, changed: float, device: torch.device) -> dict[str, Tensor]:
    found = dict(_scorer_weights(path))
    if sorted(found) != sorted(SCORER_KEYS):
        raise ValueError(f"{path!r} holds no VisionSelector scorer ({', '.join(SCORER_KEYS)}); it has {sorted(found)}")
    shapes = [list(found[key].shape) for key in SCORER_KEYS]
    matrix = shapes[0]
    if len(matrix) != 2 or shapes != [matrix, matrix[:1]] * 2:
        raise ValueError(
            f"{path!r}: the scorer's shapes don't belong together; expected [h, D], [h], [h, D], [h] for "
            f"{', '.join(SCORER_KEYS)}, got {', '.join(map(str, shapes))}"
        )
    return {key: weight.to(device) for key, weight in found.items()}


def _scorer_weights(path: str) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    for file in sorted(Path(path).glob("*.safetensors")) if os.path.isdir(path) else [Path(path)]:
        try:
            stored = safe_open(file, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"idpruner.scorer: {str(file)!r} is no safetensors file ({error})") from error
        with stored:
            for key in stored.keys():  # noqa: SIM118 (no mapping)
                name = key
                for prefix in ("_orig_mod.", "module.", "model.", "visual.", "importance_scorer."):
                    name = name.removeprefix(prefix)
                if name in SCORER_KEYS:
                    yield name, stored.get_tensor(key).float()


def trained_score(x: Tensor, valid: Tensor, path: str) -> Tensor:
    """``mean_j q(x_i).k(x_j) / sqrt(h)`` over the valid tokens j of each row, `[B, N]` float32.

    Tokens that are not finite count for no mean and have the score NaN.
    """
    weight = {name: w.to(wide_dtype(x)) for name, w in read_scorer(path, x.device).items()}
    hidden, width = weight["q_proj.weight"].shape
    if x.shape[-1] != width:
        raise ValueError(
            f"idpruner.scorer={path!r} scores features of width {width}, this model's have {x.shape[-1]}: it belongs "
            "to another model"
        )
    usable = valid & vector_norm(x, dim=-1, dtype=wide_dtype(x)).isfinite()
    x = wide(x.masked_fill(~usable[..., None], 0))
    mean = x.sum(1) / usable.sum(1, keepdim=True).clamp(min=1)
    # the mean over keys goes inside: k(mean x), and q's matrix to its other side
    key = mean @ weight["k_proj.weight"].T + weight["k_proj.bias"]
    score = (x @ (key @ weight["q_proj.weight"])[..., None])[..., 0] + (key @ weight["q_proj.bias"])[:, None]
    return (score / hidden**0.5).masked_fill(~usable, float("nan"))
