"""What the model ``vtc`` of lmms-eval builds, and how it compresses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vtc.pipeline_text import Pipeline, format_pipeline


@dataclass(frozen=True)
class Setup:
    """What to build and how to compress it.

    Attributes
    ----------
    base : str
        lmms-eval's name of the backend.
    pipeline : tuple of Pruner
        The methods; empty for the unpruned model.
    positions : str
        As in ``vtc.compress``.
    on_error : {"stop", "skip"}
        What a request does on which the model fails: stop the run, or count as an empty answer.
    arguments : dict
        The backend's own arguments.
    """

    base: str
    pipeline: Pipeline
    positions: str
    on_error: str
    arguments: dict[str, Any]

    @property
    def spec(self) -> str:
        """The canonical text of the method."""
        return format_pipeline(self.pipeline) or "unpruned"
