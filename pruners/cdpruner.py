"""CDPruner: diversity under the condition of the question, by a determinantal point process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

from vtc.pruners.primitives.clip_text import clip_text, read_clip
from vtc.pruners.primitives.greedy import dpp_map
from vtc.pruners.primitives.precision import wide, wide_dtype

from .base import Pruner
from .registry import register_pruner
from .signals import EncoderFeatures, Signal, TextEmbeddings
from .visual_tokens import VisualTokens

RELEVANCES = ("auto", "clip", "embeddings", "none")


@register_pruner("cdpruner")
@dataclass(kw_only=True)
class CDPruner(Pruner):
    """CDPruner (Zhang et al., NeurIPS 2025, arXiv 2506.10967): conditional diversity, a DPP weighted by relevance.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    text_encoder : str, optional
        The CLIP that the model's vision tower was taken from: a folder or hub id of transformers, or
        ``"open_clip:ARCHITECTURE/PRETRAINED"`` (see ``clip_text``). For LLaVA ``"openai/clip-vit-large-patch14-336"``
        or ``"open_clip:ViT-L-14-336/openai"``.
    relevance : {"auto", "clip", "embeddings", "none"}
        By CLIP; by the language model's own embeddings, for towers without a text side (Qwen, SigLIP); or none, plain
        diversity. "auto" is CLIP where there is a `text_encoder`, else the embeddings.
    theta : float, optional
        In [0, 0.99], beyond which it overflows: sharpens the relevance to ``exp(theta / (2 (1 - theta)) rho)``. The
        authors leave it out by default.
    encoder_layer : int, optional
        Layer of the tower whose patches CLIP embeds. Default: the one that the projector reads, as the authors do.
    negate : bool
        Take LOW similarity of patch and text for relevant, as the authors do: in OpenAI's CLIP, and there only as they
        say, patches match a text the less the more it is about them. False for a CLIP trained on its patches. The
        embeddings' similarity is never negated.
    official : bool
        Scale relevance over all pictures of a sample, as the authors' code does over its views, and not span by span.

    Notes
    -----
    Stage: input. With patch embeddings v_i (the tower's states through CLIP's last norm and projection), embeddings t_m
    of the question's segments (77 tokens each) and projected features x_i `[D]`::

        rho_i = -mean_m cos(v_i, t_m),   scaled to (rho - min + 1e-6) / (max - min)
        L_ij = rho_i cos(x_i, x_j) rho_j;   greedy MAP of det L over sets of k

    By embeddings ``rho_i = mean_m cos(x_i, e_m)`` over the text behind the span. O(k N (D + k)), and the question's way
    through CLIP. Limits: as `k` nears the rank of the features, what is left to choose by is rounding (see
    ``dpp_map``); the question must stand behind the picture.
    """

    text_encoder: str | None = None
    relevance: str = "auto"
    theta: float | None = None
    encoder_layer: int | None = None
    negate: bool = True
    official: bool = False

    paper: ClassVar[str] = "arXiv 2506.10967"
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relevance not in RELEVANCES:
            raise ValueError(f"cdpruner.relevance={self.relevance!r}; allowed are {', '.join(RELEVANCES)}")
        if self.relevance == "clip" and self.text_encoder is None:
            raise ValueError("cdpruner(relevance='clip') needs text_encoder, the CLIP of the model's vision tower")
        if self.theta is not None and not 0 <= self.theta <= 0.99:
            raise ValueError(f"cdpruner.theta={self.theta!r} is out of range; it must be a number in [0, 0.99]")

    @property
    def _by(self) -> str:
        if self.relevance == "auto":
            return "embeddings" if self.text_encoder is None else "clip"
        return self.relevance

    @property
    def uses_text(self) -> bool:  # type: ignore[override]
        """Unless there is no relevance."""
        return self._by != "none"

    @property
    def uses_question(self) -> bool:  # type: ignore[override]
        """Only CLIP reads words."""
        return self._by == "clip"

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """What the relevance reads."""
        by = {"clip": (EncoderFeatures(layer=self.encoder_layer),), "embeddings": (TextEmbeddings(),)}
        return by.get(self._by, ())

    def check_files(self) -> None:
        """The CLIP, which is loaded here and used later."""
        if self._by == "clip":
            read_clip(str(self.text_encoder))

    def score(self, tokens: VisualTokens) -> Tensor:
        """Relevance scaled to about [0, 1], `[B, N]` float32."""
        rho = self._clip(tokens) if self._by == "clip" else self._embeddings(tokens)
        use = tokens.valid & rho.isfinite()
        low, high = torch.where(use, rho, float("inf")).amin(1), torch.where(use, rho, float("-inf")).amax(1)
        if self.official:
            same = tokens.sample[:, None] == tokens.sample
            low, high = torch.where(same, low, float("inf")).amin(1), torch.where(same, high, float("-inf")).amax(1)
        low, high = low[:, None], high[:, None]
        rho = (rho - low + 1e-6) / (high - low).clamp(min=1e-6)
        return rho if self.theta is None else (self.theta / (2 * (1 - self.theta)) * rho).exp()

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """Greedy MAP, `[B, k]` in the order chosen."""
        weight = None if self._by == "none" else self.score(tokens)
        return dpp_map(tokens.features, k, tokens.valid, weight)

    def _clip(self, tokens: VisualTokens) -> Tensor:
        x = tokens.read(self.signals[0])
        encoder = clip_text(str(self.text_encoder), x.device)
        text = encoder.text(tokens.questions())[tokens.sample.to(x.device)]
        found = torch.einsum("bnud,bd->bnu", encoder.patches(x), text).mean(-1).to(tokens.ids.device)
        return -found if self.negate else found

    def _embeddings(self, tokens: VisualTokens) -> Tensor:
        words = normalize(wide(tokens.text(TextEmbeddings())), dim=-1)[tokens.sample]
        behind = tokens.text_valid(after=True)
        text = (words * behind[..., None]).sum(1) / behind.sum(1, keepdim=True).clamp(min=1)
        length = vector_norm(tokens.features, dim=-1, dtype=wide_dtype(tokens.features)).clamp(min=1e-8)
        return (wide(tokens.features) @ text[..., None])[..., 0] / length
