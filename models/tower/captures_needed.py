"""What has to be captured in the tower for an encoder signal, and at which of its layers."""

from __future__ import annotations

from vtc.pruners.signals import (
    EncoderAttention,
    EncoderKeys,
    EncoderSignal,
    EncoderSpecial,
    EncoderValues,
    Pixels,
    PreProjector,
    Signal,
)

PIXELS = "pixels"  # of no layer
# what stands for the class token's attention in a tower without one, by what a method asks for
SUBSTITUTES = {"auto": "received", "global": "mean", "cls_or_none": "none"}


def kind_of(signal: Signal, prefix: int) -> str:
    """What has to be captured for `signal`."""
    if isinstance(signal, PreProjector):
        return "projector"
    if isinstance(signal, Pixels):
        return PIXELS
    if isinstance(signal, EncoderAttention):
        substitute = SUBSTITUTES.get(signal.queries)
        queries = signal.queries if substitute is None else "cls" if prefix else substitute
        kind = f"{queries} of values" if signal.of else queries
        kind = "cls logits" if signal.logits and queries == "cls" else kind
        return f"joint {kind}" if signal.joint_heads else kind
    if isinstance(signal, (EncoderKeys, EncoderValues)) and signal.heads:
        return "mean keys" if isinstance(signal, EncoderKeys) else "mean values"
    if isinstance(signal, EncoderSpecial):
        return signal.of  # the captured rows begin with them
    return type(signal).__name__.removeprefix("Encoder").lower()


def layer_of(signal: Signal, default: int, depth: int) -> int:
    """The encoder layer that `signal` means, counted from 0; -1 for what the projector reads, and for pixels."""
    if not isinstance(signal, EncoderSignal):
        return -1
    if signal.layer is None:
        return default
    if isinstance(signal.layer, float):
        return min(depth - 1, int(signal.layer * depth + 0.5))
    return signal.layer if signal.layer >= 0 else depth + signal.layer
