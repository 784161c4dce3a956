"""Encoder signals: what has to be captured for each, and how a method inside the encoder reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vtc.pruners.base import SignalSource, VisualTokens
from vtc.pruners.signals import (
    EncoderAttention,
    EncoderKeys,
    EncoderSegments,
    EncoderSignal,
    EncoderSpecial,
    EncoderValues,
    PreProjector,
    Signal,
)

if TYPE_CHECKING:
    from .vision_run import VisionRun


def kind_of(signal: Signal, prefix: int) -> str:
    """What has to be captured for `signal`."""
    if isinstance(signal, PreProjector):
        return "projector"
    if isinstance(signal, EncoderAttention):
        substitute = {"auto": "received", "global": "mean", "cls_or_none": "none"}.get(signal.queries)
        queries = signal.queries if substitute is None else "cls" if prefix else substitute
        kind = f"{queries} of values" if signal.of else queries
        kind = "cls logits" if signal.logits and queries == "cls" else kind
        return f"joint {kind}" if signal.joint_heads else kind
    if isinstance(signal, (EncoderKeys, EncoderValues)) and signal.heads:
        return "mean keys" if isinstance(signal, EncoderKeys) else "mean values"
    if isinstance(signal, EncoderSpecial):
        return signal.of  # the captured rows begin with them
    return type(signal).__name__.removeprefix("Encoder").lower()


class StopSignals(SignalSource):
    """Reads of a method that prunes at encoder layer `layer`; a signal's ``layer=None`` is the layer before it."""

    def __init__(self, run: VisionRun, declared: tuple[Signal, ...], layer: int):
        self.run, self.declared, self.layer = run, declared, layer
        self.depth = run.depth

    def read(self, signal: Signal, tokens: VisualTokens) -> Tensor:
        """See ``VisualTokens.read``."""
        if signal not in self.declared:
            raise ValueError(f"{signal} was not declared in the pruner's `signals`, so it was not computed")
        assert isinstance(signal, EncoderSignal)
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


def layer_of(signal: Signal, default: int, depth: int) -> int:
    """The encoder layer that `signal` means, counted from 0; -1 for what the projector reads."""
    if not isinstance(signal, EncoderSignal):
        return -1
    if signal.layer is None:
        return default
    if isinstance(signal.layer, float):
        return min(depth - 1, int(signal.layer * depth + 0.5))
    return signal.layer if signal.layer >= 0 else depth + signal.layer
