"""What a wrapped model carries as ``model.vtc``, and how it comes and goes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vtc.models.adapter import Adapter
from vtc.models.layout.model_parts import unwrap
from vtc.models.selection.report import Report
from vtc.models.selection.stopwatch import Timing
from vtc.models.tower.bare_vit import VitAdapter

from . import saving
from .config import VTCConfig
from .pipeline_text import Pipeline
from .saving import HANDLE


class Handle:
    """What a wrapped model carries as ``model.vtc``.

    Attributes
    ----------
    config : VTCConfig or None
        The set-up; None when the pipeline has a method that is not registered, which can't be saved.
    pipeline : tuple of Pruner
        The methods.
    timing : bool or callable
        Switch on to have ``report.selection_seconds`` measured (synchronises the device); a function that gives
        seconds, such as ``time.thread_time``, is read instead of the wall's clock.
    """

    def __init__(self, adapter: Adapter | VitAdapter, pipeline: Pipeline, config: VTCConfig | None):
        self.adapter, self.pipeline, self.config = adapter, pipeline, config

    @property
    def report(self) -> Report | None:
        """What the last prefill really did: of this thread, or of any if this one ran none. None before the first."""
        return self.adapter.report()

    @property
    def tokenizer(self) -> Any:
        """Tokenizer for methods that read the question's words; a processor may be set. Found by itself if cached."""
        words = getattr(self.adapter, "words", None)
        return None if words is None else words.tokenizer

    @tokenizer.setter
    def tokenizer(self, given: Any) -> None:
        if isinstance(self.adapter, VitAdapter):
            raise TypeError("a bare ViT has no text, and so no tokenizer")
        self.adapter.words.tokenizer = given

    @property
    def timing(self) -> Timing:
        """Whether selection time is measured, and by which clock."""
        return self.adapter.timing

    @timing.setter
    def timing(self, on: Timing) -> None:
        self.adapter.timing = on if callable(on) else bool(on)

    def __repr__(self) -> str:
        did = self.report or "none yet"
        return f"<vtc: {' + '.join(map(str, self.pipeline))}; last prefill: {did}>"


def handle_of(model: nn.Module) -> Handle | None:
    """What a wrapped `model` carries; None on an unwrapped one."""
    handle = unwrap(model).__dict__.get(HANDLE)
    return handle if isinstance(handle, Handle) else None


def carry(model: nn.Module, handle: Handle) -> None:
    """Make `handle`, whose adapter is attached, the set-up of the model."""
    unwrap(model).__dict__[HANDLE] = handle
    saving.attach(model)
    _forget_compiled(model)


def drop(model: nn.Module) -> None:
    """Take the handle, whose adapter is detached, from the model."""
    del unwrap(model).__dict__[HANDLE]
    saving.detach(model)
    _forget_compiled(model)


def _forget_compiled(model: nn.Module) -> None:
    """Have ``torch.compile`` look at a compiled model anew: compiled code may not notice hooks that come and go."""

    def compiled(module: nn.Module) -> bool:
        own = module._compiled_call_impl is not None or "_orig_mod" in module._modules
        return own or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")

    if any(map(compiled, model.modules())):
        torch.compiler.reset()
