"""Clips for LangDC's study: training and held-out ones, their features, captions and questions."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pictures import encoded
from torch import Tensor, nn

from vtc.eval.train.language.pack_questions import text_ids
from vtc.eval.train.scenes.clips import Clip, clip_questions, sample_clip
from vtc.eval.train.scenes.questions import Question
from vtc.eval.train.scenes.vocabulary import EOS_ID
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import PreProjector, Signal
from vtc.pruners.visual_tokens import SignalSource, VisualTokens

FRAMES, PATCHES, SIDE = 2, 576, 24
TRAINING, HELD_OUT = 160, 48


@dataclass(frozen=True)
class Clips:
    """Clips with their tower features `[n, FRAMES, 576, D]` in bfloat16, and all questions about each."""

    clips: list[Clip]
    features: Tensor
    questions: list[list[Question]]

    @classmethod
    def drawn(cls, model: nn.Module, folder: Path, of: str, count: int) -> Clips:
        """`count` clips of a kind; the first ones are the same for every count."""
        clips = [sample_clip(random.Random(f"langdc-study/{of}/{i}"), FRAMES) for i in range(count)]
        file = folder / f"{of}-{count}.pt"
        pixels = [] if file.exists() else [np.asarray(p) for clip in clips for p in clip.pictures]
        asked = [clip_questions(random.Random(f"langdc-study/{of}/{i}/questions"), c) for i, c in enumerate(clips)]
        return cls(clips, encoded(model, pixels, file).unflatten(0, (-1, FRAMES)), asked)

    def caption(self, i: int) -> Tensor:
        """Ids of a clip's caption, its end with them."""
        return torch.tensor([*text_ids(self.clips[i].caption), EOS_ID])

    def entities(self, i: int) -> int:
        """How many things a clip shows."""
        return len(self.clips[i].shown)


@dataclass
class Patches(SignalSource):
    """Serves what the projector reads, `[B, N, 1, D]`."""

    values: Tensor

    def read(self, signal: Signal, tokens: VisualTokens) -> Tensor:
        """See ``VisualTokens.read``."""
        assert isinstance(signal, PreProjector)
        return self.values


def tokens_of(features: Tensor, projected: Tensor, pooled: int) -> VisualTokens:
    """The frames of clips `[n, FRAMES, 576, D]` as a method is given them: each a picture of one prompt."""
    clips, rows = len(features), len(features) * FRAMES
    return VisualTokens(
        features=projected.flatten(0, 1),
        ids=torch.arange(PATCHES).expand(rows, -1),
        counts=[PATCHES] * rows,
        budgets=[pooled] * rows,
        layouts=[Layout((Grid(SIDE, SIDE),))] * rows,
        sample=torch.arange(clips).repeat_interleave(FRAMES),
        order=list(range(FRAMES)) * clips,
        span=list(range(rows)),
        source=Patches(features.flatten(0, 1)[:, :, None]),
    )
