"""Everything about a model that wrapping could change, for before-and-after comparisons."""

from vtc.eval.check.model_snapshot import HOOKS, anatomy

__all__ = ["HOOKS", "anatomy"]
