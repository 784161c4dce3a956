"""Questions in sequences of their own, several about one picture: what depends on the picture alone is made once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from pictures import Asked, Evaluation
from torch import Tensor


@dataclass(frozen=True)
class Shared:
    """Features of pictures `[P, 576, D]`, and of each row which picture it is about `[R]`."""

    features: Tensor
    of: Tensor

    def __getitem__(self, rows: slice) -> Shared:
        """Some rows, with their pictures."""
        pictures, of = self.of[rows].unique(return_inverse=True)
        return Shared(self.features[pictures], of)

    def float(self) -> Shared:
        """The same in float32."""
        return Shared(self.features.float(), self.of)


def apart(asked: Asked | Evaluation) -> Asked | Evaluation:
    """The same with a row for each question."""
    owner = torch.tensor([i for i, some in enumerate(asked.questions) for _ in some])
    rows = [[q] for some in asked.questions for q in some]
    found = replace(asked, features=Shared(asked.features, owner), questions=rows)
    return replace(found, ids=[[n] for names in asked.ids for n in names]) if isinstance(asked, Evaluation) else found
