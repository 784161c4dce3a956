"""Everything about a model that wrapping could change, for before-and-after comparisons."""

from vtc.eval.check.anatomy import anatomy

__all__ = ["anatomy"]
