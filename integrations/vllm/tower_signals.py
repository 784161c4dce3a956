"""Encoder signals of the engine's vision tower.

The engine's attention kernels give no weights. So queries, keys and values are looked at where they enter the kernel
(behind projections, norms and rotary embedding), and what a method declares is computed from them for the layers that
it names: the same code as for transformers' towers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtc.models.layout.layouts_by_family import VisionCall
from vtc.models.layout.model_parts import Parts
from vtc.models.tower.call_state import VisionRun
from vtc.models.tower.captures_needed import kind_of, layer_of
from vtc.models.tower.packed_segments import Segments
from vtc.models.tower.refusals import check_signals, cut_of, read_layer, vision_layers
from vtc.models.tower.signals_from_attention import encoder_rows
from vtc.pruners.signals import Signal

CLASS_TOKENS = ("class_embedding", "cls_token")
KERNEL = "MMEncoderAttention"


def depth_of(config: Any) -> int:
    """Layers of the vision tower as its checkpoint has them; the engine may have loaded fewer."""
    vision = config.vision_config
    return int(vision.depth if hasattr(vision, "depth") else vision.num_hidden_layers)


def last_read(config: Any) -> int:
    """The layer that the projector reads."""
    return read_layer(getattr(config, "vision_feature_layer", None), depth_of(config))


def layers_read(signals: Iterable[Signal], config: Any) -> set[int]:
    """The tower's layers, counted from 0, that `signals` are of."""
    last, depth = last_read(config), depth_of(config)
    return {layer_of(s, last, depth) for s in signals if s.part == "encoder"} - {-1}


class TowerSignals:
    """Hooks on the engine's tower that serve `signals`; none where there are none.

    Raises
    ------
    NotImplementedError, ValueError
        If the tower can't give one of them; the message says which.
    """

    def __init__(self, parts: Parts, signals: Iterable[Signal]):
        self.parts = parts
        self.signals = [s for s in dict.fromkeys(signals) if s.part == "encoder"]
        self.depth, self.last = depth_of(parts.config), last_read(parts.config)
        self.prefix = int(any(name.endswith(CLASS_TOKENS) for name, _ in parts.tower.named_parameters()))
        self._run: VisionRun | None = None
        self._wanted: dict[int, set[str]] = {}
        check_signals(parts, self.signals, self.prefix, self.depth)
        needs: dict[int, set[str]] = {}
        for signal in self.signals:
            needs.setdefault(self._layer(signal), set()).add(kind_of(signal, self.prefix))
        if needs.pop(-1, None):
            _listen(parts.core.model.get_submodule(parts.family.projector), before=self._projector)
        layers = vision_layers(parts.tower) if needs else []
        for i, kinds in needs.items():
            if i >= len(layers):
                raise NotImplementedError(
                    f"a method reads layer {i} of the vision tower, of which the engine has loaded {len(layers)} layers"
                )
            kernels = [m for m in layers[i].modules() if type(m).__name__ == KERNEL]
            if len(kernels) != 1:
                raise NotImplementedError(
                    f"layer {i} of {type(parts.tower).__name__} has {len(kernels)} attention kernels ({KERNEL}), and "
                    "vtc reads its signals at one: this version of vLLM is built otherwise than those that vtc knows"
                )
            if kinds - {"features"}:
                _listen(kernels[0], before=partial(self._attention, i, kernels[0]))
            if "features" in kinds:
                _listen(layers[i], after=partial(self._features, i))

    def _layer(self, signal: Signal) -> int:
        return layer_of(signal, self.last, self.depth)

    @contextmanager
    def watching(self, call: VisionCall, signals: Iterable[Signal]) -> Iterator[dict[Signal, list[Tensor]]]:
        """While this is open the tower runs `call`; when it closes, what it gives holds `signals`, span by span."""
        asked = [s for s in dict.fromkeys(signals) if s.part == "encoder"]
        found: dict[Signal, list[Tensor]] = {}
        run = VisionRun(
            call,
            self.parts.family,
            self.parts.tower,
            self.prefix,
            cut_of(call, self.parts.family),
            self.depth,
            self.last,
        )
        self._wanted = {}
        for signal in asked:
            self._wanted.setdefault(self._layer(signal), set()).add(kind_of(signal, self.prefix))
        self._run = run
        try:
            yield found
        finally:
            self._run = None
        found.update({s: run.aligned(s, self._layer(s)) for s in asked})

    def _capture(self, kind: str, layer: int, rows: Tensor) -> None:
        assert self._run is not None
        if self.parts.family.packed:  # `[T, C]` or `[T, 1, C]`
            rows = rows.reshape(1, -1, rows.shape[-1])
        self._run.capture(kind, layer, rows)

    def _features(self, layer: int, output: Any) -> None:
        if self._run is not None and "features" in self._wanted.get(layer, ()):
            self._capture("features", layer, output[0] if isinstance(output, tuple) else output)

    def _projector(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._run is not None and "projector" in self._wanted.get(-1, ()):
            self._capture("projector", -1, args[0] if args else next(iter(kwargs.values())))

    def _attention(self, layer: int, kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._run is None:
            return
        given = dict(zip(("query", "key", "value", "cu_seqlens"), args, strict=False)) | kwargs
        heads = (kernel.num_heads, kernel.num_kv_heads, kernel.num_kv_heads)
        query, key, value = (
            (x.unflatten(-1, (n, -1)) if x.dim() == 3 else x).transpose(1, 2)
            for x, n in zip((given["query"], given["key"], given["value"]), heads, strict=True)
        )
        segments = _segments(given.get("cu_seqlens"))
        for kind in self._wanted.get(layer, set()) - {"features"}:
            self._capture(kind, layer, encoder_rows(kind, query, key, value, None, kernel.scale, segments))


def _listen(
    module: nn.Module,
    before: Callable[[tuple[Any, ...], dict[str, Any]], None] | None = None,
    after: Callable[[Any], None] | None = None,
) -> None:
    """Look at what a module is called with, and at what it gives.

    Not by torch's hooks: modules that vLLM may compile call their ``forward`` themselves.
    """
    forward = module.forward

    @functools.wraps(forward)
    def heard(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(args, kwargs)
        output = forward(*args, **kwargs)
        if after is not None:
            after(output)
        return output

    module.forward = heard


def _segments(ends: Tensor | None) -> Segments | None:
    """Where a packed row's segments end, as vtc's towers say it."""
    if ends is None:
        return None
    lengths: Sequence[int] = ends.diff().tolist()
    lengths = [n for n in lengths if n]  # windows at a border may be empty
    sizes = torch.tensor(lengths, device=ends.device)
    ids = torch.repeat_interleave(torch.arange(len(lengths), device=ends.device), sizes)
    return Segments(ids, len(lengths), max(lengths), lengths)
