"""Image classifiers under pruning: accuracy, FLOPs and throughput of a bare ViT, and a small one trained on digits."""

from __future__ import annotations

KINDS = ("timm", "open_clip")


def is_classifier(source: str | None) -> bool:
    """Whether ``--model`` names an image classifier (``timm:...``, ``open_clip:...``) and not a VLM."""
    return source is not None and ":" in source and source.partition(":")[0] in KINDS
