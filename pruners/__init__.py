"""The methods: one file per published method, on a few shared selection primitives."""

from . import dart, fastv, random, uniform
from .base import Merged, Pruner, ScorePruner, Stop, VisualTokens
from .registry import list_pruners, make_pruner, pruner_class, register_pruner

__all__ = [
    "Merged",
    "Pruner",
    "ScorePruner",
    "Stop",
    "VisualTokens",
    "dart",
    "fastv",
    "list_pruners",
    "make_pruner",
    "pruner_class",
    "random",
    "register_pruner",
    "uniform",
]
