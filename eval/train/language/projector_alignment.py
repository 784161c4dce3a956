"""What a projected token should say: the words for what its patch shows, and where it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.eval.train.scenes.palette import ALL_COLORS, ALL_SHAPES, LETTERS, NUM_PATCHES
from vtc.eval.train.scenes.render import PatchLabels
from vtc.eval.train.vision.heads import POSITION_WIDTH, position_code, stack_labels

from .llava import EMBEDDING_RMS, IMAGE_MARKER, MARKER_VALUE, POSITION_AMPLITUDE, WORD_MARKER, digit_ids, word_ids

_SHARPNESS = 24.0
_POSITION_WEIGHT = 2.0
_SIZE_WEIGHT = 1.0


class Alignment(nn.Module):
    """Losses that tie projected tokens to word embeddings.

    Every patch has its position, the image marker and its size to match. Words are asked only of patches that show
    something with a name; no loss tells a named patch from a background patch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._words = {
            "color": word_ids(ALL_COLORS),
            "shape": word_ids(ALL_SHAPES),
            "letter": word_ids(LETTERS),
            "first_digit": digit_ids(first=True),
            "second_digit": digit_ids(first=False),
        }
        code = torch.zeros(NUM_PATCHES, WORD_MARKER + 1)
        code[:, :POSITION_WIDTH] = position_code() * POSITION_AMPLITUDE
        code[:, IMAGE_MARKER] = MARKER_VALUE / EMBEDDING_RMS
        self.register_buffer("code", code, persistent=False)

    def targets(self, labels: Sequence[PatchLabels]) -> dict[str, Tensor]:
        """Stack the labels that :meth:`forward` needs, flat over images and patches."""
        stacked = {name: stack_labels(labels, name).flatten() for name in self._words}
        stacked["code"] = self.code.repeat(len(labels), 1)
        return stacked

    def forward(
        self, projected: Tensor, embedding: Tensor, targets: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and its figures.

        Parameters
        ----------
        projected : Tensor
            Projected tokens [tokens, width].
        embedding : Tensor
            The word embeddings [vocabulary, width].
        targets : dict of Tensor
            Per heading the class of each token, and its position code.
        """
        projected = projected.float()
        size = projected.pow(2).mean(dim=-1, keepdim=True).add(1e-6).sqrt()
        unit = projected / size
        errors = (unit[:, : WORD_MARKER + 1] - targets["code"]).pow(2).mean(dim=0)
        error = errors[:POSITION_WIDTH].mean()
        variance = targets["code"][:, :POSITION_WIDTH].var(dim=0).mean()
        loss = _POSITION_WEIGHT * errors.mean() + _SIZE_WEIGHT * (size / EMBEDDING_RMS).log().pow(2).mean()
        figures = {"position_r2": 1.0 - (error / variance).item(), "size": size.mean().item()}
        for name, ids in self._words.items():
            known = targets[name] >= 0
            if known.any():
                words = F.normalize(embedding[ids].float(), dim=-1)
                cosine = unit[known] @ words.T * unit.shape[-1] ** -0.5
                wanted = targets[name][known]
                loss = loss + F.cross_entropy(cosine * _SHARPNESS, wanted)
                figures[name] = (cosine.argmax(-1) == wanted).float().mean().item()
        return loss, figures


def start_projector(projector: nn.Module, features: Tensor) -> None:
    """Start the projector's first layer as a whitening that the GELU hardly bends.

    Parameters
    ----------
    projector : LlavaMultiModalProjector
        Its first layer is overwritten.
    features : Tensor
        Tower features [tokens, width] of some training images.
    """
    with torch.no_grad():
        mean = features.mean(dim=0)
        covariance = torch.cov((features - mean).T).double()
        values, vectors = torch.linalg.eigh(covariance)
        whitening = vectors @ torch.diag((values + 0.01 * values.mean()).rsqrt()) @ vectors.T
        first = projector.linear_1
        nn.init.orthogonal_(first.weight)
        first.weight.copy_(first.weight @ whitening.float() * 0.7)
        first.bias.copy_(2.0 - first.weight @ mean)
        nn.init.normal_(projector.linear_2.weight, 0, projector.linear_2.weight.shape[1] ** -0.5)
        projector.linear_2.weight[[IMAGE_MARKER, WORD_MARKER]] = 0.0
        projector.linear_2.bias.sub_(projector(features).mean(dim=0))
        projector.linear_2.bias[IMAGE_MARKER] = MARKER_VALUE
