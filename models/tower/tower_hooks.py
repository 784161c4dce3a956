"""The vision side of a wrapped model: records every vision call, captures encoder signals, prunes inside the tower.

Plain torch hooks only, and idle outside ``VisionSide.record``. What is pruned in the tower comes back as zeros in the
tower's output, so that projector, packing and the placeholder check run as ever; the kept ids go into the record, and
the adapter drops the zeros' placeholders before the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from vtc.models.layout.crops_by_family import small_crops
from vtc.models.layout.items_behind_placeholders import crop_length
from vtc.models.layout.items_behind_placeholders import item_lengths as entry_lengths
from vtc.models.layout.layouts_by_family import VisionCall
from vtc.models.layout.model_parts import Parts
from vtc.models.layout.run_projector import projector_of
from vtc.models.layout.vision_call_record import VisionRecord
from vtc.models.selection.stopwatch import Timing, now
from vtc.models.stock.attention_taps import AttentionTap
from vtc.models.stock.call_arguments import call_of
from vtc.models.stock.hooks_outside_checkpoint import LayerHooks, arm
from vtc.models.stock.per_thread import ThreadState
from vtc.models.stock.spread_over_processes import every_head
from vtc.models.stock.transformers_api import features_in
from vtc.pruners.base import Pruner, Stop
from vtc.pruners.layout import Layout
from vtc.pruners.signals import EncoderSignal, Signal

from .aligned_signals import AlignedSignals
from .call_state import VisionRun
from .captures_needed import PIXELS, kind_of, layer_of
from .packed_segments import SegmentedAttention
from .refusals import (
    FEATURE_LAYER,
    check_features_asked,
    check_signals,
    check_stops,
    cut_of,
    prefix_tokens,
    read_layer,
    vision_layers,
)
from .signals_from_attention import encoder_rows
from .videos_as_images import whole_videos


class VisionSide:
    """Hooks on a model's vision tower.

    Parameters
    ----------
    parts : Parts
        The model's modules.
    stops : sequence of (Pruner, Stop)
        What prunes inside the encoder, with ``stop.stage == "vision"``.
    signals : iterable of Signal
        Encoder signals that methods behind the encoder read; the record holds them.

    Raises
    ------
    NotImplementedError
        If the family, the tower or a method can't do what is asked; the message says what to do instead.
    ValueError
        For a layer that is not there.
    """

    def __init__(self, parts: Parts, stops: Sequence[tuple[Pruner, Stop]] = (), signals: Iterable[Signal] = ()):
        self.parts, self.family, self.tower = parts, parts.family, parts.tower
        self.signals = [s for s in signals if s.part == "encoder"]
        self.layers: Sequence[nn.Module] = []
        self.stops: dict[int, list[tuple[Pruner, Stop]]] = {}
        self.prefix = self.cut = self.last = 0
        self.needs: dict[int, set[str]] = {}
        self.done: dict[int, list[tuple[str, int]]] = {}
        # whether anything is read or done where the projector reads: then that place is fixed
        self.by_last = bool(stops) or any(isinstance(s, EncoderSignal) and s.layer is None for s in self.signals)
        self.timing: Timing = False
        self._local: Any = ThreadState()
        self._handles: list[Any] = []
        self._hooks: list[LayerHooks] = []
        self._taps: list[AttentionTap | SegmentedAttention] = []
        if not (stops or self.signals):
            return
        if self.family.align is None:  # that says more than what its tower lacks
            check_signals(parts, self.signals, 0, 0)
            check_stops(parts, stops, 0, 0, 0, 0)
        self.layers = vision_layers(self.tower)
        self.prefix = prefix_tokens(self.tower)
        asked = VisionCall(parts.core, "image", {})
        self.cut, self.last = cut_of(asked, self.family), read_layer(asked.option(FEATURE_LAYER), len(self.layers))
        check_signals(parts, self.signals, self.prefix, len(self.layers))
        last_read: dict[tuple[str, int], int] = {}  # before which layer
        for layer, pruner, stop in check_stops(parts, stops, self.prefix, self.cut, self.last, len(self.layers)):
            self.stops.setdefault(layer, []).append((pruner, stop))
            for signal in pruner.signals_at(stop):
                last_read[self._need(signal, layer - 1)] = layer
        for signal in self.signals:
            last_read.pop(self._need(signal, self.last), None)
        for captured, layer in last_read.items():
            self.done.setdefault(layer, []).append(captured)

    def _need(self, signal: Signal, default: int) -> tuple[str, int]:
        kind, layer = kind_of(signal, self.prefix), layer_of(signal, default, len(self.layers))
        self.needs.setdefault(layer, set()).add(kind)
        return kind, layer

    # ------------------------------------------------------------------ attach / detach

    def attach(self) -> VisionSide:
        """Set the hooks; none at all where nothing was asked for."""
        first = min(self.stops, default=len(self.layers))
        for i, layer in enumerate(self.layers):
            kinds = self.needs.get(i, set())
            if i >= first or kinds:
                after = partial(self._leave, i) if "features" in kinds else None
                before = partial(self._enter, i)
                # what only captures can be traced by torch.compile as it is
                traced = (None, None) if self.stops else (before, after)
                self._hooks.append(LayerHooks(layer, self._local, before, after, *traced).attach())
            attention = next(
                m for n in ("self_attn", "attn", "attention") if (m := getattr(layer, n, None)) is not None
            )
            attention = getattr(attention, "attention", attention)  # DINOv2's is wrapped before transformers 5.23
            if i >= first:
                self._taps.append(SegmentedAttention(attention).attach())
            if kinds - {"features", "projector"}:
                self._taps.append(AttentionTap(attention, partial(self._attention, i)).attach())
        if "projector" in self.needs.get(-1, ()):
            projector = projector_of(self.parts)
            self._handles.append(projector.register_forward_pre_hook(self._projector, with_kwargs=True))
        if PIXELS in self.needs.get(-1, ()):
            self._handles.append(self.tower.register_forward_pre_hook(self._pixels, with_kwargs=True))
        if self.stops:
            self._handles.append(self.tower.register_forward_hook(self._restore))
            if self.family.packed:
                for merger in (self.tower.merger, *getattr(self.tower, "deepstack_merger_list", ())):
                    self._handles.append(merger.register_forward_hook(self._merged))
        return self

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        for hooks in self._hooks:
            hooks.detach()
        for tap in reversed(self._taps):
            tap.detach()
        self._handles, self._hooks, self._taps = [], [], []

    # ------------------------------------------------------------------ one call

    def record(
        self, modality: str, arguments: dict[str, Any], call: Callable[[], Any]
    ) -> tuple[Any, VisionRecord | None]:
        """Run one vision call with the hooks armed.

        Parameters
        ----------
        modality : str
            ``"image"`` or ``"video"``.
        arguments : dict
            The call's arguments by name.
        call : callable
            ``get_image_features`` or ``get_video_features`` with its arguments bound.

        Returns
        -------
        output : ModelOutput
            What `call` gave.
        record : VisionRecord or None
            What there is to know about its items; None inside another recorded call (Qwen3-VL's videos go through
            ``get_image_features``), whose record covers it.
        """
        run = self._begin(modality, arguments)
        if run is None:
            return call(), None
        try:
            output = call()
        finally:
            self._local.run = None
        return output, self._recorded(modality, run, output)

    def _begin(self, modality: str, arguments: dict[str, Any]) -> VisionRun | None:
        """Arm the hooks; None inside another recorded call."""
        if getattr(self._local, "run", None) is not None:
            return None
        arm(self._hooks)
        asked = VisionCall(self.parts.core, modality, arguments)
        if self.needs or self.stops:
            check_features_asked(asked, self)
        cut = cut_of(asked, self.family)
        self._local.run = VisionRun(asked, self.family, self.tower, self.prefix, cut, len(self.layers), self.last)
        return self._local.run

    def _recorded(self, modality: str, run: VisionRun, output: Any) -> VisionRecord:
        asked = run.call
        lengths = whole_videos(asked, item_lengths(self.parts, output))
        if run.steps and lengths != asked.lengths:
            raise RuntimeError(f"the tower's tokens {asked.lengths} are not what the model made of them, {lengths}")
        asked.lengths = lengths
        if self.family.fed is not None:
            asked.lengths = lengths = self.family.fed(asked)
        found = AlignedSignals(run, {s: layer_of(s, self.last, len(self.layers)) for s in self.signals})
        small = partial(small_crops, asked.given("image"))
        layouts = partial(_layouts, run)  # a method of a new object is none that torch.compile can make behind a graph
        return VisionRecord(modality, lengths, layouts, found, run.steps, self.family.newlines, small, run.seconds)

    # ------------------------------------------------------------------ hooks

    def _run(self) -> VisionRun | None:
        return getattr(self._local, "run", None)

    def _enter(self, i: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = self._run()
        if run is None:
            return None
        call = call_of(layer, args, kwargs)
        x: Tensor = call.get("hidden")
        if not run.shape:
            run.shape = tuple(x.shape[:-1])
        if run.present is None:
            run.note_chunks(i, call)
        stops = self.stops.get(i, ())
        started = now(x, self.timing) if self.timing and stops else 0.0
        for pruner, stop in stops:
            x = run.prune(pruner, stop, i, x)
        if self.timing and stops:
            run.seconds += now(x, self.timing) - started
        run.forget(self.done.get(i, ()))
        if run.present is None:
            return None
        call.put("hidden", x)
        run.cut_arguments(i, call)
        return call.args, call.kwargs

    def _leave(self, i: int, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        run = self._run()
        if run is not None:
            run.capture("features", i, output[0] if isinstance(output, tuple) else output)

    def _attention(
        self, i: int, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float
    ) -> None:
        run = self._run()
        if run is None:
            return
        query, key, value = (every_head(module, x) for x in (query, key, value))
        for kind in self.needs[i] - {"features", "projector"}:
            if kind == "segments":
                rows = run.segment_rows(i, query)
            else:
                rows = encoder_rows(kind, query, key, value, mask, scaling, run.segments.get(i))
            run.capture(kind, i, rows)

    def _projector(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        run = self._run()
        if run is not None:
            run.capture("projector", -1, args[0] if args else next(iter(kwargs.values())))

    def _pixels(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        run = self._run()
        if run is not None:
            run.capture(PIXELS, -1, args[0] if args else next(x for x in kwargs.values() if isinstance(x, Tensor)))

    def _restore(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        run = self._run()
        if run is None or run.present is None:
            return
        for name in ("last_hidden_state", "hidden_states"):
            value = getattr(output, name, None)
            if isinstance(value, tuple):
                output[name] = tuple(v if v is None else run.restore(v) for v in value)
            elif value is not None:
                output[name] = run.restore(value)

    def _merged(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        run = self._run()
        if run is None or run.present is None:
            return None
        return run.restore_units(output, self.family.unit(self.parts.config))


def _layouts(run: VisionRun) -> list[Layout]:
    return run.layouts()


def item_lengths(parts: Parts, output: Any) -> list[int]:
    """Tokens of each item (Idefics3, SmolVLM: crop) in the output of a vision call, from its shapes."""
    features = features_in(output)
    if isinstance(output, tuple) and not all(isinstance(f, Tensor) and f.dim() == 2 for f in output):
        features = features[1]  # ``return_dict=False``
    lengths = entry_lengths(features)
    unit = crop_length(parts.core, output, sum(lengths))
    return [unit] * (sum(lengths) // unit) if unit else lengths
