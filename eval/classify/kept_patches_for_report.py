"""What a cell keeps of a picture, for the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vtc.eval.reports.html.sample_pictures import Finder, Kept
from vtc.eval.tasks.questions import Question
from vtc.eval.vlm.feature_cache import pruned

from .classifier_sweep import ClassifySweep


def as_seen(image: Tensor) -> Image.Image:
    """A model's input `[3, H, W]`, of whatever scale, as a picture: crops are as the model had them."""
    x = image.float().cpu()
    x = (x - x.min()) / (x.max() - x.min()).clamp(min=1e-6)
    return Image.fromarray((255 * x).round().byte().permute(1, 2, 0).numpy())


def kept_finder(sweep: ClassifySweep) -> Finder:
    """Classifies a picture again under a cell to see which patches are left."""
    of = {cell.spec: cell for cell in sweep.cells}

    @torch.no_grad()
    def find(spec: str, question: Question) -> Kept | None:
        images = sweep.classifier.batch([sweep.tasks.image(question.image_id)])
        with pruned(sweep.classifier.model, of[spec]) as wrapped:
            model: Any = wrapped
            sweep.classifier.logits(images)
            report = model.vtc.report
            grids = report.layouts[0].grids
            if len(grids) != 1 or not report.steps:
                return None
            mask = np.zeros(grids[0].rows * grids[0].cols, dtype=bool)
            mask[report.steps[-1].kept[0].numpy()] = True
        return [mask.reshape(grids[0].rows, grids[0].cols)], [as_seen(images[0])]

    return find
