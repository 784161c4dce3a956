"""A loss that has projected tokens say the words for what their patch shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.eval.train.scenes.palette import ALL_COLORS, ALL_SHAPES, LETTERS
from vtc.eval.train.scenes.render import PatchLabels
from vtc.eval.train.vision.heads import stack_labels

_SHARPNESS = 24.0
_SIZE_WEIGHT = 0.3
_SILENCE_WEIGHT = 10.0


class WordsOfPatches(nn.Module):
    """Cross-entropy of the cosine between a token and the embeddings of the words of each heading.

    Words are asked only of patches that show something with a name; others should point away from all of these words,
    or the language model would hear a word from each. A size near that of word embeddings is asked of all, so that how
    long a token is does not tell the two apart.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        The language model's.
    embedding : Tensor
        Its word embeddings ``[vocabulary, width]``.
    """

    def __init__(self, tokenizer: Any, embedding: Tensor) -> None:
        super().__init__()
        digits = [str(digit) for digit in range(10)]
        spoken: dict[str, Sequence[str]] = {
            "color": [f" {word}" for word in ALL_COLORS],
            "shape": [f" {word}" for word in ALL_SHAPES],
            "letter": [f" {letter}" for letter in LETTERS],
            "first_digit": digits,
            "second_digit": digits,
        }
        self.size = float(embedding.pow(2).mean().sqrt())
        self._words = {}
        for heading, words in spoken.items():
            vectors = embedding[[tokenizer(word, add_special_tokens=False).input_ids[0] for word in words]].detach()
            if heading == "second_digit":  # another direction than the first digit's
                vectors = vectors.roll(1, dims=-1)
            self._words[heading] = F.normalize(vectors - embedding.detach().mean(dim=0), dim=-1)

    def targets(self, labels: Sequence[PatchLabels]) -> dict[str, Tensor]:
        """The class of each patch under each heading, flat over pictures and patches."""
        return {heading: stack_labels(labels, heading).flatten() for heading in self._words}

    def forward(self, projected: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The loss, and the share of right words under each heading.

        Parameters
        ----------
        projected : Tensor
            Projected tokens ``[tokens, width]``.
        targets : dict of Tensor
            From :meth:`targets`, ``[tokens]`` each.
        """
        projected = projected.float()
        size = projected.pow(2).mean(dim=-1).add(1e-9).sqrt()
        loss = _SIZE_WEIGHT * (size / self.size).log().pow(2).mean()
        unit, figures = F.normalize(projected, dim=-1), {"size": size.mean().item() / self.size}
        silent = targets["color"] < 0
        for heading, words in self._words.items():
            if silent.any():
                loss = loss + _SILENCE_WEIGHT * (unit[silent] @ words.T).relu().pow(2).sum(dim=-1).mean()
            known = targets[heading] >= 0
            if known.any():
                cosine = unit[known] @ words.T
                loss = loss + F.cross_entropy(cosine * _SHARPNESS, targets[heading][known])
                figures[heading] = (cosine.argmax(-1) == targets[heading][known]).float().mean().item()
        return loss, figures


def start_projector(projector: Any, features: Tensor, size: float) -> None:
    """Start the projector so that it reads every feature at the same scale, and speaks as loudly as words do.

    Parameters
    ----------
    projector : LlavaMultiModalProjector
        Overwritten.
    features : Tensor
        Tower features ``[tokens, width]`` of some pictures.
    size : float
        Root mean square of word embeddings.
    """
    with torch.no_grad():
        mean, spread = features.mean(dim=0), features.std(dim=0) + 1e-4
        first, second = projector.linear_1, projector.linear_2
        nn.init.normal_(first.weight, 0, first.in_features**-0.5)
        first.weight.div_(spread)
        first.bias.copy_(-first.weight @ mean)
        nn.init.normal_(second.weight, 0, second.in_features**-0.5)
        nn.init.zeros_(second.bias)
        out = projector(features)
        second.weight.mul_(size / out.std())
        second.bias.sub_(projector(features).mean(dim=0))
