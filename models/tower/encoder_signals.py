"""Encoder signals: what has to be captured for each, and how a method inside the encoder reads them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vtc.pruners.signals import EncoderAttention, EncoderSegments, EncoderSignal, EncoderSpecial, Pixels, Signal
from vtc.pruners.visual_tokens import SignalSource, VisualTokens

from .captures_needed import kind_of, layer_of


class Captured(Protocol):
    """What is read of a vision call, see ``call_state.VisionRun``."""

    prefix: int
    depth: int

    def patches(self, kind: str, layer: int) -> Any:
        """Captured rows of one kind at a layer."""

    def index(self, device: torch.device) -> list[Tensor]:
        """Of each item, the rows of its tokens' patches."""

    def special(self, item: int) -> Tensor:
        """The rows of an item's special tokens."""

    def first_row(self, item: int) -> int:
        """An item's first row."""


class StopSignals(SignalSource):
    """Reads of a method that prunes at encoder layer `layer`; a signal's ``layer=None`` is the layer before it."""

    def __init__(self, run: Captured, declared: tuple[Signal, ...], layer: int):
        self.run, self.declared, self.layer = run, declared, layer
        self.depth = run.depth

    def read(self, signal: Signal, tokens: VisualTokens) -> Tensor:
        """See ``VisualTokens.read``."""
        if signal not in self.declared:
            raise ValueError(f"{signal} was not declared in the pruner's `signals`, so it was not computed")
        assert isinstance(signal, EncoderSignal | Pixels)
        attention = isinstance(signal, EncoderAttention)
        values = self.run.patches(kind_of(signal, self.run.prefix), layer_of(signal, self.layer - 1, self.depth))
        if isinstance(signal, EncoderSpecial):
            special = [self.run.special(item).to(values.device) for item in tokens.span]
            return pad_sequence([values[s] for s in special], batch_first=True)
        index = self.run.index(values.device)
        rows = []
        for row, item in enumerate(tokens.span):
            place = index[item][tokens.ids[row, : tokens.counts[row]].to(index[item].device)]
            found = values[place.to(values.device)]
            if isinstance(signal, EncoderSegments):
                found = found - self.run.first_row(item)
            rows.append(found.mean(1) if attention else found)
        found = pad_sequence(rows, batch_first=True)
        short = tokens.ids.shape[1] - found.shape[1]
        if short:
            found = torch.cat([found, found.new_zeros(found.shape[0], short, *found.shape[2:])], 1)
        return found.transpose(1, 2) if attention else found

    def text(self, signal: Signal) -> Tensor:
        """There is no text inside the encoder."""
        raise NotImplementedError("text is not there yet while the vision encoder runs; use the input or decoder stage")

    text_valid = text  # type: ignore[assignment]
    final_norm = text  # type: ignore[assignment]

    def questions(self) -> list[str]:
        """There is no text inside the encoder."""
        raise NotImplementedError("text is not there yet while the vision encoder runs; use the input or decoder stage")

    def project(self, x: Tensor) -> Tensor:
        """Nothing is projected inside the encoder."""
        raise NotImplementedError("the projector comes behind the vision encoder; use the input stage")

    @property
    def projector(self) -> nn.Module:
        """Nothing is projected inside the encoder."""
        raise NotImplementedError("the projector comes behind the vision encoder; use the input stage")
