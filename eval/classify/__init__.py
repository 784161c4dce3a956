"""Image classifiers under pruning: accuracy, FLOPs and throughput of a bare ViT, and a small one trained on digits.

In: a classifier and labelled pictures. Out: the same tables and report as of a sweep.
Uses: eval.cost, eval.files, eval.reports, eval.reports.html, eval.reports.wording, eval.statistics, eval.sweep,
eval.tasks, eval.tasks.media, eval.tasks.reading, eval.terminal, eval.train.basics, eval.vlm, methods, models.tower,
pruners, vtc.
"""

from __future__ import annotations

KINDS = ("timm", "open_clip")


def is_classifier(source: str | None) -> bool:
    """Whether ``--model`` names an image classifier (``timm:...``, ``open_clip:...``) and not a VLM."""
    return source is not None and ":" in source and source.partition(":")[0] in KINDS
